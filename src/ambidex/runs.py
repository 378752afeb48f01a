"""The run folder: its lock, card, metrics, plot, samples and summary. What a run leaves for people and for tools."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ambidex import checkpoint, health
from ambidex.cardfile import CARD, FORMAT, read_card
from ambidex.device import image
from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import one_line, printable, typed
from ambidex.files import read_small, replace_synced, sync_folder
from ambidex.glance import LOCK
from ambidex.rows import METRICS, Row, read_metrics, render_rows

PLOT, SAMPLES, SUMMARY = "loss.png", "samples.md", "summary.md"
TOKENIZER = "tokenizer.json"
DAMAGED_METRICS = "metrics-damaged.csv"  # what a resume found that had lost rows
LARGEST_SAMPLES = 1 << 26


class Run:
    """A run folder. Reading needs no lock; training holds ``lock()`` for as long as it writes."""

    writes = True  # whether what is to be written here is written by this process

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        # Long enough for `ambidex top` to have looked, far too short for a training to end.
        self._lock = FileLock(self.path / LOCK, timeout=0.3)
        self.watcher: Callable[[Row], None] | None = None  # is told of each row
        self._unwritten: list[Row] = []  # rows that a full disk would not take
        self._rows = threading.Lock()  # the saver's thread asks for them too

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def card(self) -> dict[str, Any]:
        """What the run is. Raises Problems (exit 3) where there is no readable card."""
        return read_card(self.path)

    @property
    def metrics(self) -> list[Row]:
        """All rows so far, oldest first."""
        return read_metrics(self.path / METRICS)

    def command_to_resume(self) -> str:
        return f"ambidex train --resume --out {typed([str(self.path)])}"

    def command_to_sample(self) -> str:
        return f"ambidex sample {typed([str(self.path)])} --tokens 400"

    def holds_card(self) -> bool:
        """Whether there is one, readable or not: a disk that will not say has one."""
        return os.path.lexists(self.path / CARD)

    def lock(self) -> None:
        """Take the run for this process. A kernel lock: it cannot be left behind by a process that died."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise Problems(
                Problem("The run is in use by another process.", found=str(self.path),
                        wanted="one training at a time in a run folder",
                        fix="wait for it, or give another folder with --out"), Exit.IN_USE,
            ) from None  # fmt: skip
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def unlock(self) -> None:
        """Give the run back, however often this process took it."""
        self._lock.release(force=True)

    def write(self, name: str, text: str) -> None:
        """Replace a small file of the run at once."""
        # A folder's name need not be UTF-8; what is not becomes \\udcXX, which JSON reads back as it was.
        self.write_bytes(name, text.encode("utf-8", "backslashreplace"))

    def write_bytes(self, name: str, content: bytes) -> None:
        try:
            replace_synced(self.path / name, content)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def write_card(self, card: Mapping[str, Any]) -> None:
        self.write(CARD, json.dumps({"format": FORMAT, **card}, indent=2, ensure_ascii=False) + "\n")

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows to metrics.csv, with its header where the file is new.

        Rows that cannot be written now are kept and go before the next; `sync_metrics` insists on them.
        """
        with self._rows, suppress(OSError):
            self._unwritten += rows
            self._write_rows()
        if self.watcher is not None:
            for row in rows:
                self.watcher(row)

    def _write_rows(self) -> None:
        """Raises OSError, and leaves the file without half a row."""
        path = self.path / METRICS
        before = path.stat().st_size if path.exists() else 0
        content = render_rows(self._unwritten, header=not before).encode()
        try:
            with path.open("ab", buffering=0) as file:
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            with suppress(OSError):
                os.truncate(path, before)
            raise
        self._unwritten.clear()

    def sync_metrics(self) -> None:
        """All rows so far down to the disk: a checkpoint must not outlive the rows before it. Raises OSError."""
        with self._rows:
            left = len(self._unwritten)
        if left:
            raise OSError(errno.ENOSPC, f"{left} rows of {METRICS} could not be written")
        with (self.path / METRICS).open("rb+") as file:
            os.fsync(file.fileno())
        sync_folder(self.path)

    def cut_back(self, step: int) -> str:
        """Drop what came after ``step``: a resumed run writes those rows again.

        Returns what is to be said where rows up to ``step`` are missing: then the file is kept beside the new one.
        """
        path, said = self.path / METRICS, ""
        if not step and not os.path.lexists(path):
            return said
        kept = {row.step: row for row in self.metrics if 1 <= row.step <= step}
        if missing := step - len(kept):
            said = f"{METRICS} lacks {missing:,} of the {step:,} rows up to step {step}"
            said += f"; what was there is kept as {DAMAGED_METRICS}" if self._set_aside(path) else ""
        self.write(METRICS, render_rows([kept[number] for number in sorted(kept)], header=True))
        try:
            health.cut_back(self.path, step)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.write(SAMPLES, _samples_up_to(self._samples(), step))
        return said

    def _set_aside(self, path: Path) -> bool:
        """Give it a second name, unless something has that already."""
        aside = self.path / DAMAGED_METRICS
        if not os.path.lexists(path) or os.path.lexists(aside):
            return False
        try:
            os.link(path, aside, follow_symlinks=False)
        except (OSError, NotImplementedError):  # a folder, or a file system without second names
            try:
                path.rename(aside)
            except OSError as error:
                raise cannot_write(self.path, error) from None
        return True

    def add_sample(self, row: Row, steps: int, prompt: str, text: str) -> None:
        """Append to samples.md; the newest stands last, so that the file reads as a story."""
        fence = "`" * (max((len(run) for run in re.findall(r"`+", prompt + text)), default=0) + 3)
        loss = (
            f"validation loss {row.val_loss:.3f}"
            if row.val_loss is not None
            else f"training loss {row.loss:.3f}"
        )
        heading = f"## Step {row.step} of {steps}: {loss}"
        before = (
            self._samples()
            or "# Samples\n\nWhat the model writes as it learns. The first lines are the prompt.\n"
        )
        self.write(SAMPLES, f"{before}\n{heading}\n\n{fence}text\n{readable(prompt + text)}\n{fence}\n")

    def _samples(self) -> str:
        try:
            return read_small(self.path / SAMPLES, LARGEST_SAMPLES).decode()
        except (OSError, ValueError):
            return ""

    def picture(self) -> bytes | None:
        """The losses of metrics.csv, drawn as PNG; None where there is nothing to draw yet. Raises NotDrawn."""
        rows = self.metrics
        if not rows:
            return None
        try:
            return self._drawn(rows)
        except ImportError as error:
            if error.name == "matplotlib":  # not installed, which the command line has words for
                raise
            raise NotDrawn(error) from None
        except (
            Exception
        ) as error:  # of a backend that there is not, of a font, of two versions that do not fit
            raise NotDrawn(error) from None

    def _drawn(self, rows: Sequence[Row]) -> bytes:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            [r.step for r in rows], [r.loss for r in rows], color="#9aa7b5", linewidth=0.8, label="training"
        )
        evaluated = [(r.step, r.val_loss) for r in rows if r.val_loss is not None]
        if evaluated:
            axes.plot(
                *zip(*evaluated), color="#b3391f", linewidth=1.8, marker="o", markersize=4, label="validation"
            )
            last_step, last_loss = evaluated[-1]
            axes.annotate(f"{last_loss:.3f}", (last_step, last_loss), textcoords="offset points", xytext=(-6, 10),
                          ha="right", color="#b3391f")  # fmt: skip
        if spikes := set(health.spike_steps([(row.step, row.loss) for row in rows])):
            marked = [(row.step, row.loss) for row in rows if row.step in spikes]
            axes.plot(*zip(*marked), "v", color="#6b4fa0", markersize=6, label="spike")
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.set_title(printable(self.path.name), parse_math=False)  # a name may hold dollars
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        return picture.getvalue()

    def plot(self) -> Path | None:
        """Draw loss.png; None where there is nothing to draw yet."""
        picture = self.picture()
        if picture is None:
            return None
        self.write_bytes(PLOT, picture)
        return self.path / PLOT

    def finished(self) -> bool:
        """Whether a good checkpoint of the last step is there: every byte of it is read."""
        try:
            checkpoint.verify(self.checkpoints / checkpoint.folder_name(int(self.card["config"]["steps"])))
        except checkpoint.Damaged:
            return False
        return True


class NotDrawn(Problems):
    """matplotlib is here and does not draw; exit 3."""

    def __init__(self, error: Exception) -> None:
        found = one_line((str(error).strip().splitlines() or [""])[0] or type(error).__name__)
        super().__init__(
            Problem("matplotlib cannot draw the losses.", found=found, wanted="a matplotlib that works",
                    fix="unset MPLBACKEND, or python -m pip install --force-reinstall matplotlib"), Exit.DATA,
        )  # fmt: skip


class Follower(Run):
    """A run folder that another process writes: what this one would write is left to that one."""

    def __init__(self, path: Path | str, card: Mapping[str, Any]) -> None:
        super().__init__(path)
        self._card = dict(card)

    writes = False

    @property
    def card(self) -> dict[str, Any]:
        return self._card

    def holds_card(self) -> bool:
        return bool(self._card)

    def lock(self) -> None: ...

    def unlock(self) -> None: ...

    def write_bytes(self, name: str, content: bytes) -> None: ...

    def write_card(self, card: Mapping[str, Any]) -> None: ...

    def append(self, rows: Sequence[Row]) -> None: ...

    def cut_back(self, step: int) -> str:  # noqa: ARG002
        return ""

    def add_sample(self, row: Row, steps: int, prompt: str, text: str) -> None: ...

    def plot(self) -> Path | None: ...


def readable(text: str) -> str:
    """Control characters that a terminal would obey are shown instead of sent; the end of a document is a blank line."""
    return printable(text.replace("\0", "\n\n"))


def _samples_up_to(text: str, step: int) -> str:
    sections = re.split(r"(?m)^(?=## Step \d)", text)
    kept = [s for s in sections[1:] if (found := re.match(r"## Step (\d+)", s)) and int(found[1]) <= step]
    return sections[0] + "".join(kept)


def runs_folder() -> Path:
    return Path(os.environ.get("AMBIDEX_RUNS") or "runs")


def next_folder(preset: str) -> Path:
    """``runs/PRESET-NNN`` with the next free number, created at once so that two processes get two."""
    root = runs_folder()
    taken = [
        int(m[1]) for p in _folders(root) if (m := re.fullmatch(re.escape(preset) + r"-(\d{3,})", p.name))
    ]
    number = max(taken, default=0) + 1
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(root, error) from None
    while True:
        path = root / f"{preset}-{number:03d}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise cannot_write(path, error) from None


def unfinished(
    matches: Callable[[dict[str, Any]], bool], pass_over: Callable[[Run, str], None] = lambda *_: None
) -> Iterator[Run]:
    """The runs under AMBIDEX_RUNS that are not finished and whose card ``matches``, newest first.

    ``pass_over`` is told of each whose card cannot be read, and why: nobody knows whether it was meant.
    """
    for run in _newest_first():
        if not os.path.lexists(run.path / CARD):
            continue
        try:
            if matches(run.card) and not run.finished():
                yield run
        except Problems as problems:
            pass_over(run, problems.problems[0].found or problems.problems[0].what)
        except (KeyError, TypeError, ValueError):
            pass_over(run, f"{CARD} lacks something")


def _newest_first() -> Iterator[Run]:
    def age(path: Path) -> float:
        try:
            return (path / CARD).stat().st_mtime
        except OSError:
            return 0.0

    for path in sorted(_folders(runs_folder()), key=lambda path: (age(path), path.name), reverse=True):
        yield Run(path)


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def cannot_write(path: Path, error: OSError, what: str = "The run folder", flag: str = "--out") -> Problems:
    in_image = image.permission_fix() if isinstance(error, PermissionError) else ""
    return Problems(
        Problem(f"{what} cannot be written.", found=f"{path}: {error.strerror or error}",
                wanted="a folder that this user may write to, on a disk with room",
                fix=in_image or f"{flag} with another folder, or mend the permission"), Exit.CANNOT_WRITE,
    )  # fmt: skip
