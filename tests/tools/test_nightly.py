"""Pins are written after the wheel was here, or not at all; and what changed is read from two records."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import nightly
import pytest
import torch_first

VERSION = "from typing import Optional\n__version__ = '9.0.dev20300101+{}'\ncuda: Optional[str] = '13.0'\ngit_version = 'abc'\n"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Stands for pip and the index: `tag` is what the index has, none for an index that does not answer."""
    state: dict[str, Any] = {"tag": "cu130"}

    def pip(*words: str, command: str, quiet: bool = False) -> int:
        assert command == "download"
        if state["tag"] is None:
            return 1
        with zipfile.ZipFile(Path(words[words.index("--dest") + 1]) / "torch-9.whl", "w") as wheel:
            wheel.writestr("torch/version.py", VERSION.format(state["tag"]))
        return 0

    monkeypatch.setattr(torch_first, "pip", pip)
    monkeypatch.setattr(torch_first, "PINS", tmp_path / "pins")
    monkeypatch.setattr(nightly, "ROOT", tmp_path)
    return state


def test_a_pin_is_what_the_wheel_itself_says(index: dict[str, Any], tmp_path: Path) -> None:
    assert nightly.main(["pin", "nightly-cu130"]) == 0
    pin = json.loads((tmp_path / "pins/nightly-cu130.json").read_text("utf-8"))
    assert (pin["version"], pin["git"], pin["cuda"]) == ("9.0.dev20300101+cu130", "abc", "13.0")
    assert len(pin["sha256"]) == len(hashlib.sha256().hexdigest())
    assert [path.name for path in (tmp_path / "pins").iterdir()] == ["nightly-cu130.json"]


@pytest.mark.parametrize(("tag", "said"), [(None, "could not be fetched"), ("cu126", "is not a cu130 build")])
def test_what_could_not_be_fetched_leaves_the_old_pin_whole(
    tag: str | None, said: str, index: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nightly.main(["pin", "nightly-cu130"]) == 0
    before = (tmp_path / "pins/nightly-cu130.json").read_bytes()
    index["tag"] = tag
    assert nightly.main(["pin", "nightly-cu130"]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "pins/nightly-cu130.json").read_bytes() == before


def test_only_a_nightly_is_pinned_so(index: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert nightly.main(["pin", "cu130"]) == 2
    assert "cu130 is no nightly" in capsys.readouterr().err


def recorded(git: str = "a", numpy: str = "1", library: str = "x") -> dict[str, Any]:
    torch = {"version": f"9+{git}", "git": git, "cuda": "13.0", "archs": ["sm_90"], "config_sha256": "c"}
    return {
        "torch": torch,
        "packages": {"numpy": {"version": numpy}, "torch": {"version": "9"}},
        "libraries": {"torch/lib/libtorch_cpu.so": library},
    }


def test_what_changed_inside_is_commits_packages_and_libraries() -> None:
    said = nightly.inside(recorded(), recorded(git="b", numpy="2", library="y"))
    assert "https://github.com/pytorch/pytorch/compare/a...b" in said
    assert "- numpy: 1 -> 2" in said
    assert "- 1 of torch's libraries: torch/lib/libtorch_cpu.so" in said
    assert nightly.inside(recorded(), recorded())[-1].startswith("Nothing")


def test_a_leg_without_a_record_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nightly.main(["changes", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "holds no record" in capsys.readouterr().err
