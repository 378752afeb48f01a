"""The first command of every environment: whatever is not what the name says is a failure."""

from __future__ import annotations

from typing import Any

import prove_build
import pytest
import torch_first

ARCHS = {name: torch_first.row_of(name).get("archs", []) for name in ("cpu", "cu124", "cu130", "cu121")}


def found(version: str, cuda: str | None, archs: list[str], git: str = "abc") -> dict[str, Any]:
    return {"torch": {"version": version, "cuda": cuda, "archs": archs, "git": git}, "packages": {}}


@pytest.fixture(autouse=True)
def on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_build.sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("variant", "version", "cuda"),
    [("cpu", "2.13.0+cpu", None), ("cu124", "2.6.0+cu124", "12.4"), ("cu130", "2.13.0+cu130", "13.0")],
)
def test_the_build_that_a_name_says_is_proved(variant: str, version: str, cuda: str | None) -> None:
    assert prove_build.wrong_torch(variant, found(version, cuda, ARCHS[variant])) == []


@pytest.mark.parametrize(
    ("variant", "version", "cuda", "archs"),
    [
        ("cu130", "2.13.0+cpu", None, []),  # a CPU wheel in find-links is a fine 2.13.0 to pip
        ("cpu", "2.13.0+cu130", "13.0", ARCHS["cu130"]),
        ("cu124", "2.7.0+cu124", "12.4", ARCHS["cu124"]),
        ("cu124", "2.6.0+cu124", "12.4", ["sm_90"]),
        ("nightly-cu124", "2.6.0+cu124", "12.4", ARCHS["cu124"]),  # a release is no nightly
        ("nightly-cu130", "2.15.0+cu130", "13.0", []),
        ("nightly-cu130", "2.16.0.dev20261120+cu126", "12.6", []),
    ],
)
def test_any_other_build_is_not(variant: str, version: str, cuda: str | None, archs: list[str]) -> None:
    assert prove_build.wrong_torch(variant, found(version, cuda, archs))


def test_a_pinned_nightly_has_to_be_of_the_pinned_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch_first, "pin_of", lambda _: {"version": "2.16.0.dev20261120+cu130", "git": "abc"}
    )
    good = found("2.16.0.dev20261120+cu130", "13.0", [])
    assert prove_build.wrong_torch("nightly-cu130", good) == []
    again = found("2.16.0.dev20261120+cu130", "13.0", [], git="def")
    assert prove_build.wrong_torch("nightly-cu130", again) == ["torch was built from def, the pin says abc"]


def test_a_name_that_says_a_version_wants_that_version_of_any_build() -> None:
    assert prove_build.wrong_version("py311-torch251", found("2.5.1+cu124", "12.4", [])) == []
    assert prove_build.wrong_version("py311-torch251", found("2.6.0+cu124", "12.4", [])) == ["torch is 2.6.0"]


def test_another_python_than_the_name_says_is_wrong() -> None:
    assert prove_build.wrong_python("py312-cpu", (3, 12)) == []
    assert prove_build.wrong_python("py312-cpu", (3, 11)) == ["this is Python 3.11"]


def test_a_name_without_torch_wants_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch_is_there = prove_build.importlib.util.find_spec("torch") is not None
    monkeypatch.setattr(prove_build, "wrong_python", lambda *_: [])
    monkeypatch.setattr(prove_build, "wrong_project", list)
    assert prove_build.main("py312-bare") == torch_is_there
    assert ("torch can be imported" in capsys.readouterr().err) == torch_is_there
