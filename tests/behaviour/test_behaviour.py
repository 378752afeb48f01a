"""What a user may rely on wherever Ambidex runs: on the host, in an image, on a GPU. See place.py."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from .place import IMAGE, Place

TINY = shlex.split(
    "--data story.txt --layers 1 --width 32 --heads 2 --kv-heads 1 --feed-forward 64 --context 32 --batch-size 2 "
    "--precision fp32 --evaluation-tokens 256 --sample-tokens 0"
)


def train(place: Place, device: str, out: str, *flags: str) -> Path:
    done = place.run("train", *TINY, "--device", device, "--out", out, *flags)
    assert done.code == 0, str(done)
    return place.folder / out


def card(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "card.json").read_text("utf-8")))


def steps(run: Path) -> list[int]:
    try:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return [int(row["step"]) for row in csv.DictReader(file) if row["step"]]
    except OSError:
        return []


def weights(run: Path) -> str:
    newest = max((run / "checkpoints").glob("step-*"))
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def test_the_doctor_calls_the_device_usable(place: Place, device: str) -> None:
    done = place.run("doctor", "--device", device, "--json")
    report = json.loads(done.out)
    assert (done.code, report["exit_code"], report["schema"]) == (0, 0, 1)
    assert bool(report["gpus"]) or device == "cpu"


def test_a_run_names_its_device_first_and_leaves_what_the_contract_says(place: Place, device: str) -> None:
    done = place.run(
        "train", *TINY, "--device", device, "--out", "run", "--steps", "6", "--sample-tokens", "8"
    )
    assert done.code == 0, str(done)
    lines = [line for line in done.out.splitlines() if not line.startswith("image ")]
    assert lines[0].startswith(f"device   {device}")
    run = place.folder / "run"
    assert card(run)["device"]["name"].startswith(device)
    assert card(run)["config"]["steps"] == 6
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    for name in ("loss.png", "samples.md", "summary.md"):
        assert (run / name).stat().st_size > 0
    saved = run / "checkpoints" / "step-000006"
    for name, facts in json.loads((saved / "manifest.json").read_text("utf-8"))["files"].items():
        assert hashlib.sha256((saved / name).read_bytes()).hexdigest() == facts["sha256"], name


@pytest.mark.skipif(
    sys.platform == "win32" and not IMAGE, reason="Windows has no SIGTERM that a process can hear"
)
def test_stopped_and_resumed_ends_in_the_bits_of_an_uninterrupted_run(place: Place, device: str) -> None:
    long = ("--steps", "400", "--evaluate-every", "100000", "--save-every", "100000")
    whole = train(place, device, "whole", *long)
    run = place.folder / "run"
    words = ("train", *TINY, "--device", device, "--out", "run", *long)
    stopped = place.stop_when(lambda: len(steps(run)) >= 5, *words)
    assert stopped.code == 143, str(stopped)
    assert 5 <= len(steps(run)) < 400
    resumed = place.run(*words, "--resume")
    assert resumed.code == 0, str(resumed)
    assert f"from step {max(steps_saved(run)[:-1])}" in resumed.out
    assert steps(run) == list(range(1, 401))
    assert weights(run) == weights(whole)


def steps_saved(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def test_runs_of_the_same_seed_are_the_same_bytes_and_the_same_to_compare(place: Place, device: str) -> None:
    for out in ("a", "b"):
        train(place, device, out, "--steps", "3", "--trace")
    done = place.run("compare", "a", "b", "--json")
    assert done.code == 0, str(done)
    (pair,) = json.loads(done.out)["pairs"]
    assert pair["same"] is True
    assert pair["kind"] == "same"
    assert weights(place.folder / "a") == weights(place.folder / "b")


def test_a_finished_run_can_be_sampled(place: Place, device: str) -> None:
    train(place, device, "run", "--steps", "4")
    done = place.run("sample", "run", "--tokens", "8", "--prompt", "line")
    assert done.code == 0, str(done)
    assert done.out.strip()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("train", "--steps", "-3", "--width", "x"), 2, ["steps", "width"]),
        (("train", "--data", "gone.txt", "--steps", "1", "--out", "run"), 3, ["gone.txt"]),
        (("sample", "nowhere"), 3, ["nowhere"]),
        (("compare", "nowhere", "neither"), 3, ["nowhere", "neither"]),
    ],
)
def test_what_is_wrong_is_said_at_once_in_words(
    words: tuple[str, ...], code: int, said: list[str], place: Place
) -> None:
    done = place.run(*words)
    assert done.code == code, str(done)
    assert all(word in done.err for word in said), str(done)
    assert "Traceback" not in done.out + done.err
