"""Checkpoints that survive a kill at any instant, and are believed only after every byte has been checked.

A checkpoint is a folder ``step-000500`` with the weights, the optimizer's moments, a JSON file with the rest, and a
manifest with the size and sha256 of each. It is written under a name that begins with a dot, every file is synced,
the manifest comes last, then one rename makes it appear, and the parent folder is synced. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ambidex.errors import Exit, Problem, Problems
from ambidex.files import sync_folder, write_synced

MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
FORMAT = 1
_NAME = re.compile(r"step-(\d{6,12})")
_LARGEST_JSON = 1 << 20  # bytes; ours are under 10 kB


@dataclass(frozen=True)
class Checkpoint:
    """What is saved of a run: weights and moments by name, fp32, and a small JSON-able state."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The newest good checkpoint, if there is one, and a line for each that was passed over."""

    checkpoint: Checkpoint | None
    folder: Path | None
    skipped: tuple[str, ...] = field(default=())


class Damaged(Exception):  # noqa: N818  it says what the checkpoint is
    """A checkpoint that must not be loaded; the text says which file and why."""


def folder_name(step: int) -> str:
    return f"step-{step:06d}"


def steps_in(checkpoints: Path) -> list[int]:
    """The steps of the finished folders, oldest first. Looks at names only."""
    if not checkpoints.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in checkpoints.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in found if match)


def save(checkpoints: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and return its folder. Raises Problems (exit 4) where it cannot be written."""
    target = checkpoints / folder_name(checkpoint.step)
    unfinished = checkpoints / f".{target.name}.{os.getpid()}"
    contents = {
        MODEL: safetensors.torch.save(_contiguous(checkpoint.model)),
        OPTIMIZER: safetensors.torch.save(_contiguous(checkpoint.optimizer)),
        STATE: _json({**checkpoint.state, "format": FORMAT, "step": checkpoint.step}),
    }
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        _check_space(checkpoints, sum(map(len, contents.values())))
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        for name, content in contents.items():
            write_synced(unfinished / name, content)
        write_synced(unfinished / MANIFEST, _manifest(contents))
        sync_folder(unfinished)
        if target.exists():  # a damaged one of the same step, passed over on resume
            replaced = checkpoints / f".{target.name}.replaced.{os.getpid()}"
            target.rename(replaced)
            unfinished.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            unfinished.rename(target)
        sync_folder(checkpoints)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise _cannot_write(error, checkpoints) from None
    return target


def newest_good(checkpoints: Path) -> Found:
    """The newest checkpoint whose every byte is as written; what is passed over is named."""
    skipped: list[str] = []
    for step in reversed(steps_in(checkpoints)):
        folder = checkpoints / folder_name(step)
        try:
            return Found(load(folder), folder, tuple(skipped))
        except Damaged as damage:
            skipped.append(f"skipped {folder.name}: {damage}")
    return Found(None, None, tuple(skipped))


def load(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises Damaged."""
    contents = dict(_verified(folder))
    try:
        model = safetensors.torch.load(contents[MODEL])
        optimizer = safetensors.torch.load(contents[OPTIMIZER])
        state = json.loads(contents[STATE])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise Damaged(f"cannot be understood: {error}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise Damaged(f"{STATE}: format {FORMAT} is wanted")
    if folder_name(int(state.get("step", -1))) != folder.name:
        raise Damaged(f"{STATE}: is of step {state.get('step')}")
    return Checkpoint(int(state["step"]), model, optimizer, state)


def verify(folder: Path) -> None:
    """Check every byte without loading. Raises Damaged."""
    for _ in _verified(folder):
        pass


def keep_only(checkpoints: Path, newest: int, best: int | None) -> None:
    """Delete all but the newest few and the best. Failing to delete is no reason to stop training."""
    for step in steps_in(checkpoints)[:-newest]:
        if step != best:
            doomed = checkpoints / f".{folder_name(step)}.deleted"
            try:
                (checkpoints / folder_name(step)).rename(
                    doomed
                )  # so that a kill leaves no half folder behind
            except OSError:
                continue
            shutil.rmtree(doomed, ignore_errors=True)


def clear_unfinished(checkpoints: Path) -> None:
    """Remove what killed runs left half-written. Call it only while holding the run's lock."""
    if checkpoints.is_dir():
        for path in checkpoints.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


def _verified(folder: Path) -> Iterator[tuple[str, bytes]]:
    files = _read_manifest(folder)
    for name in (MODEL, OPTIMIZER, STATE):
        size, digest = files[name]
        path = folder / name
        try:
            if path.is_symlink():
                raise Damaged(f"{name}: is a link")
            found = path.stat().st_size
            if found != size:
                raise Damaged(f"{name}: {found} bytes instead of {size}")
            content = path.read_bytes()
        except OSError as error:
            raise Damaged(f"{name}: {error.strerror or error}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise Damaged(f"{name}: sha256 mismatch")
        yield name, content


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise Damaged(f"{MANIFEST}: too large")
        written = path.read_bytes()
        manifest = json.loads(written)
        files = {name: (int(manifest["files"][name]["size"]), str(manifest["files"][name]["sha256"]))
                 for name in (MODEL, OPTIMIZER, STATE)}  # fmt: skip
    except OSError as error:
        raise Damaged(f"{MANIFEST}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Damaged(f"{MANIFEST}: cannot be understood") from None
    if written != _render_manifest(files):  # a flipped bit anywhere in it, or a name that is not ours
        raise Damaged(f"{MANIFEST}: is not as written")
    return files


def _manifest(contents: Mapping[str, bytes]) -> bytes:
    return _render_manifest({n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in contents.items()})


def _render_manifest(files: Mapping[str, tuple[int, str]]) -> bytes:
    listed = {name: {"size": size, "sha256": digest} for name, (size, digest) in files.items()}
    digest = hashlib.sha256(_json({"format": FORMAT, "files": listed})).hexdigest()
    return _json({"format": FORMAT, "files": listed, "sha256": digest})


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _check_space(folder: Path, wanted: int, free: Callable[[Path], Any] = shutil.disk_usage) -> None:
    left = free(folder).free
    if left < wanted + (1 << 20):
        raise OSError(28, f"a checkpoint takes {wanted / 1e6:,.1f} MB and {left / 1e6:,.1f} MB are free")


def _cannot_write(error: OSError, folder: Path) -> Problems:
    return Problems(
        Problem("The checkpoint could not be written.", found=f"{folder}: {error.strerror or error}",
                wanted="a folder that can be written to, with room for two checkpoints",
                fix="free some space or mend the permission, then repeat the command with --resume"),
        Exit.CANNOT_WRITE,
    )  # fmt: skip
