"""Where a process stands among those that torchrun started, read from the variables that it sets. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

from ambidex.errors import Problem, Problems


@dataclass(frozen=True)
class Place:
    """Where a process stands among those that torchrun started: its number among all, and among those of its host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    attempt: int = 0  # how often torchrun has started them anew

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Place:
        """From torchrun's variables. Raises Problems where they contradict each other."""
        if "RANK" not in environ or "WORLD_SIZE" not in environ:
            return cls()
        names = {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
                 "TORCHELASTIC_RESTART_COUNT": "0"}  # fmt: skip
        found = {name: environ.get(name, default) for name, default in names.items()}
        if not all(value.isascii() and value.isdigit() and len(value) < 10 for value in found.values()):
            raise _odd_environment(found)
        place = cls(*map(int, found.values()))
        if not (place.rank < place.size and place.local_rank < place.local_size <= place.size):
            raise _odd_environment(found)
        meeting = {name: environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")}
        port = meeting["MASTER_PORT"]
        if place.size > 1 and not (
            meeting["MASTER_ADDR"] and port.isascii() and port.isdigit() and len(port) < 6
        ):
            raise _odd_environment(found | meeting)
        return place

    @property
    def writes(self) -> bool:
        """Whether this is the one process that prints, and writes the run folder."""
        return self.rank == 0

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Within, only one of the processes prints. Errors, on standard error, are everybody's."""
        if self.writes:
            yield
            return
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
            yield

    def own_device(self, chosen: str, asked: str) -> str:
        """The GPU of this process where its host has several processes. Raises Problems where they would share one."""
        if self.size == 1 or chosen == "cpu":
            return chosen
        if chosen == "mps" or (self.local_size > 1 and asked.startswith("cuda:")):
            raise Problems(
                Problem("Several processes cannot share one GPU.", found=f"--device {asked}, {self.local_size} processes here",
                        wanted="a GPU for each process", fix="--device cuda, or --device cpu, or one process")
            )  # fmt: skip
        return chosen if asked.startswith("cuda:") else f"cuda:{self.local_rank}"

    def share_of(self, cores: int) -> int:
        """How many of a host's cores one of its processes has: at least one."""
        return max(1, cores // self.local_size)


def launched(environ: Mapping[str, str]) -> bool:
    """Whether something such as torchrun, which passes signals on, started this process; it may be the only one."""
    return "RANK" in environ and "WORLD_SIZE" in environ


def _odd_environment(found: Mapping[str, str]) -> Problems:
    return Problems(
        Problem("The variables that torchrun sets do not fit together.",
                found=", ".join(f"{name}={value!r}" for name, value in found.items()),
                wanted="those of torchrun, or none of them", fix="unset RANK WORLD_SIZE, or start with torchrun")
    )  # fmt: skip
