"""tox's installer: which torch goes in, and from where."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch_first


class Pip:
    """Records what pip was asked for, and lets the first few calls fail."""

    def __init__(self, fails: int = 0, wheel: bytes = b"") -> None:
        self.calls: list[tuple[str, ...]] = []
        self.fails = fails
        self.wheel = wheel

    def __call__(self, *words: str, command: str = "install", quiet: bool = False) -> int:
        self.calls.append(words)
        if command == "download" and self.wheel:
            Path(
                words[words.index("--dest") + 1], "torch-9.dev20300101+cu130-cp311-none-any.whl"
            ).write_bytes(self.wheel)
        return 1 if len(self.calls) <= self.fails else 0


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setattr(torch_first, "installed", lambda: "")
    monkeypatch.setattr(torch_first.sys, "platform", "linux")
    monkeypatch.setattr(torch_first, "ROOT", tmp_path)
    monkeypatch.setattr(torch_first, "PINS", tmp_path / "pins")
    return torch_first


@pytest.mark.parametrize(
    ("environment", "variant"),
    [
        ("py311-cpu", "cpu"), ("py312-nightly-cu130", "nightly-cu130"), ("py313-cu124", "cu124"),
        ("py312-bare", "none"), ("py311-torch251", "cu121"), ("types", "cpu"), ("train", "cpu"), ("", "cpu"),
    ],
)  # fmt: skip
def test_the_environments_name_says_which_build(environment: str, variant: str) -> None:
    assert torch_first.variant_of(environment) == variant


def test_a_name_that_ends_in_no_variant_is_an_error_and_never_the_cpu(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installer, "pip", pip := Pip())
    assert installer.main(["--for", "py312-cu131", "torch>=2.5"]) == 2
    assert "there is no variant 'cu131'" in capsys.readouterr().err
    assert pip.calls == []


def test_what_is_in_the_environment_does_not_outrank_the_name(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMBIDEX_VARIANT", "cpu")
    monkeypatch.setattr(installer, "pip", pip := Pip())
    assert installer.main(["--for", "py311-cu130", "torch>=2.5"]) == 0
    assert pip.calls[0][-1] == "torch==2.13.0+cu130"


# -- nightlies: frozen, floating, pinned -------------------------------------------------------------------------------


def pinned(installer: ModuleType, wheel: bytes) -> None:
    installer.PINS.mkdir()
    pin = {"version": "9.dev20300101+cu130", "sha256": hashlib.sha256(wheel).hexdigest(), "git": "abc"}
    (installer.PINS / "nightly-cu130.json").write_text(json.dumps(pin), "utf-8")


def test_a_frozen_nightly_is_the_rows_and_without_a_pin_the_other_floats(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "pip", pip := Pip())
    assert installer.main(["--for", "py311-nightly-cu124", "torch"]) == 0
    assert "torch==2.7.0.dev20250310+cu124" in pip.calls[0]
    assert installer.main(["--for", "py311-nightly-cu130", "torch"]) == 0
    assert "torch" in pip.calls[2]
    for call in (pip.calls[0], pip.calls[2]):
        assert "--pre" in call
        assert "/whl/nightly/cu1" in call[call.index("--index-url") + 1]


def test_a_pinned_nightly_is_installed_from_the_very_bytes_that_were_pinned(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned(installer, b"the wheel")
    monkeypatch.setattr(installer, "pip", pip := Pip(wheel=b"the wheel"))
    assert installer.main(["--for", "py311-nightly-cu130", "torch"]) == 0
    assert "torch==9.dev20300101+cu130" in pip.calls[0]
    assert pip.calls[1][-1].endswith("torch-9.dev20300101+cu130-cp311-none-any.whl")


def test_the_same_name_with_other_bytes_is_refused(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pinned(installer, b"the wheel")
    monkeypatch.setattr(installer, "pip", pip := Pip(wheel=b"uploaded again"))
    assert installer.main(["--for", "py311-nightly-cu130", "torch"]) == 2
    assert "is not the file that was pinned" in capsys.readouterr().err
    assert len(pip.calls) == 1, "nothing was installed"


def test_floating_leaves_the_pin_alone_and_pinned_without_one_is_an_error(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installer, "pip", pip := Pip())
    monkeypatch.setenv("AMBIDEX_NIGHTLY", "pinned")
    assert installer.main(["--for", "py311-nightly-cu130", "torch"]) == 2
    assert "python tools/nightly.py pin nightly-cu130" in capsys.readouterr().err
    pinned(installer, b"the wheel")
    monkeypatch.setenv("AMBIDEX_NIGHTLY", "floating")
    assert installer.main(["--for", "py311-nightly-cu130", "torch"]) == 0
    assert "torch" in pip.calls[0]


# -- releases ------------------------------------------------------------------------------------------------------------


def test_torch_comes_first_and_from_a_folder_of_wheels_without_asking_any_index(installer, monkeypatch):
    monkeypatch.setattr(installer, "pip", pip := Pip())
    assert installer.main(["torch>=2.5", "numpy"]) == 0
    assert pip.calls[0][-1] == "torch==2.13.0+cpu"
    assert "--no-index" in pip.calls[0]
    assert pip.calls[1] == ("torch>=2.5", "numpy")


def test_where_no_wheel_lies_ready_the_rows_own_index_is_asked(installer, monkeypatch):
    monkeypatch.setattr(installer, "pip", pip := Pip(fails=1))
    assert installer.main(["torch>=2.5"]) == 0
    index = pip.calls[1][pip.calls[1].index("--index-url") + 1]
    assert index.endswith("/whl/cpu")


@pytest.mark.parametrize(("index", "asked"), [("", False), ("file:///mirror", True)])
def test_the_index_is_replaced_or_emptied_by_one_variable(installer, monkeypatch, index, asked):
    monkeypatch.setenv("AMBIDEX_TORCH_INDEX", index)
    monkeypatch.setattr(installer, "pip", pip := Pip(fails=1))
    assert installer.main(["torch>=2.5"]) == 0
    assert ("--index-url" in pip.calls[1]) == asked
    assert (index in pip.calls[1]) == asked


def test_on_macos_the_pin_has_no_local_tag(installer, monkeypatch):
    monkeypatch.setattr(installer.sys, "platform", "darwin")
    monkeypatch.setattr(installer, "pip", pip := Pip())
    assert installer.main(["torch>=2.5"]) == 0
    assert pip.calls[0][-1] == "torch==2.13.0"


def test_torch_that_is_there_is_left_alone_and_packages_without_it_are_installed_as_they_are(
    installer, monkeypatch
):
    monkeypatch.setattr(installer, "installed", lambda: "2.13.0+cpu")
    monkeypatch.setattr(installer, "pip", pip := Pip())
    assert installer.main(["torch>=2.5", "numpy"]) == 0
    assert installer.main(["ruff"]) == 0
    assert pip.calls == [("torch>=2.5", "numpy"), ("ruff",)]


def test_a_cuda_build_from_the_default_index_bears_no_tag_and_brings_its_libraries(installer, monkeypatch):
    monkeypatch.setenv("AMBIDEX_VARIANT", "cu124")
    monkeypatch.setenv("AMBIDEX_TORCH_INDEX", "")
    monkeypatch.setattr(installer, "pip", pip := Pip(fails=1))
    assert installer.main(["torch>=2.5"]) == 0
    # Three equals signs: a 2.6.0+cpu that lies in pip's find-links is not what is wanted.
    assert pip.calls[1] == ("torch===2.6.0",)


def test_none_leaves_torch_out_and_an_unknown_variant_is_an_error(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "pip", pip := Pip())
    monkeypatch.setenv("AMBIDEX_VARIANT", "none")
    assert installer.main(["torch>=2.5", "numpy"]) == 0
    assert pip.calls == [("numpy",)]
    monkeypatch.setenv("AMBIDEX_VARIANT", "cu999")
    assert installer.main(["torch>=2.5"]) == 2
    assert "cu999" in capsys.readouterr().err


def test_torch_that_cannot_be_had_ends_in_a_sentence(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "pip", Pip(fails=9))
    assert installer.main(["torch>=2.5", "numpy"]) != 0
    error = capsys.readouterr().err
    assert "AMBIDEX_TORCH_INDEX" in error
    assert "PIP_FIND_LINKS" in error
