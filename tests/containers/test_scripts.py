"""The scripts that the Dockerfiles run, without an engine: what is installed from where, and what the gate finds wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .engine import ROOT

CPU = "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"
ROW = {"name": "cpu", "channel": "stable", "torch": "2.13.0", "local": "cpu", "index": "https://index/cpu"}
NIGHTLY = {
    "name": "night",
    "channel": "nightly",
    "local": "cu130",
    "cuda": "13.0",
    "index": "https://index/cu130",
}


class Pip:
    """Stands for pip: remembers what it was asked, and succeeds with an index only if told so."""

    def __init__(self, *, local: bool = True, index: bool = True) -> None:
        self.local, self.index = local, index
        self.asked: list[list[str]] = []

    def __call__(self, arguments: list[str], **_: Any) -> bool:
        self.asked.append(arguments)
        return self.local if "--no-index" in arguments else self.index


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/pin and /wheels of a build, in a folder; every wheel fits this Python unless it says win."""
    import install

    (tmp_path / "pin").mkdir()
    (tmp_path / "wheels").mkdir()
    (tmp_path / "pin/row.json").write_text(json.dumps(ROW), "utf-8")
    (tmp_path / "pin/requirements.txt").write_text("numpy==2.4.6\n", "utf-8")
    monkeypatch.setattr(install, "PIN", tmp_path / "pin")
    monkeypatch.setattr(install, "WHEELS", tmp_path / "wheels")
    monkeypatch.setattr(install, "fits_here", lambda wheel: "win" not in wheel.name)
    for name in ("TORCH_INDEX", "PYTHON_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def asked(
    place: Path, monkeypatch: pytest.MonkeyPatch, pip: Pip, row: dict[str, Any] | None = None
) -> list[list[str]]:
    import install

    if row is not None:
        (place / "pin/row.json").write_text(json.dumps(row), "utf-8")
    monkeypatch.setattr(install, "run_pip", pip)
    install.install_torch()
    return pip.asked


def test_a_full_folder_asks_no_index(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CPU, "numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl"):
        (place / "wheels" / name).touch()
    (first,) = asked(place, monkeypatch, Pip())
    assert "--no-index" in first
    assert first[-1].endswith(CPU)


