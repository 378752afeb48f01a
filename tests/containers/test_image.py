"""The CPU image, really built: what is inside, who may run it, what a source edit costs."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from docs_commands import documented

from .engine import RECORD, ROOT, ask, docker, good, layers, record

pytestmark = pytest.mark.containers

DEPENDENCIES = (
    4  # base, system, torch and requirements, record: the layers that a source edit must leave alone
)
# As a stranger, with nothing: no user name, no capabilities, a root that cannot be written.
STRANGER = shlex.split(
    "--rm --network=none --user=12345:0 --read-only --cap-drop=ALL --security-opt=no-new-privileges "
    "--tmpfs=/tmp:exec,mode=1777"
)


def test_the_record_is_what_is_inside(cpu_image: str) -> None:
    line = documented("docker run --rm --entrypoint cat ambidex:cpu /opt/ambidex/record.json")
    found = json.loads(good(ask("bash", "-c", line)))
    assert found["variant"] == "cpu"
    assert found["torch"]["version"] == "2.13.0+cpu"
    assert found["torch"]["cuda"] is None
    assert found["torch"]["archs"] == []
    assert len(found["torch"]["git"]) == 40
    assert found["packages"]["torch"]["record_sha256"]
    assert not [name for name in found["packages"] if name.startswith("nvidia")]
    mount = f"--volume={ROOT / 'docker/record.py'}:/record.py:ro"
    asked = docker(
        "run", "--rm", "--network=none", mount, "--entrypoint=python", cpu_image, "/record.py", "check"
    )
    assert "the record says what is inside" in good(asked)


def test_the_labels_are_the_record(cpu_image: str) -> None:
    line = documented("docker inspect -f '{{json .Config.Labels}}' ambidex:cpu")
    labels = json.loads(good(ask("bash", "-c", line)))
    found = record(cpu_image)
    assert labels["ambidex.variant"] == "cpu"
    assert labels["ambidex.record"] == RECORD
    assert labels["ambidex.torch.version"] == found["torch"]["version"]
    assert labels["ambidex.torch.git"] == found["torch"]["git"]
    assert labels["org.opencontainers.image.version"] == found["project"]["version"]
    assert labels["org.opencontainers.image.title"] == "ambidex"


def test_user_home_and_entrypoint(cpu_image: str) -> None:
    settings = json.loads(good(docker("image", "inspect", "--format", "{{json .Config}}", cpu_image)))
    assert settings["User"] == "1000:0"
    assert {"USER=trainer", "HOME=/home/trainer"} <= set(settings["Env"])
    assert settings["Entrypoint"] == ["ambidex"]


def test_a_stranger_imports_and_compiles(cpu_image: str) -> None:
    """torch.compile needs a compiler, a cache to write and load from, and a user's name: all three are here."""
    program = (
        "import torch, os, getpass\n"
        "double = torch.compile(lambda x: x * 2 + 1)\n"
        "print(os.getuid(), getpass.getuser(), double(torch.ones(8)).sum().item(), oct(os.umask(0)))\n"
    )
    asked = docker("run", *STRANGER, "--entrypoint=python", cpu_image, "-c", program)
    # 0o2: what this user id writes, the next one in group 0 may change, whatever Python the base image has.
    assert "12345 trainer 24.0 0o2" in good(asked)


def test_a_source_edit_rebuilds_in_seconds_and_leaves_torch_alone(cpu_image: str, tmp_path: Path) -> None:
    context = copy_of_the_project(tmp_path)
    name = "ambidex-test-edit"
    command = build_command(context, name)
    good_build(command)
    before = layers(name)
    seconds = []
    for edit in range(3):  # the quickest of three: this machine may have other things to do
        with (context / "src/ambidex/errors.py").open("a", encoding="utf-8") as file:
            file.write(f"\n# edit {edit}\n")
        seconds.append(good_build(command))
        if seconds[-1] < 5:
            break
    after = layers(name)
    docker("image", "rm", "--force", name)
    # Base, system, dependencies, record; then the layers of the project.
    assert before[:DEPENDENCIES] == after[:DEPENDENCIES]
    assert before != after
    print(f"rebuild after a source edit: {min(seconds):.1f} s")
    assert min(seconds) < 5


