"""RUN/probes/: a run's states at two steps and what flowed between its blocks there, for others to start from.

``probes/step-000008/`` is a checkpoint like any other, verified byte by byte when it is read;
``probes/feed-000008.safetensors`` holds each block's input and the gradient with respect to it, and the gradients of
the parameters before clipping. Large and local: 45 M parameters take about a gigabyte for two steps.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ambidex import checkpoint, tensorfile
from ambidex.cardfile import read_card
from ambidex.checkpoint import Checkpoint
from ambidex.errors import Exit, Problem, Problems
from ambidex.files import open_plain, replace_synced

PROBES = "probes"


@dataclass(frozen=True)
class Reference:
    """The run of --from-trace: who it is and where its states lie."""

    path: Path
    identity: str
    steps: list[int]

    def state(self, step: int) -> Checkpoint:
        folder = self.path / PROBES / checkpoint.folder_name(step)
        try:
            return checkpoint.load(folder)
        except checkpoint.Damaged as damage:
            raise _unusable(folder, str(damage)) from None

    def feed(self, step: int) -> dict[str, Tensor]:
        path = feed_file(self.path, step)
        try:
            with open_plain(path) as file:
                return tensorfile.read(file, hashlib.sha256(), None)
        except (OSError, ValueError) as error:
            raise _unusable(path, str(error).splitlines()[0]) from None


def open_reference(path: Path) -> Reference:
    """Raises Problems: exit 3 where there is no run, 2 where it was not trained with --trace-states."""
    read_card(path)
    steps = checkpoint.steps_in(path / PROBES)
    steps = [step for step in steps if feed_file(path, step).exists()]
    if not steps:
        raise Problems(
            Problem("The reference has no states to start from.", found=f"{path / PROBES} holds none",
                    wanted="a run that was trained with --trace --trace-states",
                    fix="train the reference again with --trace --trace-states")
        )  # fmt: skip
    return Reference(path, identity_in(feed_file(path, steps[0])), steps)


def identity_in(path: Path) -> str:
    try:
        open_plain(path).close()  # a pipe would have us wait
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {})["identity"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _unusable(path, str(error).splitlines()[0]) from None


def feed_file(run: Path, step: int) -> Path:
    return run / PROBES / f"feed-{step:06d}.safetensors"


def save_state(run: Path, state: Checkpoint) -> None:
    checkpoint.save(run / PROBES, state)


def save_feed(run: Path, step: int, tensors: dict[str, Tensor], identity: str) -> None:
    """Raises Problems (exit 4) where it cannot be written."""
    content = safetensors.torch.save(
        {name: t.contiguous() for name, t in tensors.items()}, {"identity": identity}
    )
    path = feed_file(run, step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_synced(path, content)
    except OSError as error:
        raise Problems(
            Problem("The states cannot be written.", found=f"{path}: {error.strerror or error}",
                    wanted=f"a disk with room for {len(content) / 1e6:,.0f} MB", fix="free some space, or leave out --trace-states"),
            Exit.CANNOT_WRITE,
        ) from None  # fmt: skip


def check_fits(reference: Reference, model: nn.Module) -> None:
    """Raises Problems (exit 2) where the states are of another model."""
    state = reference.state(reference.steps[0])
    wanted = {name: list(weight.shape) for name, weight in model.named_parameters()}
    found = {name: list(weight.shape) for name, weight in state.model.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise Problems(
            Problem("The reference's states are of another model.",
                    found=f"{name}: {json.dumps(found.get(name, 'nothing'))}", wanted=json.dumps(wanted.get(name, "nothing")),
                    fix="train with the reference's configuration")
        )  # fmt: skip


def _unusable(path: Path, why: str) -> Problems:
    return Problems(
        Problem("The reference's state cannot be used.", found=f"{path}: {why}", wanted="what --trace-states wrote",
                fix="train the reference again with --trace --trace-states"), Exit.DATA,
    )  # fmt: skip