def test_another_variant_s_torch_is_never_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To pip 2.13.0+cpu is a fine 2.13.0, and a fine --pre torch too."""
    (place / "wheels" / CPU).touch()
    for row, wanted in (
        ({**ROW, "local": "cu130", "cuda": "13.0"}, "torch==2.13.0+cu130"),
        (NIGHTLY, "torch"),
    ):
        last = asked(place, monkeypatch, Pip(local=False), row)[-1]
        assert last[-1] == wanted
        assert last[:2] == ["--index-url", row["index"]]


def test_a_living_nightly_is_taken_from_its_channel_s_wheels(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in ("20261119", "20261120"):
        (place / f"wheels/torch-2.15.0.dev{day}+cu130-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    (place / "wheels/torch-2.15.0.dev20261121+cu132-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    (place / "wheels/numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    assert "dev20261120+cu130" in asked(place, monkeypatch, Pip(), NIGHTLY)[0][-1]


def test_a_mirror_takes_the_index_s_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_INDEX", "https://mirror/simple")
    last = asked(place, monkeypatch, Pip(local=False))[-1]
    assert last[:2] == ["--index-url", "https://mirror/simple"]
    assert last[-1] == "torch==2.13.0", "the default index has no +cpu in its names"


def test_an_index_that_has_nothing_is_one_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stopped:
        asked(place, monkeypatch, Pip(local=False, index=False), NIGHTLY)
    sentence = str(stopped.value)
    assert sentence.startswith("error: torch could not be installed")
    assert "https://index/cu130 did not give it" in sentence
    assert "python3 docker/fetch.py night" in sentence
    assert "\n" not in sentence


def test_wheels_for_another_platform_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = "torch-2.13.0+cpu-cp311-cp311-win_amd64.whl"
    (place / "wheels" / wrong).touch()
    with pytest.raises(SystemExit) as stopped:
        asked(place, monkeypatch, Pip(local=False, index=False))
    assert f"{wrong} there is for another Python or platform than Python" in str(stopped.value)


def test_a_company_s_certificate_is_trusted_besides_the_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import install

    monkeypatch.setattr(install, "SECRET", tmp_path / "ca.pem")
    assert "ca-bundle.pem" not in install.trusting_environment().get("PIP_CERT", "")
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\nours\n", "utf-8")
    bundle = Path(install.trusting_environment()["PIP_CERT"]).read_text("utf-8")
    assert "ours" in bundle
    assert bundle.count("BEGIN CERTIFICATE") > 50


# -- the gate ------------------------------------------------------------------------------------------------------------


def found(**changes: Any) -> dict[str, Any]:
    torch = {"version": "2.13.0+cpu", "cuda": None, "archs": [], **changes}
    return {"torch": torch, "packages": {"numpy": {"version": "2.4.6"}}}


def test_the_gate_lets_the_right_content_through() -> None:
    import record

    assert record.differences(ROW, found(), {"numpy": "2.4.6"}) == []
    living = found(version="2.15.0.dev20261120+cu130", cuda="13.0", archs=["sm_120"])
    assert record.differences(NIGHTLY, living, {}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "2.12.0+cpu"}, "torch is 2.12.0, the row says 2.13.0"),
        ({"version": "2.13.0+cu130"}, "torch is the cu130 build, the row says cpu"),
        ({"version": "2.13.0"}, "torch is the untagged build, the row says cpu"),
        ({"cuda": "13.0"}, "torch was built for CUDA 13.0, the row says none"),
    ],
)
def test_the_gate_names_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    import record

    assert said in record.differences(ROW, found(**changes), {})


def test_the_gate_finds_nvidia_s_packages_other_archs_and_moved_pins() -> None:
    import record

    wrong = found()
    wrong["packages"]["nvidia-cublas-cu12"] = {"version": "12.4"}
    assert "a CPU image holds nvidia-cublas-cu12 (1 packages of NVIDIA's)" in record.differences(
        ROW, wrong, {}
    )
    cuda = {**ROW, "local": "cu124", "torch": "2.6.0", "cuda": "12.4", "archs": ["sm_50", "sm_90"]}
    other = found(version="2.6.0+cu124", cuda="12.4", archs=["sm_90"])
    assert record.differences(cuda, other, {"numpy": "2.4.5", "sympy": "1.14.0"}) == [
        "torch has code for sm_90, the row says sm_50 sm_90",
        "numpy is 2.4.6, the pin says 2.4.5",
        "sympy is missing, the pin says 1.14.0",
    ]


def test_a_nightly_row_wants_a_dated_build() -> None:
    import record

    assert any(
        "has a date" in line
        for line in record.differences(NIGHTLY, found(version="2.15.0+cu130", cuda="13.0"), {})
    )
    assert record.nightly_date("2.7.0.dev20250310") == "2025-03-10"


# -- one row, cut out ------------------------------------------------------------------------------------------------------


def test_one_row_alone_keys_the_layer(tmp_path: Path) -> None:
    import pin

    table = ROOT / "src/ambidex/device/variants.toml"
    changed = tmp_path / "variants.toml"
    changed.write_text(table.read_text("utf-8").replace("[cu121]", "# Said otherwise.\n[cu121]"), "utf-8")
    for name, source in (("a", table), ("b", changed)):
        pin.main("cpu", str(source), str(ROOT / "docker/requirements"), str(tmp_path / name))
    for file in ("row.json", "requirements.txt", "test.txt"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("script", ["pin.py", "build.py", "fetch.py"])
def test_an_unknown_variant_is_one_sentence(script: str, tmp_path: Path) -> None:
    words = ["nightly-cu131"]
    if script == "pin.py":
        words += [
            str(ROOT / "src/ambidex/device/variants.toml"),
            str(ROOT / "docker/requirements"),
            str(tmp_path),
        ]
    done = subprocess.run(
        [sys.executable, ROOT / "docker" / script, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "there is no variant 'nightly-cu131'" in done.stderr
    assert "type: GPU_VARIANT=nightly-cu130 docker compose build train-gpu-nightly" in done.stderr
    assert "Traceback" not in done.stderr


# -- what the host lacks ---------------------------------------------------------------------------------------------------


class Host:
    """Stands for the host's commands: what each of them answers."""

    def __init__(self, **answers: str | None) -> None:
        self.answers = answers

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        name = "_".join(word for word in command[1:3] if not word.startswith("-")) or command[0]
        answer = self.answers.get(name.replace("-", "_"), "")
        if answer is None:
            return subprocess.CompletedProcess(command, 1, "", "Cannot connect to the Docker daemon")
        return subprocess.CompletedProcess(command, 0, answer, "")


@pytest.mark.parametrize(
    ("asked_for", "answers", "said", "typed"),
    [
        ("engine", {"version": None}, "no container engine answers", "sudo systemctl start docker"),
        ("engine", {"version": "19.03.1"}, "is 19.03.1, and 20.10 or newer is wanted", "update Docker Engine"),
        ("builder", {"docker": "Docker version 28.2.2, build e6534b4", "buildx_version": None}, "no buildx plugin",
         "sudo apt-get install docker-buildx-plugin"),
        ("compose", {"compose_version": None}, "docker compose is missing", "sudo apt-get install docker-compose-plugin"),
        ("compose", {"compose_version": "2.12.2"}, "is 2.12.2, and 2.20 or newer", "update docker-compose-plugin"),
        ("gpu", {"nvidia_smi": None}, "no NVIDIA GPU", "docker compose run --rm train-cpu"),
        ("gpu", {"nvidia_smi": "GPU 0: some", "info": '{"Runtimes": {"runc": {}}}'}, "no nvidia runtime",
         "sudo nvidia-ctk runtime configure --runtime=docker"),
    ],
)  # fmt: skip
def test_what_a_host_lacks_is_one_sentence(
    asked_for: str, answers: dict[str, str | None], said: str, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import check

    monkeypatch.setattr(check, "ask", Host(**answers))
    (sentence,) = getattr(check, f"{asked_for}_problems")()
    assert said in sentence
    assert typed in sentence
    assert "\n" not in sentence


def test_no_docker_at_all_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import check

    monkeypatch.setattr(check.shutil, "which", lambda _: None)
    (sentence,) = check.problems()
    assert "sudo apt-get install docker.io" in sentence


def test_runs_of_somebody_else_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import check

    tmp_path.chmod(0o755)
    monkeypatch.setenv("RUNS", str(tmp_path))
    monkeypatch.setenv("RUN_AS", "12345")
    (sentence,) = check.folder_problems()
    assert f"type echo RUN_AS={tmp_path.stat().st_uid} >> .env" in sentence
    monkeypatch.setenv("RUN_AS", str(tmp_path.stat().st_uid))
    assert check.folder_problems() == []
