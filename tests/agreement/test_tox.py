"""tox.ini against the table of variants: the whole matrix is there, and every name means what it says."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib

import matrix
import pytest
import torch_first
from agreement_files import PYTHONS, ROOT, ROWS, text, tox

from docs_commands import documented

VARIANTS = ["cpu", "cu124", "cu130", "nightly-cu124", "nightly-cu130"]
ENVIRONMENTS = [
    f"py{python.replace('.', '')}-{variant}" for python, variant in itertools.product(PYTHONS, VARIANTS)
]


def test_the_matrix_is_every_python_by_every_variant() -> None:
    there = set(tox("description")["env"])
    assert set(ENVIRONMENTS) <= there
    others = {name for name in there if re.match(r"py3\d+-", name)} - set(ENVIRONMENTS)
    assert others == {"py311-bare", "py312-bare", "py313-bare", "py311-torch251"}


def test_the_pythons_are_those_of_the_package() -> None:
    classifiers = tomllib.loads(text("pyproject.toml"))["project"]["classifiers"]
    assert [found[1] for line in classifiers if (found := re.search(r":: (3\.\d+)$", line))] == PYTHONS


def test_no_environment_is_a_phantom() -> None:
    """A word in a condition that is no factor of a section becomes an environment of its own, which tests nothing."""
    sections = "".join(re.findall(r"^\[testenv:(.+)\]$", text("tox.ini"), re.MULTILINE))
    assert not [name for name in tox("description")["env"] if re.split(r"[-\d]", name)[0] not in sections]


@pytest.mark.parametrize("environment", [*ENVIRONMENTS, "py311-torch251"])
def test_a_description_says_what_the_row_says(environment: str) -> None:
    variant = torch_first.variant_of(environment)
    row = ROWS[variant]
    said = tox("description")["env"][environment]["description"]
    if row["channel"] == "stable" and "cuda" in row:
        assert re.search(rf"on torch {re.escape(row['torch'])}\b", said), said
    if "cuda" in row and "torch251" not in environment:
        assert f"for CUDA {row['cuda']}" in said, said
    assert ("nightly" in said) == (row["channel"] == "nightly"), said
    assert set(re.findall(r"torch (\d[\w.]*\w)", said)) <= {row.get("torch")}, said
    if "cuda" not in row:
        assert "for the CPU" in said, said


@pytest.mark.parametrize("environment", [*ENVIRONMENTS, "py312-bare", "py311-torch251"])
def test_the_first_command_is_the_proof_and_the_name_alone_says_what_is_installed(environment: str) -> None:
    found = tox("commands", "install_command", "set_env")["env"][environment]
    first, *others = found["commands"]
    assert first.split() == ["python", str(ROOT / "tools/prove_build.py"), environment]
    assert f"torch_first.py --for {environment} " in found["install_command"]
    assert "AMBIDEX_VARIANT" not in found["set_env"]
    on_a_gpu = [command for command in others if "-m gpu" in command]
    assert len(on_a_gpu) == (torch_first.variant_of(environment) in VARIANTS[1:])
    for command in others:
        assert "--ran" in command, "tools/ran.py could not tell what ran"


@pytest.mark.parametrize("environment", [name for name in ENVIRONMENTS if not name.endswith("-cpu")])
def test_every_variant_of_the_matrix_has_wheels_for_its_pythons(environment: str) -> None:
    row = ROWS[torch_first.variant_of(environment)]
    if "pythons" in row:
        first, last = (int(python[2:]) for python in row["pythons"])
        assert first <= int(matrix.python_of(environment)[2:]) <= last


def test_what_runs_by_default_needs_no_gpu_and_no_gigabytes() -> None:
    default = tox("env_list")["tox"]["env_list"]
    assert {"lint", "types", "py311-cpu", "py312-bare", "py313-bare"} <= set(default)
    assert not [name for name in default if "cu1" in name or "nightly" in name]


def test_what_a_gpu_needs_reaches_its_tests() -> None:
    assert {"REQUIRE_GPU", "CUDA_VISIBLE_DEVICES"} <= set(tox("pass_env")["env"]["py312-cu130"]["pass_env"])
    assert {"REQUIRE_GPU", "AMBIDEX_NIGHTLY"} <= set(
        tox("pass_env")["env"]["py312-nightly-cu130"]["pass_env"]
    )


@pytest.mark.parametrize(
    "page", [".ci/run", "CONTRIBUTING.md", "README.md", "docs/testing.md", "docs/containers.md"]
)
def test_every_environment_that_is_named_somewhere_is_there(page: str) -> None:
    there = set(tox("description")["env"])
    for names in re.findall(r"tox(?:\"|`)? run -e ([\w,-]+)", text(page)):
        assert set(names.split(",")) <= there, page
    labels = re.search(r"^labels =\n((?:    .+\n)+)", text("tox.ini"), re.MULTILINE)
    assert labels
    for name in re.findall(r"tox run -m (\w+)", text(page)):
        assert re.search(rf"^    {name} =", labels[1], re.MULTILINE), f"{page}: {name}"


def test_ci_requires_every_environment_that_runs_by_default() -> None:
    required = re.search(r'ran\.py "\$tools/tox\.json" ([\w -]+?) \|\|', text(".ci/run"))
    assert required
    assert set(required[1].split()) == set(tox("env_list")["tox"]["env_list"])


def test_every_environment_is_listed_in_words() -> None:
    there = tox("description")["env"]
    words = [sys.executable, "-m", *documented("tox list").split()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    said = {found[1] for line in done.stdout.splitlines() if (found := re.match(r"(\S+) +-> \S", line))}
    assert set(there) <= said
