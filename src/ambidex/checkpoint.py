"""Checkpoints that survive a kill at any instant, and are believed only after every byte has been checked.

A checkpoint is a folder ``step-000500`` with the weights, the optimizer's moments, a JSON file with the rest, and a
manifest with the size and sha256 of each. It is written under a name that begins with a dot, every file is synced,
the manifest comes last, all of it is read back, then one rename makes it appear, and the parent folder is synced. No pickle anywhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from ambidex import tensorfile
from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import one_line
from ambidex.files import open_plain, read_small, sync_file, sync_folder, write_synced
from ambidex.tensorfile import Shapes

MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)
FORMAT = 1
_NAME = re.compile(r"step-([0-9]{6,12})")
_LARGEST = sys.float_info.max
_LARGEST_JSON = 1 << 20  # bytes; ours are under 10 kB


@dataclass(frozen=True)
class Checkpoint:
    """What is saved of a run: weights and moments by name, fp32, and a small JSON-able state."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The shapes of the tensors that a checkpoint must hold, by name; the moments' from the first update on."""

    model: Shapes
    optimizer: Shapes


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
    """The steps of the finished folders, oldest first; none where there is no such folder. Looks at names only."""
    try:
        return list_steps(checkpoints)
    except OSError:
        return []


def list_steps(checkpoints: Path) -> list[int]:
    """As `steps_in`; raises OSError where what is there cannot be listed, which is not the same as nothing."""
    try:
        names = [path.name for path in checkpoints.iterdir()]
    except FileNotFoundError:
        if checkpoints.is_symlink():  # to nowhere: a disk that is not mounted, perhaps
            raise
        return []
    found = [
        match for match in map(_NAME.fullmatch, names) if match and folder_name(int(match[1])) == match[0]
    ]
    return sorted(int(match[1]) for match in found if _may_be_folder(checkpoints / match[0]))


def _may_be_folder(path: Path) -> bool:
    """Also where the disk does not say: then loading it says why not."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:  # a link to nowhere
        return False
    except OSError:
        return True


def save(
    checkpoints: Path, checkpoint: Checkpoint, before_it_appears: Callable[[], None] = lambda: None
) -> Path:
    """Write a checkpoint, read it back, let it appear, and return its folder.

    ``before_it_appears`` is called once all is written, for whatever must be on disk before. Raises Problems (exit 4)
    where it cannot be written or does not read back as it was meant: then whatever was there is there still.
    """
    target = checkpoints / folder_name(checkpoint.step)
    unfinished = checkpoints / f".{target.name}.{os.getpid()}"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        _check_space(checkpoints, size_of(checkpoint))
        if os.path.lexists(unfinished):
            _remove(unfinished)
        unfinished.mkdir()
        _write(unfinished, checkpoint)
        _read_back(unfinished)
        before_it_appears()
        _appear(unfinished, target)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise _cannot_write(error, checkpoints) from None
    return target


def size_of(checkpoint: Checkpoint) -> int:
    """Bytes on disk, to within the few of state and manifest."""
    tensors = (_contiguous(checkpoint.model), _contiguous(checkpoint.optimizer))
    return sum(map(tensorfile.size_of, tensors)) + (1 << 14)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    """All four files, each down to the disk, the manifest last."""
    files: dict[str, tuple[int, str]] = {}
    for name, tensors in ((MODEL, checkpoint.model), (OPTIMIZER, checkpoint.optimizer)):
        with (folder / name).open("wb") as file:
            files[name] = tensorfile.write(file, _contiguous(tensors))
            sync_file(file)
    state = _json({**checkpoint.state, "format": FORMAT, "step": checkpoint.step})
    write_synced(folder / STATE, state)
    files[STATE] = len(state), hashlib.sha256(state).hexdigest()
    write_synced(folder / MANIFEST, _render_manifest(files))
    sync_folder(folder)


def _read_back(folder: Path) -> None:
    """What the disk gives back must hash to what was meant: the hashes were made of memory, not of files."""
    try:
        verify(folder)
    except Damaged as damage:
        raise OSError(errno.EIO, f"what was written does not read back: {damage}") from None


def _appear(unfinished: Path, target: Path) -> None:
    """One rename. A damaged one of the same step, passed over on resume, makes room, and comes back if that fails."""
    replaced = None
    if os.path.lexists(target):  # a link to nowhere is in the way as well
        replaced = target.with_name(f".{target.name}.replaced.{os.getpid()}")
        target.rename(replaced)
    try:
        unfinished.rename(target)
    except OSError:
        if replaced is not None:
            replaced.rename(target)
        raise
    sync_folder(target.parent)
    if replaced is not None:
        _remove(replaced)


def newest_good(checkpoints: Path, wanted: Wanted | None = None) -> Found:
    """The newest checkpoint whose every byte is as written, and which is ``wanted``; what is passed over is named."""
    skipped: list[str] = []
    for step in reversed(steps_in(checkpoints)):
        folder = checkpoints / folder_name(step)
        try:
            return Found(load(folder, wanted), folder, tuple(skipped))
        except Damaged as damage:
            skipped.append(one_line(f"skipped {folder.name}: {damage}", 300))
    return Found(None, None, tuple(skipped))


def load_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint alone, verified. Raises Damaged."""
    return _load_state(folder, _read_manifest(folder)[STATE])


