"""Full, failing and read-only disks at every stage of a save: is anything lost, and is it said?"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import bits, command, ended, story, to_the_end, warm, words

STEPS = 8
FAULTS = {  # what, for which calls, whether it stays so
    "ENOSPC from a call on": ("ENOSPC", ("create", "write", "mkdir"), True),
    "EIO once": ("EIO", ("create", "write", "truncate", "fsync", "mkdir", "rename"), False),
    "EIO from a call on": ("EIO", ("create", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"), True),
    "EIO on reading back": ("EIO", ("read",), True),
    "read-only from a call on": (
        "EROFS",
        ("create", "write", "truncate", "mkdir", "rename", "unlink", "rmdir"),
        True,
    ),
    "rename fails": ("EIO", ("rename",), True),
}


def run(place: Path, faults: tuple[int, ...] = (1, 7, 20, 45, 90), small_disks: int = 8) -> dict[str, Any]:
    """``faults``: at which call of its kind a run's disk fails."""
    warm()
    data = story(place)
    assert (
        to_the_end(command(words(data, place / "straight", steps=STEPS, save_every=1), place / "log.txt"))
        == 0
    )
    wanted = bits(place / "straight", STEPS)
    found: dict[str, Any] = {"broken": [], "not_run": []}
    if why := no_fuse():
        found["not_run"].append(f"faults: {why}")
    else:
        with faulty(place) as (mount, control):
            found["saves_with_a_fault_at_each_call"] = each_call(mount, control, found["broken"])
            found["runs_with_a_fault"] = whole_runs(mount, control, data, wanted, faults, found["broken"])
            found["resumes_with_a_fault"] = resumes(mount, control, data, wanted, faults, found["broken"])
    if os.geteuid() != 0:
        found["not_run"].append("small file systems: mounting one needs root")
    else:
        found["saves_on_a_small_file_system"] = small_disk(place, found["broken"])
        found["runs_on_a_small_file_system"] = small_runs(place, data, wanted, small_disks, found["broken"])
    return found


def no_fuse() -> str:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no /dev/fuse that this user may open"
    if importlib.util.find_spec("fuse") is None:
        return "fusepy is not installed"
    # In a process of its own: it loads the library at once, and fails where that is missing.
    tried = subprocess.run([sys.executable, "-c", "import fuse"], capture_output=True, text=True, check=False)
    return (
        (tried.stderr.strip().splitlines() or ["fusepy cannot be imported"])[-1] if tried.returncode else ""
    )


@contextlib.contextmanager
def faulty(place: Path) -> Iterator[tuple[Path, Path]]:
    mount, behind, control = place / "mount", place / "behind", place / "control.json"
    mount.mkdir()
    behind.mkdir()
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("faultfs.py")), mount, behind, control]
    )
    try:
        for _ in range(3000):  # a minute, for a machine that has other work
            if os.path.ismount(mount) or server.poll() is not None:
                break
            time.sleep(0.02)
        if not os.path.ismount(mount):
            raise RuntimeError("the fault-injecting file system did not come up")
        yield mount, control
    finally:
        order(control, {})
        unmount = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount", "-u", "-z"]
        subprocess.run([*unmount, mount], check=False)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def order(control: Path, what: dict[str, Any]) -> None:
    control.with_name(control.name + ".hit").unlink(missing_ok=True)
    whole = control.with_name("next.json")
    whole.write_text(json.dumps(what))
    whole.replace(control)


def hit(control: Path) -> bool:
    return control.with_name(control.name + ".hit").exists()


def checkpoint_of(step: int, numbers: int = 20_000) -> Any:
    import torch

    from ambidex.checkpoint import Checkpoint

    weights = {"w": torch.arange(numbers, dtype=torch.float32) + step}
    return Checkpoint(step, weights, {"exp_avg.w": weights["w"] * 2}, {"seconds": 1.0})


