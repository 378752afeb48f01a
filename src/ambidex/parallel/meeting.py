"""How the processes that torchrun started find each other, in a store that may still hold what earlier ones left.

torchrun's agent keeps its store from one attempt to the next (torch 2.13), and its count of restarts differs between
hosts, so neither says which attempt this is: gloo then connects to processes that are gone. So the process that writes
names each meeting anew, and the others are in it once it has confirmed each by a name of their own.
"""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ambidex.parallel.place import Place

RUN = "ambidex/run"  # in the store: the folder of the run that was begun, until it ends well
_EVERY = 0.02  # seconds
Store = Any  # of torch.distributed, which has no type that a checker finds


def meet(place: Place, seconds: float) -> tuple[Store, Store]:
    """The store of all attempts, and one that only the processes of this one use. Raises RuntimeError after ``seconds``."""
    patience = timedelta(seconds=seconds)
    store, _, _ = next(rendezvous("env://", place.rank, place.size, timeout=patience))
    deadline = time.monotonic() + seconds
    name = uuid.uuid4().hex
    meeting = _open(store, place, name, deadline) if place.writes else _enter(store, place, name, deadline)
    return store, dist.PrefixStore(f"ambidex/{meeting}", store)  # type: ignore[attr-defined]


def _open(store: Store, place: Place, name: str, deadline: float) -> str:
    store.set("ambidex/meeting", name)
    seats = [f"ambidex/{name}/{rank}" for rank in range(1, place.size)]
    while missing := [rank for rank, seat in enumerate(seats, 1) if not store.check([seat])]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"rank {', '.join(map(str, missing))} did not come")
        time.sleep(_EVERY)
    names = [name, *(store.get(seat).decode() for seat in seats)]
    store.set(f"ambidex/{name}/confirmed", json.dumps(names))
    return name


def _enter(store: Store, place: Place, name: str, deadline: float) -> str:
    while time.monotonic() < deadline:
        if store.check(["ambidex/meeting"]):
            meeting: str = store.get("ambidex/meeting").decode()
            store.set(f"ambidex/{meeting}/{place.rank}", name)
            confirmed = f"ambidex/{meeting}/confirmed"
            if store.check([confirmed]) and name in json.loads(store.get(confirmed)):
                return meeting
        time.sleep(_EVERY)
    raise RuntimeError("rank 0 did not come")
