"""A real CUDA image, of the row cu124: about 6 GB, so it has a label of its own and is run by name.

    tox run -e containers -- -m wheels

Where the row's index is out of reach, TORCH_INDEX names another: the default package index has 2.6.0 as this very build.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from .engine import ROOT, TINY, Project, docker, good, record

pytestmark = [pytest.mark.containers, pytest.mark.wheels, pytest.mark.timeout(1800)]

ARCHS = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"
SETTINGS = {"GPU_VARIANT": "cu124"}


@pytest.fixture(scope="module")
def cuda_image(engine: None) -> str:
    done = subprocess.run(
        [sys.executable, "docker/build.py", "cu124"], cwd=ROOT, env=dict(os.environ), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1700, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return "ambidex:cu124"


def test_record_and_labels_say_what_it_has_code_for(cuda_image: str) -> None:
    found = record(cuda_image)
    labels = json.loads(good(docker("image", "inspect", "--format", "{{json .Config.Labels}}", cuda_image)))
    assert found["torch"]["version"] == labels["ambidex.torch.version"] == "2.6.0+cu124"
    assert found["torch"]["cuda"] == labels["ambidex.torch.cuda"] == "12.4"
    assert " ".join(found["torch"]["archs"]) == labels["ambidex.torch.archs"] == ARCHS


def test_the_doctor_inside_names_the_image_for_sm_120(cuda_image: str) -> None:
    here = docker("run", "--rm", "--network=none", cuda_image, "doctor")
    assert here.code == 22, "a container that was given no GPU"
    assert "cu124: torch 2.6.0+cu124, code for sm_50 to sm_90" in here.text
    asked = docker("run", "--rm", "--network=none", cuda_image, "doctor", "--gpu", "sm_120", "--json")
    report = json.loads(asked.text)
    assert asked.code == report["exit_code"] == 20
    assert report["cause"]["id"] == "ARCH_NONE"
    assert report["fixes"][0]["commands"] == ["docker compose run --rm train-gpu"]
    print(docker("run", "--rm", "--network=none", cuda_image, "doctor", "--gpu", "sm_120").text)


def test_two_legs_on_the_same_prepared_data(cuda_image: str, project: Project) -> None:
    """The CPU image and the CUDA image on the CPU, one after another: the same text, the same first weights."""
    project.settings.update(SETTINGS)
    cards = {}
    for service, place in (("train-cpu", "cpu"), ("train-bridge", "bridge")):
        print(good(project.compose("run", "--rm", service, *TINY, "--steps", "20", CPUS="1")))
        (run,) = (project.runs / place).glob("nano-*")
        cards[place] = json.loads((run / "card.json").read_text("utf-8"))
    cpu, bridge = cards["cpu"], cards["bridge"]
    assert cpu["data"]["hash"] == bridge["data"]["hash"]
    assert cpu["weights_sha256"] == bridge["weights_sha256"]
    assert cpu["config"] == bridge["config"]
    assert (cpu["build"]["torch"], bridge["build"]["torch"]) == ("2.13.0+cpu", "2.6.0+cu124")
    assert cpu["device"]["name"] == bridge["device"]["name"] == "cpu"