def each_call(mount: Path, control: Path, broken: list[Any]) -> dict[str, int]:
    """One save for every call of a save that can fail, for every kind of fault."""
    from ambidex import checkpoint
    from ambidex.errors import Problems

    cases = {}
    for kind, (error, calls, for_good) in FAULTS.items():
        cases[kind] = 0
        for at in range(1, 200):
            folder = mount / "saves"
            order(control, {})
            checkpoint.save(folder, checkpoint_of(1))
            order(control, {"error": error, "calls": calls, "at": at, "for_good": for_good})
            said = ""
            try:
                checkpoint.save(folder, checkpoint_of(2))
            except Problems as problems:
                said = str(problems)
            failed = hit(control)
            order(control, {})
            newest = checkpoint.newest_good(folder)
            right = (
                newest.checkpoint is not None
                and newest.checkpoint.step == (1 if said else 2)
                and not newest.skipped
            )
            # A rename that was done and a folder that could not be synced after it: both are there, and it was said.
            right = right or bool(said and newest.checkpoint and newest.checkpoint.step == 2)
            checkpoint.save(folder, checkpoint_of(3))
            if not right or checkpoint.newest_good(folder).checkpoint.step != 3:  # type: ignore[union-attr]
                broken.append({"fault": kind, "at": at, "said": said, "skipped": newest.skipped})
            shutil.rmtree(folder)
            if not failed:
                break
            cases[kind] += 1
    return cases


def whole_runs(
    mount: Path, control: Path, data: Path, wanted: str, faults: tuple[int, ...], broken: list[Any]
) -> dict[str, Any]:
    """A training meets the fault somewhere in its second half; afterwards the disk is mended and it is resumed."""
    told = {"ended_well": 0, "ended_in_4": 0, "identical_after_resume": 0, "runs": 0}
    for kind, (error, calls, for_good) in FAULTS.items():
        for at in faults:
            out, log = mount / "run", mount.parent / f"fault-{kind.replace(' ', '-')}-{at}.txt"
            order(control, {})
            child = command(words(data, out, steps=STEPS, save_every=1), log)
            while not (out / "checkpoints" / "step-000003").exists() and (code := ended(child)) is None:
                time.sleep(0.001)
            order(control, {"error": error, "calls": calls, "at": at, "for_good": for_good})
            code = to_the_end(child)
            order(control, {})
            said = log.read_text()
            told["runs"] += 1
            told["ended_well"] += code == 0
            told["ended_in_4"] += code == 4
            again = to_the_end(command(["train", "--resume", "--out", str(out)], log))
            same = again == 0 and bits(out, STEPS) == wanted
            told["identical_after_resume"] += same
            if code not in (0, 4) or not same or "Traceback" in said:
                broken.append({"fault": kind, "at": at, "exit": code, "resumed": again, "said": said[-700:]})
            shutil.rmtree(out, ignore_errors=True)
    return told


def resumes(
    mount: Path, control: Path, data: Path, wanted: str, faults: tuple[int, ...], broken: list[Any]
) -> dict[str, int]:
    """A killed run is resumed on a disk that cannot be listed or read from some call on: it must not begin afresh."""
    told = {"resumes": 0, "refused": 0, "identical_on_a_whole_disk": 0}
    killed, log = mount.parent / "killed", mount.parent / "killed.txt"
    child = command(words(data, killed, steps=STEPS, save_every=1), log)
    while not (killed / "checkpoints" / "step-000004").exists() and ended(child) is None:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    to_the_end(child)
    for call in ("readdir", "getattr", "open", "read"):
        for at in faults:
            out, log = mount / "run", mount.parent / f"resume-{call}-{at}.txt"
            shutil.copytree(killed, out)
            order(control, {"error": "EIO", "calls": [call], "at": at, "for_good": True})
            code = to_the_end(command(["train", "--resume", "--out", str(out)], log))
            order(control, {})
            said = log.read_text()
            again = to_the_end(command(["train", "--resume", "--out", str(out)], log))
            same = again == 0 and bits(out, STEPS) == wanted
            told["resumes"] += 1
            told["refused"] += code != 0
            told["identical_on_a_whole_disk"] += same
            if code not in (0, 2, 3, 4) or not same or "Traceback" in said or "at step 0" in log.read_text():
                broken.append(
                    {
                        "fault": f"resume, {call}",
                        "at": at,
                        "exit": code,
                        "resumed": again,
                        "said": said[-700:],
                    }
                )
            shutil.rmtree(out, ignore_errors=True)
    return told


