"""`docker stop` at any instant of a container's life, from before Python runs to the last checkpoint. A quarter of an hour.

tox run -e containers -- -m "containers and slow"     # python siege/run.py container --write keeps the figures
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .engine import TINY, Project, docker, good

pytestmark = [pytest.mark.containers, pytest.mark.slow, pytest.mark.timeout(3600)]

INSTANTS = 50
STEPS, SAVE_EVERY = 400, 5  # most of the training is near a save
WORDS = [
    *TINY,
    "--steps",
    str(STEPS),
    "--save-every",
    str(SAVE_EVERY),
    "--evaluate-every",
    "100000",
    "--seed",
    "1",
]


@pytest.fixture
def places(project: Project) -> Project:
    (project.folder / "cache").mkdir()
    return project


def start(project: Project, run: str, leftovers: list[str]) -> str:
    """A container as compose.yaml runs it, with one CPU. Its id; it continues the run if that is there."""
    options = ["--init", f"--user={os.getuid()}:0", "--read-only", "--network=none", "--cap-drop=ALL", "--cpus=1",
               "--security-opt=no-new-privileges", "--tmpfs=/tmp:exec,mode=1777", f"--volume={project.data}:/data:ro",
               f"--volume={project.runs}:/runs", f"--volume={project.folder / 'cache'}:/cache"]  # fmt: skip
    words = ["train", *WORDS, "--device", "cpu", "--out", f"/runs/{run}", "--resume"]
    container = good(docker("run", "--detach", *options, "ambidex:cpu", *words)).strip()
    leftovers.append(container)
    return container


def ended(container: str) -> tuple[int, str]:
    """Wait for it: its exit code and all it said."""
    # Seconds on a quiet machine; on one at load 15 a run took longer than five minutes.
    code = int(good(docker("wait", container, seconds=900)))
    said = docker("logs", container).text
    docker("rm", "--volumes", container)
    return code, said


def wait_for(run: Path, seconds: float, step: int) -> None:
    """Until the step's row is written; for at most so many seconds where it is the last, else for as long as it takes."""
    end = time.monotonic() + (seconds if step == STEPS else 120)
    while time.monotonic() < end:
        try:
            if (run / "metrics.csv").read_text("utf-8").count("\n") > step:
                return
        except OSError:
            pass
        time.sleep(0.002)


def final_weights(run: Path) -> str:
    return hashlib.sha256((run / f"checkpoints/step-{STEPS:06d}/model.safetensors").read_bytes()).hexdigest()


def test_a_stop_at_any_instant_ends_in_143_and_resumed_in_the_same_bits(
    places: Project, leftovers: list[str], record_property: Callable[[str, object], None]
) -> None:
    begun = time.monotonic()
    code, said = ended(start(places, "whole", leftovers))
    whole = time.monotonic() - begun
    assert code == 0, said
    wanted = final_weights(places.runs / "whole")

    chance = random.Random(1)
    told: Counter[str] = Counter()
    slowest = 0.0
    for number in range(INSTANTS):
        run = places.runs / f"run-{number}"
        container = start(places, run.name, leftovers)
        # By turns at an instant of its whole life, of which most is starting, and at a step.
        wait_for(run, chance.uniform(0, whole), chance.randrange(STEPS) if number % 2 else STEPS)
        asked = time.monotonic()
        good(docker("stop", "--time", "60", container))
        slowest = max(slowest, time.monotonic() - asked)
        code, said = ended(container)
        assert code in (0, 143), said
        assert "Traceback" not in said
        saved = sorted((run / "checkpoints").glob("step-*")) if (run / "checkpoints").exists() else []
        told["ended before" if code == 0 else "in training" if saved else "before the first step"] += 1
        if code:
            code, said = ended(start(places, run.name, leftovers))
            assert code == 0, said
        assert final_weights(run) == wanted, f"stopped as number {number}"
        shutil.rmtree(run)
    print(f"{INSTANTS} stops: {dict(told)}; the slowest took {slowest:.1f} s; all ended in the same bits")
    record_property("figures", {
        "instants": INSTANTS, "ended_before": told["ended before"], "stopped_before_the_first_step": told["before the first step"],
        "stopped_in_training": told["in training"], "identical_after_resume": INSTANTS, "slowest_stop_seconds": round(slowest, 1),
    })  # fmt: skip
    assert told["in training"] > INSTANTS / 5, "too few of the instants lay in training to mean anything"