def load(folder: Path, wanted: Wanted | None = None) -> Checkpoint:
    """Read and verify one checkpoint. Raises Damaged, before memory is taken where it is not of the ``wanted`` shapes."""
    files = _read_manifest(folder)
    state = _load_state(folder, files[STATE])
    begun = bool(state.get("optimizer_steps", 1))
    model = _load_tensors(folder, MODEL, files[MODEL], wanted.model if wanted else None)
    moments = _load_tensors(
        folder, OPTIMIZER, files[OPTIMIZER], (wanted.optimizer if begun else {}) if wanted else None
    )
    for name, tensor in model.items():
        if not all_finite(tensor):
            raise Damaged(f"{MODEL}: {name} holds numbers that are not finite")
    for name, tensor in moments.items():
        if (
            tensor.is_floating_point()
            and tensor.numel()
            and bool(tensor.sum().isnan())
            and bool(tensor.isnan().any())
        ):
            raise Damaged(f"{OPTIMIZER}: {name} holds what is no number")
    return Checkpoint(int(state["step"]), model, moments, state)


def check_headers(folder: Path, wanted: Wanted) -> None:
    """Judge the two tensor files by their headers alone. Raises Damaged; says nothing about the numbers."""
    files = _read_manifest(folder)
    begun = bool(_load_state(folder, files[STATE]).get("optimizer_steps", 1))
    for name, shapes in ((MODEL, wanted.model), (OPTIMIZER, wanted.optimizer if begun else {})):
        with _opened(folder, name, files[name][0]) as file:
            tensorfile.check(tensorfile.read_header(file, hashlib.sha256()), shapes)


