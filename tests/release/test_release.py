"""The wheel and the source archive, installed into empty environments. `tox run -e release` builds them into dist/."""

from __future__ import annotations

import os
import shlex
import subprocess
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from docs_commands import documented

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
BUILT = sorted(DIST.glob("ambidex-*"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
FOR_USERS = sorted(set(EXTRAS) - {"test", "docs", "browser"})
pytestmark = pytest.mark.skipif(not BUILT, reason="nothing is built in dist/: tox run -e release")


def wheel() -> Path:
    return next(path for path in BUILT if path.suffix == ".whl")


def empty(folder: Path) -> Path:
    """A new environment; its folder of programs."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def installed(folder: Path, what: str, *more: str) -> Path:
    """A new environment with nothing but ``what``; its folder of programs."""
    programs = empty(folder)
    done = subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", what, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return programs


def typed_on_a_page(programs: Path, line: str, folder: Path, **pip: str) -> str:
    """`python -m pip install ambidex...`, as a page shows it, where ``ambidex`` is the wheel that was built here."""
    folder.mkdir(exist_ok=True)
    version = wheel().name.split("-")[1]
    pins = f"ambidex=={version}\ntorch=={os.environ.get('TORCH', '2.13.0')}\n"
    (folder / "constraints.txt").write_text(pins, "utf-8")
    _, *words = shlex.split(line)
    links = " ".join([*os.environ.get("PIP_FIND_LINKS", "").split(), DIST.as_uri()])
    here = {"PIP_CONSTRAINT": str(folder / "constraints.txt"), "PIP_FIND_LINKS": links}
    environment = {**os.environ, **here, **pip}
    done = subprocess.run(
        [programs / "python", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def typed(programs: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [programs / "ambidex", *words], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )


@pytest.mark.parametrize("archive", ["wheel", "sdist"])
def test_in_an_empty_environment_the_doctor_works_and_training_says_what_to_install(archive, tmp_path):
    if archive == "wheel":
        programs = empty(tmp_path / "empty")
        typed_on_a_page(programs, documented("python -m pip install ambidex"), tmp_path / "pip")
    else:
        programs = installed(tmp_path / "empty", str(next(path for path in BUILT if path.suffix == ".gz")))
    have = subprocess.run(
        [programs / "python", "-m", "pip", "list", "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split("==")[0].lower() for line in have.stdout.splitlines()}
    assert names <= {"ambidex", "packaging", "pip", "setuptools"}
    assert "torch" in typed(programs, cwd=tmp_path).stdout
    assert typed(programs, "doctor", "--no-probe", cwd=tmp_path).returncode == 24
    what_if = ["doctor", "--torch", "2.5.1+cu121", "--gpu", "RTX 5060", "--driver", "576.02"]
    assert typed(programs, *what_if, cwd=tmp_path).returncode == 20
    assert typed(programs, "variants", cwd=tmp_path).returncode == 0
    for words in (["train"], ["sample", "x"], ["export", "x", "--to", "y"], ["bench"]):
        done = typed(programs, *words, cwd=tmp_path)
        assert done.returncode == 2
        assert 'pip install "ambidex[train]"' in done.stderr
        assert "Traceback" not in done.stderr
    if archive == "wheel":
        the_extras_that_the_pages_name(programs, tmp_path / "pip")


def the_extras_that_the_pages_name(programs: Path, folder: Path) -> None:
    """The one for completion is installed; the one for training is resolved, since the units' environment installs it."""
    line = documented('python -m pip install "ambidex[train]"')
    said = typed_on_a_page(programs, line, folder, PIP_DRY_RUN="1")
    assert " torch-" in said
    assert " tokenizers-" in said
    typed_on_a_page(programs, documented('python -m pip install "ambidex[completion]"'), folder)
    subprocess.run([programs / "python", "-c", "import shtab"], check=True)


@pytest.mark.slow
def test_with_every_extra_it_trains_exports_and_completes(tmp_path):
    programs = installed(
        tmp_path / "full", f"{wheel()}[{','.join(FOR_USERS)}]", f"torch=={os.environ.get('TORCH', '2.13.0')}"
    )
    (tmp_path / "book.txt").write_text("a line, and another one\n" * 400, "utf-8")
    small = [
        "--width",
        "32",
        "--layers",
        "1",
        "--heads",
        "2",
        "--kv-heads",
        "1",
        "--context",
        "16",
        "--steps",
        "3",
    ]
    done = typed(
        programs, "train", "--data", "book.txt", "--out", "run", "--tensorboard", *small, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert typed(programs, "sample", "run", "--tokens", "5", cwd=tmp_path).returncode == 0
    for kind in ("hf", "gguf"):
        assert typed(programs, "export", "run", "--format", kind, "--to", kind, cwd=tmp_path).returncode == 0
    assert "nano" in typed(programs, "completion", "bash", cwd=tmp_path).stdout


def test_the_wheel_holds_the_package_and_nothing_else():
    with zipfile.ZipFile(wheel()) as opened:
        names = opened.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ambidex"}
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "ambidex").rglob("*")
               if path.is_file() and path.suffix != ".pyc"}  # fmt: skip
    assert sources <= set(names)


def test_the_source_archive_holds_what_the_wheel_is_made_of():
    archive = next(path for path in BUILT if path.suffix == ".gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[-1] for name in opened.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/ambidex/cli.py", "src/ambidex/py.typed"} <= names
    assert not any(name.startswith(("runs/", "data/", "build/")) for name in names)
