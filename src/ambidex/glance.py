"""A run folder seen from outside, without torch and without waiting for whoever trains in it. What is read is not trusted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ambidex.cardfile import CARD, read_card
from ambidex.errors import Problems
from ambidex.files import open_plain, read_small
from ambidex.growth import Growth
from ambidex.rows import METRICS, Row, read_tail

LOCK = ".lock"
_NAME = re.compile(r"step-([0-9]{6,12})")
_LARGEST_MANIFEST = 1 << 20
LARGEST_SAMPLES = 1 << 22  # bytes of samples.md


@dataclass(frozen=True)
class Saved:
    """One checkpoint by its names and sizes alone; its bytes are verified by whoever loads it."""

    step: int
    size: int  # bytes
    written: float  # seconds since 1970
    wrong: str = ""  # what is missing, or has another size than its manifest says


@dataclass(frozen=True)
class Glance:
    """What can be said of a run at once."""

    path: Path
    card: dict[str, Any]
    broken: str = ""  # why the card cannot be read
    tail: list[Row] = field(default_factory=list)  # the last rows of metrics.csv
    alive: bool = False  # another process holds the run's lock
    last_checkpoint: int | None = None

    @property
    def steps(self) -> int | None:
        """How many the run is to have."""
        return whole(self.card.get("config", {}).get("steps")) if self.card else None

    @property
    def step(self) -> int:
        return self.tail[-1].step if self.tail else 0

    @property
    def state(self) -> str:
        if self.broken:
            return "unreadable"
        if self.alive:
            return "training"
        if self.steps is not None and (self.last_checkpoint or 0) >= self.steps:
            return "finished"
        return "stopped" if self.tail else "not begun"

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the whole run so far, steps in which more blocks compute taking as much longer; None where it
        is not trained now or has no pace yet."""
        if not self.alive or self.steps is None or not self.tail or self.step < 1:
            return None
        work = work_of(self.card, self.steps)
        return max(0.0, self.tail[-1].seconds * (work(self.steps) / work(self.step) - 1))


def work_of(card: dict[str, Any], steps: int) -> Callable[[int], float]:
    """The work of a run's first so many steps, in a unit of its own, from the card alone: products of a token, forward.

    Steps are taken to be alike where no block waits, or where the card does not say.
    """
    config, vocabulary = card.get("config", {}), whole(card.get("data", {}).get("vocabulary_size"))
    names = ("layers", "grow_from", "width", "heads", "kv_heads", "feed_forward", "context", "batch_size")
    sizes = [whole(config.get(name)) for name in names]
    at, one_in = config.get("grow_at"), whole(config.get("sampled_softmax", 1))
    if None in sizes or not vocabulary or not one_in or type(at) not in (int, float) or not 0 <= at <= 1:
        return float
    layers, first, width, heads, kv_heads, feed_forward, context, batch = (size or 0 for size in sizes)
    if not 0 < first < layers or not width or not heads:
        return float
    growth = Growth.of(first, layers, steps, at)
    block = 2 * width * width + 2 * width * kv_heads * width // heads + width * (3 * feed_forward + context)
    # A batch's own tokens and a part of the others; half of the batch's are taken to be alike.
    own = vocabulary if one_in == 1 else min(batch * context, vocabulary) // 2
    head = width * (own + (vocabulary - own) // one_in)
    return lambda done: done * (growth.mean_depth(done) * block + head)


def glance(path: Path) -> Glance:
    """Never raises: what cannot be read is said in ``broken``."""
    try:
        card, broken = read_card(path), ""
    except Problems as found:
        card, broken = {}, found.problems[0].found or found.problems[0].what
    steps = checkpoint_steps(path / "checkpoints")
    return Glance(
        path, card, broken, read_tail(path / METRICS), is_held(path / LOCK), steps[-1] if steps else None
    )


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock. Asking takes a shared one for an instant, which `Run.lock` sits out."""
    if os.name == "nt":
        return _is_held_on_windows(lock)
    import fcntl

    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _is_held_on_windows(lock: Path) -> bool:
    """Windows refuses to read a byte that another process has locked."""
    try:
        with lock.open("rb") as file:
            file.read(1)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of finished checkpoints, oldest first; looks at names only."""
    try:
        found = [
            match for entry in os.scandir(folder) if (match := _NAME.fullmatch(entry.name)) and entry.is_dir()
        ]
    except OSError:
        return []
    return sorted(step for match in found if f"step-{(step := int(match[1])):06d}" == match[0])


def saved(folder: Path) -> list[Saved]:
    """Every finished checkpoint, oldest first, with what is wrong by name or size."""
    return [_saved(folder / f"step-{step:06d}", step) for step in checkpoint_steps(folder)]


def _saved(folder: Path, step: int) -> Saved:
    size, wrong = 0, ""
    try:
        manifest = folder / "manifest.json"
        files = json.loads(read_small(manifest, _LARGEST_MANIFEST))["files"]
        for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
            found, wanted = (folder / name).stat().st_size, int(files[name]["size"])
            size += found
            if found != wanted:
                wrong = wrong or f"{name}: {found:,} bytes instead of {wanted:,}"
        return Saved(step, size, manifest.stat().st_mtime, wrong)
    except OSError as error:
        return Saved(step, size, 0.0, f"{Path(str(error.filename)).name}: {error.strerror}")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return Saved(step, size, 0.0, "manifest.json: cannot be understood")


def read_samples(path: Path) -> list[tuple[str, str]]:
    """Heading and text of each sample; of a file that is broken, those that are whole."""
    try:
        with open_plain(path) as file:
            text = file.read(LARGEST_SAMPLES).decode("utf-8", "replace")
    except (OSError, ValueError):
        return []
    found = []
    for part in re.split(r"(?m)^(?=## Step \d)", text)[1:]:
        if inside := re.match(r"## (Step [^\n]{1,120})\n\n(`{3,})text\n(.*?)\n\2(?:\n|$)", part, re.DOTALL):
            found.append((inside[1], inside[3]))
    return found


def runs_in(root: Path) -> list[Path]:
    """``root`` itself where it is a run, else the runs in it and in the folders in it, newest first."""
    if (root / CARD).is_file():
        return [root]
    found: list[Path] = []
    for folder in _folders(root):
        found += (
            [folder] if (folder / CARD).is_file() else [p for p in _folders(folder) if (p / CARD).is_file()]
        )
    return sorted(found, key=lambda path: (_age(path / CARD), path.name), reverse=True)


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if not path.name.startswith(".") and path.is_dir()]
    except OSError:
        return []


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62 else None