@contextlib.contextmanager
def small(place: Path, size: int) -> Iterator[Path]:
    """A real file system of so many kilobytes."""
    mount = place / "small"
    mount.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "siege", mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


def small_disk(place: Path, broken: list[Any]) -> dict[str, int]:
    """Saves with 0, 4, 8, ... kB of room, with the check of free space and without it, so that every stage meets it."""
    from ambidex import checkpoint
    from ambidex.errors import Problems

    told = {"saves": 0, "refused": 0}
    with small(place, 2048) as mount:
        for checked in (True, False):
            space = checkpoint._check_space
            if not checked:
                checkpoint._check_space = lambda *_: None  # type: ignore[assignment]
            for room in range(0, 240, 4):
                folder = mount / "saves"
                checkpoint._check_space, now = (lambda *_: None), checkpoint._check_space  # type: ignore[assignment]
                checkpoint.save(folder, checkpoint_of(1))
                checkpoint._check_space = now
                with (mount / "filler").open("wb") as filler, contextlib.suppress(OSError):
                    while shutil.disk_usage(mount).free > room * 1024:
                        os.write(filler.fileno(), b"x" * 4096)
                said = ""
                try:
                    checkpoint.save(folder, checkpoint_of(2))
                except Problems as problems:
                    said = str(problems)
                (mount / "filler").unlink()
                newest = checkpoint.newest_good(folder)
                told["saves"] += 1
                told["refused"] += bool(said)
                if (
                    newest.checkpoint is None
                    or newest.checkpoint.step != (1 if said else 2)
                    or newest.skipped
                ):
                    broken.append(
                        {"room_kB": room, "checked": checked, "said": said, "skipped": newest.skipped}
                    )
                shutil.rmtree(folder)
            checkpoint._check_space = space
    return told


def small_runs(place: Path, data: Path, wanted: str, runs: int, broken: list[Any]) -> dict[str, int]:
    """Trainings whose disk fills, or is remounted read-only, under way; then there is room again."""
    told = {"runs": 0, "ended_in_4": 0, "identical_after_resume": 0}
    for what in (("full", "read-only") * runs)[:runs]:
        with small(place, 4096) as mount:
            out, log = mount / "run", place / f"small-{told['runs']}.txt"
            child = command(words(data, out, steps=STEPS, save_every=1), log)
            step = 2 + told["runs"] // 2
            while not (out / "checkpoints" / f"step-{step:06d}").exists() and ended(child) is None:
                time.sleep(0.001)
            if what == "full":
                with (mount / "filler").open("wb") as filler, contextlib.suppress(OSError):
                    while True:
                        os.write(filler.fileno(), b"x" * 4096)
            else:
                for _ in range(200):  # busy while a file is open for writing: between two writes it works
                    if not subprocess.run(
                        ["mount", "-o", "remount,ro", mount], check=False, capture_output=True
                    ).returncode:
                        break
            code = to_the_end(child)
            (mount / "filler").unlink(missing_ok=True) if what == "full" else None
            subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
            said = log.read_text()
            again = to_the_end(command(["train", "--resume", "--out", str(out)], log))
            same = again == 0 and bits(out, STEPS) == wanted
            told["runs"] += 1
            told["ended_in_4"] += code == 4
            told["identical_after_resume"] += same
            if code not in (0, 4) or not same or "Traceback" in said:
                broken.append({"what": what, "exit": code, "resumed": again, "said": said[-700:]})
    return told
