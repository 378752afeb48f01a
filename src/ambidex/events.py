"""TensorBoard event files beside metrics.csv, which stays the truth: what fails here never stops a training."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ambidex.rows import Row
from ambidex.runs import Run
from ambidex.screen import line

FOLDER = "tensorboard"
SHOWN = ("loss", "val_loss", "lr", "grad_norm", "tokens_per_second")  # by step


@contextmanager
def event_files(run: Run, wanted: bool, step: int) -> Iterator[None]:
    """Within, every row that the run is given becomes an event; those after ``step`` from before a resume are hidden.

    Where the package is not there, one line says what to type, and the training goes on without.
    """
    if not wanted:
        yield
        return
    if importlib.util.find_spec("tensorboard") is None:
        line("plots", 'no TensorBoard: the package is not installed. Type: pip install "ambidex[tensorboard]"; '
             "metrics.csv and loss.png hold the same numbers")  # fmt: skip
        yield
        return
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(run.path, FOLDER)
    try:
        writer = SummaryWriter(str(folder), purge_step=step + 1)
    except OSError as error:
        line("plots", f"no TensorBoard: {folder}: {error.strerror or error}")
        yield
        return

    def add(row: Row) -> None:
        for name in SHOWN:
            value = getattr(row, name)
            if value is not None:
                with suppress(OSError):
                    writer.add_scalar(name, value, row.step)

    run.watcher = add
    line("plots", f"tensorboard --logdir {folder}")
    try:
        yield
    finally:
        run.watcher = None
        with suppress(OSError):
            writer.close()
