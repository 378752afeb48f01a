"""The agreement tests themselves: one slip in a copy of each file, and the test that has to notice it.

A test that compares two files and could not fail would be no test. Each row changes one file in a copy of the project
and names the test that catches it; the same tests pass on the copy as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from agreement_files import ROOT

pytest.importorskip("yaml")
pytest.importorskip("tox")

# What the agreement tests read, and themselves.
READ = ["tox.ini", "compose.yaml", "pyproject.toml", "README.md", "CONTRIBUTING.md", ".env.example", ".dockerignore", ".ci",
        ".github", "deploy", "docker", "docs", "pins", "tools", "src/ambidex/device/variants.toml", "tests", "examples",
        "benchmarks", "siege"]  # fmt: skip


@dataclass(frozen=True)
class Slip:
    file: str
    old: str
    new: str
    caught_by: str


SLIPS = {
    "compose: a service builds another row than its image is named for": Slip(
        "compose.yaml", "VARIANT: cu130}", "VARIANT: cu132}",
        "agreement/test_images.py::test_a_service_s_image_is_named_for_the_row_that_it_is_built_from",
    ),
    "compose: a label says another torch": Slip(
        "compose.yaml", "ambidex.torch.version: 2.13.0+cpu", "ambidex.torch.version: 2.12.0+cpu",
        "agreement/test_images.py::test_a_service_s_image_is_named_for_the_row_that_it_is_built_from",
    ),
    "compose: the service for the GPU trains on the CPU": Slip(
        "compose.yaml", "AMBIDEX_DEVICE: cuda, AMBIDEX_RUNS: /runs/gpu}", "AMBIDEX_DEVICE: cpu, AMBIDEX_RUNS: /runs/gpu}",
        "agreement/test_images.py::test_a_service_trains_on_what_its_name_says",
    ),
    "compose: a service would start beside the two nodes": Slip(
        "compose.yaml", "    profiles: [train]\n", "",
        "agreement/test_images.py::test_no_service_starts_unasked_and_a_profile_other_than_gpu_is_one_thing",
    ),
    "a page builds without a name, which builds nothing": Slip(
        "docs/containers.md", "3. `docker compose build train-cpu`", "3. `docker compose build`",
        "agreement/test_images.py::test_no_page_and_no_message_builds_or_runs_without_a_name",
    ),
    "tox: a description names another torch": Slip(
        "tox.ini", "on torch 2.6.0 for CUDA 12.4", "on torch 2.7.0 for CUDA 12.4",
        "agreement/test_tox.py::test_a_description_says_what_the_row_says",
    ),
    "tox: a Python falls out of the matrix": Slip(
        "tox.ini", "[testenv:py3{11,12,13}-{bare", "[testenv:py3{11,12}-{bare",
        "agreement/test_tox.py::test_the_matrix_is_every_python_by_every_variant",
    ),
    "tox: the proof of the build goes": Slip(
        "tox.ini", "    python {tox_root}{/}tools{/}prove_build.py {env_name}\n", "",
        "agreement/test_tox.py::test_the_first_command_is_the_proof_and_the_name_alone_says_what_is_installed",
    ),
    "a Dockerfile builds the frozen nightly by default": Slip(
        "docker/nightly.Dockerfile", "ARG VARIANT=nightly-cu130", "ARG VARIANT=nightly-cu124",
        "agreement/test_images.py::test_the_default_gpu_build_is_one_living_nightly_everywhere",
    ),
    "a Dockerfile gains a line that its twin has not": Slip(
        "docker/cpu.Dockerfile", "WORKDIR /home/trainer", "WORKDIR /home/trainer\nENV MORE=1",
        "containers/test_files.py::test_the_two_dockerfiles_differ_in_the_default_variant_alone",
    ),
    "a Dockerfile copies the source before torch": Slip(
        "docker/cpu.Dockerfile", "FROM system AS dependencies", "FROM system AS dependencies\nCOPY src /src/src",
        "containers/test_files.py::test_a_source_edit_cannot_reach_the_dependencies",
    ),
    "a page's table says another torch": Slip(
        "docs/containers.md", "| `cu128` | 2.11.0 |", "| `cu128` | 2.12.0 |",
        "agreement/test_images.py::test_the_page_s_table_of_variants_is_the_table",
    ),
    "a page says that an image ran and the other page does not": Slip(
        "README.md", "| `cu124` | yes, on a CPU |", "| `cu124` | not run |",
        "agreement/test_images.py::test_the_pages_list_every_variant_that_is_offered_and_no_other",
    ),
    "the table of variants moves on alone": Slip(
        "src/ambidex/device/variants.toml", 'torch = "2.6.0"', 'torch = "2.6.1"',
        "agreement/test_tox.py::test_a_description_says_what_the_row_says",
    ),
    "a workflow runs an environment that is not there": Slip(
        ".github/workflows/nightly.yml", "ENVIRONMENT: py312-nightly-cu130", "ENVIRONMENT: py312-nightly-cu131",
        "agreement/test_workflows.py::test_every_environment_and_every_tool_that_a_workflow_names_is_there",
    ),
    "a workflow sets up another Python than its environment's": Slip(
        ".github/workflows/nightly.yml", 'python-version: "3.12"', 'python-version: "3.11"',
        "agreement/test_workflows.py::test_every_python_is_one_of_the_package_and_fits_the_environment_of_its_job",
    ),
    "a workflow tests and nobody looks at what ran": Slip(
        ".github/workflows/images.yml", "run: python tools/ran.py tox.json image --marker containers", "run: 'true'",
        "agreement/test_workflows.py::test_every_run_of_tox_that_tests_is_followed_by_a_look_at_what_ran",
    ),
    "a page shows another command than the one that a test types": Slip(
        "docs/containers.md", "docker compose run --rm doctor ", "docker compose run doctor ",
        "agreement/test_pages.py::test_every_command_is_typed_by_somebody_or_has_a_reason",
    ),
    "a test types what no page shows any more": Slip(
        "tests/export/test_elsewhere.py", "ambidex export first --format gguf --to first-gguf", "ambidex export first --format gguf --to g",
        "agreement/test_pages.py::test_every_command_that_a_test_asks_for_stands_on_a_page",
    ),
    "CI no longer types what a page shows": Slip(
        ".ci/run", "run -e siege-small", "run -e siege",
        "agreement/test_pages.py::test_every_command_is_typed_by_somebody_or_has_a_reason",
    ),
    "CI no longer requires an environment": Slip(
        ".ci/run", "lint types py311-cpu py312-bare", "lint types py311-cpu",
        "agreement/test_tox.py::test_ci_requires_every_environment_that_runs_by_default",
    ),
}  # fmt: skip


def copied(to: Path) -> Path:
    skipped = shutil.ignore_patterns("__pycache__", "wheels")
    for name in READ:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=skipped)
        else:
            shutil.copy(ROOT / name, to / name)
    return to


def failures(project: Path, *tests: str) -> set[str]:
    words = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "-p",
        "pytest_timeout",
        "-p",
        "no:cacheprovider",
        "-q",
    ]
    quick = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # without what only other tests need
    done = subprocess.run([*words, *dict.fromkeys(tests)], cwd=project, env=quick, capture_output=True, text=True,
                          check=False, timeout=240)  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return set(re.findall(r"^FAILED tests/([^\[\s]+)", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_in_one_file_is_caught(name: str, tmp_path: Path) -> None:
    slip = SLIPS[name]
    project = copied(tmp_path)
    before = (project / slip.file).read_text("utf-8")
    assert slip.old in before, "the slip itself no longer fits the file"
    (project / slip.file).write_text(before.replace(slip.old, slip.new), "utf-8")
    assert slip.caught_by in failures(project, f"tests/{slip.caught_by}")


def test_without_a_slip_nothing_is_caught(tmp_path: Path) -> None:
    caught_by = [f"tests/{slip.caught_by}" for slip in SLIPS.values()]
    assert failures(copied(tmp_path), *caught_by) == set()