def all_finite(tensor: Tensor) -> bool:
    """One pass over memory and none taken: NaN goes through minimum and maximum."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(math.isfinite(float(end)) for end in tensor.aminmax())


def verify(folder: Path, largest: int | None = None) -> None:
    """Check every byte without loading. Raises Damaged; for a file over ``largest`` bytes without reading it."""
    for name, (size, digest) in _read_manifest(folder).items():
        if largest is not None and size > largest:
            raise Damaged(f"{name}: {size:,} bytes, and this model's takes at most {largest:,}")
        with _opened(folder, name, size) as file:
            sha256 = hashlib.sha256()
            tensorfile.hash_rest(file, sha256)
        _compare(name, sha256, digest)


def keep_only(checkpoints: Path, newest: int, best: int | None, saved: int | None = None) -> None:
    """Delete all but the newest few up to step ``saved``, and the best. Failing to is no reason to stop training.

    What lies beyond ``saved``, the step that has just been verified, was passed over on a resume: it does not count.
    Nor does a folder without a manifest, which is none of ours.
    """
    with suppress(OSError):
        for left in checkpoints.glob(".step-*.deleted"):
            _remove(left)
    counted = [step for step in steps_in(checkpoints) if (saved is None or step <= saved)
               and os.path.lexists(checkpoints / folder_name(step) / MANIFEST)]  # fmt: skip
    for step in counted[:-newest]:
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
    with suppress(OSError):
        for path in checkpoints.glob(".step-*"):
            _remove(path)


def _remove(path: Path) -> None:
    """A folder with all that is in it, or a link or file where one lies in its place: never what a link points to."""
    if path.is_symlink() or not path.is_dir():
        with suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _opened(folder: Path, name: str, size: int) -> Iterator[FileIO]:
    """A file of a checkpoint, of the size that the manifest says. Raises Damaged for whatever happens to it."""
    try:
        with open_plain(folder / name, follow=False) as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise Damaged(f"{name}: {found} bytes instead of {size}")
            yield file
    except OSError as error:
        raise Damaged(f"{name}: {error.strerror or error}") from None
    except ValueError as error:
        raise Damaged(f"{name}: {error}") from None


def _compare(name: str, sha256: Any, digest: str) -> None:
    if sha256.hexdigest() != digest:
        raise Damaged(f"{name}: sha256 mismatch")


def _load_tensors(
    folder: Path, name: str, listed: tuple[int, str], wanted: Shapes | None
) -> dict[str, Tensor]:
    size, digest = listed
    if wanted is not None and size > 4 * sum(map(prod, wanted.values())) + tensorfile.LARGEST_HEADER:
        raise Damaged(f"{name}: {size:,} bytes are more than this model's")
    with _opened(folder, name, size) as file:
        sha256 = hashlib.sha256()
        try:
            tensors = tensorfile.read(file, sha256, wanted)
        except ValueError:
            file.seek(0)  # a flipped bit in the header is called what it is
            again = hashlib.sha256()
            tensorfile.hash_rest(file, again)
            _compare(name, again, digest)
            raise
    _compare(name, sha256, digest)
    return tensors


def _load_state(folder: Path, listed: tuple[int, str]) -> dict[str, Any]:
    size, digest = listed
    if size > _LARGEST_JSON:
        raise Damaged(f"{STATE}: too large")
    with _opened(folder, STATE, size) as file:
        content = file.read(size)
    _compare(STATE, hashlib.sha256(content), digest)
    try:
        state = json.loads(content)
    except (ValueError, RecursionError):
        raise Damaged(f"{STATE}: cannot be understood") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise Damaged(f"{STATE}: format {FORMAT} is wanted")
    if type(state.get("step")) is not int or folder_name(state["step"]) != folder.name:
        raise Damaged(f"{STATE}: is of step {str(state.get('step'))[:40]}")
    for name, right in _STATE.items():
        if name in state and not right(state[name]):
            raise Damaged(f"{STATE}: {name} cannot be {str(state[name])[:40]}")
    return state


def _number(value: object, least: float = 0.0) -> bool:
    """An int of JSON may be larger than any float."""
    return type(value) in (int, float) and max(least, -_LARGEST) <= value <= _LARGEST  # type: ignore[operator]


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 53


def _pair(value: object, first: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == 2 and first(value[0]) and _count(value[1])


_STATE: dict[str, Callable[[Any], bool]] = {
    "seconds": _number,
    "best": lambda value: value is None or _pair(value, lambda n: _number(n, -math.inf)),
    "scale": lambda value: _pair(value, lambda n: _number(n, 1.0)),
    "optimizer_steps": _count,
    "late_steps": _count,
    "skipped_in_a_row": _count,
    "config": lambda value: isinstance(value, dict),
    "card": lambda value: isinstance(value, dict),
    "precision": lambda value: isinstance(value, str),
    "data_hash": lambda value: isinstance(value, str),
}


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    path = folder / MANIFEST
    try:
        written = read_small(path, _LARGEST_JSON)
        manifest = json.loads(written)
        files = {name: (int(manifest["files"][name]["size"]), str(manifest["files"][name]["sha256"]))
                 for name in (MODEL, OPTIMIZER, STATE)}  # fmt: skip
    except OSError as error:
        raise Damaged(f"{MANIFEST}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise Damaged(f"{MANIFEST}: cannot be understood") from None
    if written != _render_manifest(files):  # a flipped bit anywhere in it, or a name that is not ours
        raise Damaged(f"{MANIFEST}: is not as written")
    return files


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
        raise OSError(
            28,
            f"a checkpoint takes {wanted / 1e6:,.1f} MB, 1 MB is left free besides, and {left / 1e6:,.1f} MB are free",
        )


def _cannot_write(error: OSError, folder: Path) -> Problems:
    return Problems(
        Problem("The checkpoint could not be written.", found=f"{folder}: {error.strerror or error}",
                wanted="a folder that can be written to, with room for one checkpoint more",
                fix="free some space or mend the permission, then repeat the command with --resume"),
        Exit.CANNOT_WRITE,
    )  # fmt: skip
