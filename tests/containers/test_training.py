"""Training in a container, through compose.yaml, as a user does it: runs, threads, stops, full disks."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from itertools import pairwise
from pathlib import Path

import pytest

from docs_commands import documented

from .engine import SMALL, TINY, Done, Project, docker, good

pytestmark = pytest.mark.containers


def train(project: Project, *flags: str, options: tuple[str, ...] = (), **environment: str) -> Done:
    return project.compose("run", "--rm", *options, "train-cpu", *TINY, *flags, **environment)


def only_run(project: Project) -> Path:
    (found,) = (project.runs / "cpu").glob("nano-*")
    return found


def card(run: Path) -> dict:
    return json.loads((run / "card.json").read_text("utf-8"))


def steps(run: Path) -> list[int]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def final_weights(run: Path) -> str:
    newest = max((run / "checkpoints").glob("step-*"))
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def test_the_main_job_leaves_its_run_on_the_host(project: Project) -> None:
    # The real thing: the nano preset on the built-in text, 50 steps; only the last evaluation is made shorter.
    project.set("train-cpu", STEPS="50", VALIDATION_FRACTION="0.001")
    done = project.typed(documented("docker compose run --rm train-cpu"), CPUS="1", seconds=600)
    print(good(done))
    assert "image    cpu: torch 2.13.0+cpu" in done.text
    run = only_run(project)
    assert steps(run) == list(range(1, 51))
    assert card(run)["device"]["name"] == "cpu"
    assert card(run)["config"]["steps"] == 50
    for name in ("loss.png", "summary.md", "checkpoints/step-000050/manifest.json"):
        assert (run / name).exists()


def test_a_finished_run_is_followed_by_a_new_one(project: Project) -> None:
    for _ in range(2):
        good(train(project, "--steps", "2", CPUS="1"))
    assert {path.name for path in (project.runs / "cpu").iterdir()} == {"nano-001", "nano-002"}


def test_two_user_ids_share_the_prepared_text_and_each_may_add_another(project: Project) -> None:
    project.runs.chmod(0o777)
    (project.data / "other.txt").write_text((project.data / "book.txt").read_text("utf-8").upper(), "utf-8")
    for uid, text in (("12345", "book"), ("54321", "book"), ("54321", "other")):
        flags = ("--steps", "1", "--data", f"/data/{text}.txt")
        good(train(project, *flags, RUN_AS=uid, CPUS="1", RUNS=str(project.runs)))
        project.runs.joinpath("cpu").rename(project.folder / f"{uid}-{text}")


def test_threads_follow_the_quota(project: Project) -> None:
    good(train(project, "--steps", "2", CPUS="1"))
    assert card(only_run(project))["threads"] == 1
    assert card(only_run(project))["cpu"]["quota"] == 1.0


def test_a_text_of_ones_own_is_trained_by_the_line_that_the_page_shows(project: Project) -> None:
    project.set("train-cpu", **{**SMALL, "DATA": "", "EVALUATE_EVERY": "500", "SAVE_EVERY": "500"})
    line = documented("docker compose run --rm train-cpu --data /data/book.txt --steps 500")
    good(project.typed(line, CPUS="1"))
    assert steps(only_run(project)) == list(range(1, 501))
    assert card(only_run(project))["config"]["data"] == ["/data/book.txt"]


def test_the_doctor_in_its_container_says_what_will_run_there(project: Project) -> None:
    said = good(project.typed(documented("docker compose run --rm doctor")))
    assert "torch 2.13.0+cpu" in said
    assert "CPU" in said


def test_a_stranger_trains_and_checkpoints(project: Project) -> None:
    """UID 12345 in group 0, who owns nothing; everything else that compose.yaml forbids is forbidden too."""
    project.runs.chmod(0o777)
    good(train(project, "--steps", "4", "--save-every", "2", RUN_AS="12345", CPUS="1"))
    run = only_run(project)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-000002", "step-000004"}
    assert run.stat().st_uid == 12345
    assert card(run)["threads"] == 1


def test_stop_checkpoints_and_the_service_continues_to_the_same_bits(
    project: Project, tmp_path: Path
) -> None:
    """`docker stop` in mid-training: exit 143 within the grace period; the next run ends as if nothing had been."""
    long = ["--steps", "1500", "--save-every", "100000", "--evaluate-every", "100000"]
    started = project.compose("run", "--detach", "train-cpu", *TINY, *long, CPUS="1")
    container = good(started).strip().splitlines()[-1]
    run = wait_for_step(project, 20)
    begun = time.monotonic()
    good(docker("stop", "--time", "90", container))
    took = time.monotonic() - begun
    code = good(docker("inspect", "--format", "{{.State.ExitCode}}", container)).strip()
    logs = docker("logs", container).text
    good(docker("rm", "--volumes", container))
    assert code == "143", logs
    assert took < 60
    stopped_at = steps(run)[-1]
    assert 20 <= stopped_at < 1500
    assert (run / f"checkpoints/step-{stopped_at:06d}/manifest.json").exists()

    done = train(project, *long, CPUS="1")
    assert f"from step {stopped_at}" in good(done)
    assert only_run(project) == run, "the same run, continued"
    assert steps(run) == list(range(1, 1501))

    whole = Project(tmp_path, {"RUNS": str(tmp_path / "whole")})
    (tmp_path / "whole").mkdir()
    good(train(whole, *long, CPUS="1"))
    (uninterrupted,) = (tmp_path / "whole/cpu").glob("nano-*")
    assert final_weights(uninterrupted) == final_weights(run)
    print(f"stopped at step {stopped_at} in {took:.1f} s, continued to the same bits")


def wait_for_step(project: Project, step: int) -> Path:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for metrics in (project.runs / "cpu").glob("nano-*/metrics.csv"):
            if metrics.read_text("utf-8").count("\n") > step:
                return metrics.parent
        time.sleep(0.2)
    raise AssertionError("training did not begin within two minutes")


def test_legs_run_one_after_another_on_the_same_text_and_compare_gives_one_verdict(project: Project) -> None:
    """`docker compose up compare`, with the CPU image in both legs: what is compared is nothing, what is run is all of it."""
    project.set("leg-cpu", "leg-bridge", **SMALL, STEPS="3")
    project.settings |= {"GPU_VARIANT": "cpu", "CPUS": "1"}
    good(project.compose("up", "--no-build", "compare", seconds=280))
    legs = [ended(project, name) for name in ("leg-cpu", "leg-bridge", "compare")]
    assert [leg["ExitCode"] for leg in legs] == [0, 0, 0], project.compose("logs").text
    for before, after in pairwise(legs):
        assert before["FinishedAt"] < after["StartedAt"], "two at once, and their speeds mean nothing"
    said = project.compose("logs", "--no-log-prefix", "compare").text
    print(said)
    cpu, bridge = (card(next((project.runs / "compare" / leg).glob("nano-*"))) for leg in ("cpu", "bridge"))
    assert cpu["data"]["hash"] == bridge["data"]["hash"]
    assert cpu["weights_sha256"] == bridge["weights_sha256"]


def ended(project: Project, service: str) -> dict:
    container = good(project.compose("--profile", "compare", "ps", "--all", "--quiet", service)).strip()
    return json.loads(good(docker("inspect", "--format", "{{json .State}}", container)))


def test_runs_that_cannot_be_written_are_one_sentence(project: Project) -> None:
    project.runs.chmod(0o755)
    done = train(project, "--steps", "2", RUN_AS="12345")
    assert done.code == 4, str(done)
    assert "Traceback" not in done.text
    assert "/runs" in done.text
    assert "RUN_AS=" in done.text


def test_a_full_volume_is_one_sentence(cpu_image: str, project: Project) -> None:
    data = f"--volume={project.data}:/data:ro"
    full = "--mount=type=tmpfs,destination=/runs,tmpfs-size=300k"
    done = docker(
        "run", "--rm", "--network=none", "--cpus=1", data, full, cpu_image, "train", *TINY, "--steps", "4"
    )
    assert done.code == 4, str(done)
    assert "Traceback" not in done.text


def test_a_gpu_service_on_a_host_without_one(project: Project) -> None:
    """What the engine itself says is for `doctor explain` to read; the check before says it in one sentence."""
    import check

    if not check.gpu_problems():
        pytest.skip("this host has a GPU")
    asked = docker("run", "--rm", "--gpus=all", "ambidex:cpu", "doctor")
    assert "could not select device driver" in asked.text
    explained = project.compose("run", "--rm", "--no-TTY", "doctor", "explain", "/data/error.txt")
    assert explained is not None
    (sentence,) = check.gpu_problems()
    assert "docker compose run --rm train-cpu" in sentence
