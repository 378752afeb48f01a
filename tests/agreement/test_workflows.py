"""The workflows against tox.ini and the table: every job runs what there is, by a version that is named once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matrix
import pytest
from agreement_files import PYTHONS, ROOT, ROWS, WORKFLOWS, read_yaml, text, tox

FILES = {path.stem: path for path in WORKFLOWS}


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read_yaml(path)["jobs"].values() for step in job["steps"]]


def environments(path: Path) -> set[str]:
    """The environments that a workflow names: in its commands, or in a variable that its commands use."""
    found = set(re.findall(r"tox (?:run|exec)(?: -q+)? -e ([\w-]+)", path.read_text("utf-8")))
    return found | set(re.findall(r"^\s*ENVIRONMENT: (py[\w-]+)$", path.read_text("utf-8"), re.MULTILINE))


def test_the_three_workflows_are_there() -> None:
    assert set(FILES) >= {"tests", "images", "nightly"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_environment_and_every_tool_that_a_workflow_names_is_there(path: Path) -> None:
    assert environments(path) <= set(tox("description")["env"])
    for tool in re.findall(
        r"(?:python |PYTHON=\S+ )?((?:tools|docker|\.ci)/[\w.]+)", path.read_text("utf-8")
    ):
        assert (ROOT / tool).exists(), tool


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_python_is_one_of_the_package_and_fits_the_environment_of_its_job(path: Path) -> None:
    for name, job in read_yaml(path)["jobs"].items():
        named = environments(path)
        for step in job["steps"]:
            python = step.get("with", {}).get("python-version", "${{ matrix.python }}")
            assert python in [*PYTHONS, "${{ matrix.python }}"], name
            for environment in named:
                run = step.get("run", "")
                if matrix.python_of(environment) and (environment in run or "$ENVIRONMENT" in run):
                    assert setup_python(job) in (matrix.python_of(environment), "${{ matrix.python }}"), name


def setup_python(job: dict[str, Any]) -> str:
    (found,) = [
        step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})
    ]
    return str(found)


def test_the_nightly_is_the_living_one_that_compose_runs() -> None:
    variant = read_yaml(FILES["nightly"])["env"]["VARIANT"]
    assert (ROWS[variant]["channel"], ROWS[variant]["state"]) == ("nightly", "living")
    assert f"${{GPU_VARIANT:-{variant}}}" in text("compose.yaml")
    assert read_yaml(FILES["nightly"])["env"]["ENVIRONMENT"].endswith(f"-{variant}")


def test_an_action_is_named_by_one_digest_with_its_version_beside_it() -> None:
    used: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for line in path.read_text("utf-8").splitlines():
            if found := re.search(r"uses: (\S+?)@(.*)", line):
                assert re.fullmatch(r"[0-9a-f]{40} # v\d+(\.\d+)*", found[2]), line
                used.setdefault(found[1], set()).add(found[2])
    assert used
    assert {action: digests for action, digests in used.items() if len(digests) > 1} == {}


def test_every_job_installs_the_same_tox_and_one_that_can_read_tox_ini() -> None:
    pinned = {version for path in WORKFLOWS for version in re.findall(r"tox==(\S+)", path.read_text("utf-8"))}
    assert len(pinned) == 1
    wanted = re.search(r"min_version = (\S+)", text("tox.ini"))
    assert wanted
    assert [int(part) for part in pinned.pop().split(".")] >= [int(part) for part in wanted[1].split(".")]


def test_every_run_of_tox_that_tests_is_followed_by_a_look_at_what_ran() -> None:
    for path in WORKFLOWS:
        for name, job in read_yaml(path)["jobs"].items():
            commands = [step.get("run", "") for step in job["steps"]]
            testing = [command for command in commands if "--result-json" in command]
            looks = [step for step in job["steps"] if "tools/ran.py" in step.get("run", "")]
            assert len(looks) == len(testing), f"{path.stem}: {name}"
            assert all(step["if"] == "always()" for step in looks), f"{path.stem}: {name}"


def test_the_last_job_waits_for_all_others_and_always_runs() -> None:
    jobs = read_yaml(FILES["tests"])["jobs"]
    last = jobs["ran"]
    assert set(last["needs"]) == set(jobs) - {"ran"}
    assert last["if"] == "always()"


def test_the_pinned_nightly_blocks_and_the_floating_one_does_not() -> None:
    jobs = read_yaml(FILES["nightly"])["jobs"]
    assert "continue-on-error" not in jobs["pinned"]
    assert jobs["pinned"]["env"]["AMBIDEX_NIGHTLY"] == "pinned"
    assert jobs["floating"]["continue-on-error"] is True
    assert jobs["floating"]["env"]["AMBIDEX_NIGHTLY"] == "floating"
    writing = [name for name, job in jobs.items() if job.get("permissions", {}).get("contents") == "write"]
    assert writing == ["pin"]
    order = [step.get("run", "") for step in jobs["pin"]["steps"]]
    assert [i for i, run in enumerate(order) if "nightly.py pin" in run] < [
        i for i, run in enumerate(order) if "git add" in run
    ]


def test_a_gpu_job_has_to_have_its_gpu() -> None:
    job = read_yaml(FILES["tests"])["jobs"]["gpu"]
    assert job["env"]["REQUIRE_GPU"] == "1"
    assert any("--marker gpu" in step.get("run", "") for step in job["steps"])


# -- the list of jobs ------------------------------------------------------------------------------------------------------


def listed(which: str) -> list[dict[str, Any]]:
    found = tox("description", "env_list")
    return list(matrix.rows(which, found["tox"]["env_list"], list(found["env"])))


def test_every_environment_but_those_typed_by_hand_has_a_job_at_night() -> None:
    rows = listed("all")
    assert {row["environment"] for row in rows} == set(tox("description")["env"]) - matrix.BY_HAND
    assert len({row["name"] for row in rows}) == len(rows), "two jobs would overwrite each other's result"
    assert json.loads(json.dumps(rows)) == rows
    for python in PYTHONS:
        systems = {row["os"] for row in rows if row["environment"] == f"py{python.replace('.', '')}-cpu"}
        assert systems == {"ubuntu-latest", "macos-latest", "windows-latest"}


def test_a_pull_request_runs_the_default_list_and_the_cpu_build_on_three_systems() -> None:
    rows, every = listed("condensed"), listed("all")
    assert all(row in every for row in rows)
    assert set(tox("env_list")["tox"]["env_list"]) <= {
        row["environment"] for row in rows if row["os"] == "ubuntu-latest"
    }
    assert {row["os"] for row in rows if row["environment"] == "py311-cpu"} == set(matrix.RUNNERS.values())
    assert all(row["required"] for row in rows)
    assert not [row for row in rows if "cu1" in row["environment"]], "gigabytes on every push"


def test_a_row_runs_its_own_python_and_a_build_that_floats_need_not_pass() -> None:
    for row in listed("all"):
        assert row["python"] == (matrix.python_of(row["environment"]) or PYTHONS[0])
    floats = {row["environment"] for row in listed("all") if not row["required"]}
    pinned = (ROOT / "pins/nightly-cu130.json").exists()
    assert floats == (set() if pinned else {f"py3{minor}-nightly-cu130" for minor in (11, 12, 13)})


def test_images_are_built_for_every_variant_that_has_pins() -> None:
    rows = [row["variant"] for row in matrix.images()]
    assert {"cpu", "cu124", "cu130"} <= set(rows) <= set(ROWS)
