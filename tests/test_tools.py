"""The tools that tox and CI run."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[1] / "tools"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(**changes: object) -> dict[str, object]:
    good = {"result": {"success": True, "exit_code": 0, "duration": 1.0}, "test": [{"retcode": 0}]}
    return {"testenvs": {"lint": good, "cpu": {**good, **changes}}}


def test_a_run_in_which_everything_required_passed_has_no_complaint():
    assert tool("ran").complaints(result(), ["lint", "cpu"]) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"result": {"success": False, "skipped": True}},
        {"skipped": True},
        {"result": {"success": False}},
        {"test": []},
    ],
)
def test_a_required_environment_that_was_skipped_failed_or_ran_nothing_is_a_complaint(changes):
    assert len(tool("ran").complaints(result(**changes), ["lint", "cpu"])) == 1


def test_a_required_environment_that_is_not_in_the_file_is_a_complaint(tmp_path, capsys):
    file = tmp_path / "tox.json"
    file.write_text(json.dumps(result()))
    assert tool("ran").main([str(file), "lint", "cpu", "gone"]) == 1
    assert "gone" in capsys.readouterr().err


class Pip:
    """Records what pip was asked for, and lets the first few calls fail."""

    def __init__(self, fails: int = 0) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.fails = fails

    def __call__(self, *words: str, quiet: bool = False) -> int:
        self.calls.append(words)
        return 1 if len(self.calls) <= self.fails else 0


@pytest.fixture
def installer(monkeypatch):
    module = tool("torch_first")
    monkeypatch.setattr(module, "installed", lambda: "")
    monkeypatch.setattr(module.sys, "platform", "linux")
    for name in ("AMBIDEX_VARIANT", "AMBIDEX_TORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return module


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
    assert pip.calls[1] == ("torch==2.6.0",)


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


def test_the_page_of_errors_is_what_the_doctors_table_says():
    assert tool("gpu_errors").main(["--check"]) == 0


def test_a_tag_is_a_release_only_where_every_place_says_its_version(tmp_path):
    release = tool("release")
    for name, says in {"pyproject.toml": 'version = "1.2.3"', "src/ambidex/__init__.py": '__version__ = "1.2.3"',
                       "CITATION.cff": "version: 1.2.3", "CHANGELOG.md": "# Changelog\n\n## 1.2.3\n\n## 1.2.2"}.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(says + "\n")
    assert release.disagreements("v1.2.3", tmp_path) == []
    assert len(release.disagreements("v1.2.4", tmp_path)) == 4
    (tmp_path / "CHANGELOG.md").write_text("## 1.2.3 (unreleased)\n")
    assert len(release.disagreements("v1.2.3", tmp_path)) == 1


def test_an_image_is_named_by_its_variant_and_the_torch_inside():
    release = tool("release")
    assert release.image_tags("cpu") == ["cpu", "cpu-torch2.13.0", f"{release.version()}-cpu-torch2.13.0"]
    assert release.image_tags("nightly-cu130") == ["nightly-cu130"]