def test_another_variant_s_row_leaves_the_dependencies_alone(cpu_image: str, tmp_path: Path) -> None:
    context = copy_of_the_project(tmp_path)
    table = context / "src/ambidex/device/variants.toml"
    table.write_text(table.read_text("utf-8").replace("[cu121]", "# Another comment.\n[cu121]"), "utf-8")
    name = "ambidex-test-row"
    good_build(build_command(context, name))
    mine, theirs = layers(name), layers(cpu_image)
    docker("image", "rm", "--force", name)
    assert mine[:DEPENDENCIES] == theirs[:DEPENDENCIES]


def test_an_unknown_variant_is_one_sentence(cpu_image: str, tmp_path: Path) -> None:
    done = docker(*build_command(ROOT, "ambidex-test-none", VARIANT="nightly-cu131"))
    assert done.code != 0
    assert "there is no variant 'nightly-cu131'" in done.text
    assert "type: GPU_VARIANT=nightly-cu130 docker compose build train-gpu-nightly" in done.text


def test_wheels_for_another_platform_and_no_index(cpu_image: str, tmp_path: Path) -> None:
    context = copy_of_the_project(tmp_path, wheels=False)
    wrong = "torch-2.13.0+cpu-cp312-cp312-win_amd64.whl"
    (context / "docker/wheels" / wrong).write_bytes(b"not for here")
    done = docker(*build_command(context, "ambidex-test-none"))
    assert done.code != 0
    assert wrong in done.text
    assert "is for another Python or platform than Python 3." in done.text
    assert "python3 docker/fetch.py cpu" in done.text


def test_a_content_that_is_not_the_row_s_stops_at_the_gate(cpu_image: str, tmp_path: Path) -> None:
    """The same step that the build runs, asked about another row: all that is wrong, and an exit code that stops it."""
    import pin

    pin.main(
        "cu130",
        str(ROOT / "src/ambidex/device/variants.toml"),
        str(ROOT / "docker/requirements"),
        str(tmp_path),
    )
    tmp_path.chmod(0o755)
    mounts = [f"--volume={ROOT / 'docker/record.py'}:/record.py:ro", f"--volume={tmp_path}:/pin:ro"]
    done = docker(
        "run", "--rm", "--network=none", *mounts, "--entrypoint=python", cpu_image, "/record.py", "torch"
    )
    assert done.code != 0
    assert "the image is not the variant 'cu130': torch is the cpu build, the row says cu130" in done.text
    assert "torch was built for CUDA none, the row says 13.0" in done.text
    assert "python3 docker/fetch.py cu130" in done.text


# -- building copies ---------------------------------------------------------------------------------------------------


def copy_of_the_project(folder: Path, *, wheels: bool = True) -> Path:
    """What a build sees, in a folder that a test may change. Wheels are linked, not copied."""
    context = folder / "project"
    context.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
        shutil.copy(ROOT / name, context / name)
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "wheels")
    shutil.copytree(ROOT / "src", context / "src", ignore=skipped)
    shutil.copytree(ROOT / "docker", context / "docker", ignore=skipped)
    (context / "docker/wheels").mkdir()
    (context / "docker/wheels/.gitkeep").touch()
    for wheel in (ROOT / "docker/wheels").glob("*.whl") if wheels else ():
        (context / "docker/wheels" / wheel.name).hardlink_to(wheel)
    return context


def build_command(context: Path, name: str, **arguments: str) -> list[str]:
    import build

    given = {key: value for key in build.ARGUMENTS if (value := build.setting(key)) is not None} | arguments
    words = [word for key, value in given.items() for word in ("--build-arg", f"{key}={value}")]
    dockerfile = str(context / "docker/cpu.Dockerfile")
    return ["build", "--network=none", "--file", dockerfile, "--tag", name, *words, str(context)]


def good_build(command: list[str]) -> float:
    done = docker(*command, seconds=600)
    good(done)
    return done.seconds
