"""What every part of the siege shares: a tiny training, a fork of a warm process, and the bits that count."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

SMALL = {
    "layers": 2, "width": 32, "heads": 2, "kv-heads": 1, "feed-forward": 64, "context": 16, "batch-size": 4,
    "evaluate-every": 8, "evaluation-tokens": 256, "sample-tokens": 4, "threads": 1, "validation-fraction": 0.02,
    "keep": 2, "device": "cpu", "precision": "fp32", "optimizer": "muon",
}  # fmt: skip


def story(folder: Path) -> Path:
    """A text that can be learnt, so that a step trained twice or left out changes the weights."""
    path = folder / "story.txt"
    path.write_text(
        "".join(
            f"line {n} is followed by line {n + 1}, as {n % 7} is by {(n + 1) % 7}.\n" for n in range(600)
        )
    )
    return path


def words(data: Path, out: Path, **settings: object) -> list[str]:
    """What is typed after `ambidex`."""
    chosen = {**SMALL, **{name.replace("_", "-"): value for name, value in settings.items()}}
    return [
        "train",
        "--data",
        str(data),
        "--out",
        str(out),
        *(w for n, v in chosen.items() for w in (f"--{n}", str(v))),
    ]


def warm() -> None:
    """Import what a training needs, once, so that a fork starts within a millisecond. Starts no thread."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import torch

    import ambidex.launch  # noqa: F401
    from ambidex.engine import Device

    torch.set_num_threads(1)
    Device.matmul_rate = lambda *_, **__: 1e9  # type: ignore[method-assign]  # a quarter of a second for an estimate


def fork(work: Callable[[], int], log: Path) -> int:
    """The id of a child process that does ``work`` with its output in ``log`` and ends in its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        _ended.pop(child, None)
        return child
    code = 120
    try:
        os.setpgid(0, 0)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(handle, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # nohup has the last one ignored
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        code = work()
    except SystemExit as asked:
        code = int(asked.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(arguments: list[str], log: Path) -> int:
    """Fork `ambidex ARGUMENTS`."""

    def work() -> int:
        from ambidex import cli

        return cli.main(arguments)

    return fork(work, log)


_ended: dict[int, int] = {}  # exit codes of children that were waited for


def ended(child: int, seconds: float = 0.0) -> int | None:
    """Its exit code, minus the signal's number where one ended it, or None where it runs on after ``seconds``."""
    stop = time.monotonic() + seconds
    while True:
        if child in _ended:
            return _ended[child]
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            _ended[child] = os.waitstatus_to_exitcode(status)
            continue
        if time.monotonic() >= stop:
            return None
        time.sleep(0.001)


def to_the_end(child: int, seconds: float = 120.0) -> int:
    code = ended(child, seconds)
    if code is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return -99
    return code


def bits(run: Path, steps: int) -> str:
    """One hash over the final weights, moments and the numbers of all rows; why not, where something is missing."""
    sha256 = hashlib.sha256()
    try:
        for name in ("model.safetensors", "optimizer.safetensors"):
            sha256.update((run / "checkpoints" / f"step-{steps:06d}" / name).read_bytes())
        for row in (run / "metrics.csv").read_text().splitlines():
            sha256.update(",".join(row.split(",")[:6]).encode())
    except OSError as error:
        return str(error)
    return sha256.hexdigest()


def dice(seed: int) -> random.Random:
    return random.Random(seed)
