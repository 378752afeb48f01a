"""compose.yaml as Compose itself understands it. No engine is needed, only its client."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from docs_commands import documented

from .engine import ROOT, ask, config, good

pytestmark = [pytest.mark.containers, pytest.mark.usefixtures("engine")]

TRAINING = ("train-cpu", "train-gpu-nightly", "train-gpu", "train-bridge")
# What the training services may differ in; everything else has to be the same.
MAY_DIFFER = {"image", "build", "profiles", "deploy", "environment"}
ENVIRONMENT_MAY_DIFFER = {"AMBIDEX_DEVICE", "AMBIDEX_RUNS"}


# What `docker compose --profile NAME up` starts, and with no profile.
STARTS: dict[tuple[str, ...], set[str]] = {
    (): set(),
    ("train",): {"train-cpu"},
    ("doctor",): {"doctor"},
    ("nodes",): {"node-0", "node-1"},
    ("compare",): {"leg-cpu", "leg-bridge", "compare"},
    ("gpu",): {"train-gpu-nightly", "train-gpu", "train-bridge", "leg-gpu", "leg-bridge", "tests-gpu"},
    ("tests",): {"tests"},
}


@pytest.mark.parametrize("profiles", STARTS)
def test_a_profile_starts_what_is_its_own_and_nothing_else(profiles: tuple[str, ...]) -> None:
    assert set(config(*profiles)["services"]) == STARTS[profiles]


def test_every_service_is_started_by_some_profile() -> None:
    assert set(config("*")["services"]) == set().union(*STARTS.values())


def test_without_a_profile_and_a_name_up_says_so_and_starts_nothing() -> None:
    done = ask("docker", "compose", "-p", "ambidex-test-nothing", "up")
    assert done.code == 1
    assert "no service selected" in done.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run --rm train-cpu", "Volume ambidex-test-named_cache  Created"),
        ("run --rm doctor", "Volume ambidex-test-named_cache  Created"),
        ("build train-cpu", "train-cpu  Built"),
        ("build train-gpu", "train-gpu  Built"),
        ("up compare", "compare-1  Created"),
    ],
)
def test_a_service_that_is_named_needs_no_profile(words: str, said: str) -> None:
    done = ask("docker", "compose", "-p", "ambidex-test-named", "--dry-run", *words.split())
    assert said in done.text, str(done)


@pytest.mark.parametrize("profiles", [*STARTS, ("gpu", "compare"), ("*",)])
def test_every_profile_is_valid_and_only_gpu_asks_for_one(profiles: tuple[str, ...]) -> None:
    services = config(*profiles)["services"]
    asking = {name for name, service in services.items() if "deploy" in service}
    everything = {"train-gpu-nightly", "train-gpu", "leg-gpu", "tests-gpu"}
    assert asking == (everything if {"gpu", "*"} & set(profiles) else set())


def test_training_services_differ_only_where_they_should() -> None:
    services = config("*")["services"]
    first = services["train-cpu"]
    for name in TRAINING[1:]:
        other = services[name]
        assert {key for key in first.keys() | other.keys() if first.get(key) != other.get(key)} <= MAY_DIFFER
        assert {
            key
            for key in first["environment"].keys() | other["environment"].keys()
            if first["environment"].get(key) != other["environment"].get(key)
        } <= ENVIRONMENT_MAY_DIFFER
        build = {**first["build"], "args": {**first["build"]["args"]}}
        build["args"]["VARIANT"] = other["build"]["args"]["VARIANT"]
        ours = {key: value for key, value in build.items() if key not in ("labels", "dockerfile")}
        assert ours == {k: v for k, v in other["build"].items() if k not in ("labels", "dockerfile")}
    places = [services[name]["environment"]["AMBIDEX_RUNS"] for name in TRAINING]
    assert len(set(places)) == len(places), "two legs would continue each other's runs"


def test_every_service_is_locked_down() -> None:
    for name, service in config("*", RUN_AS="")["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert service["user"] == "1000:0", name
        assert any("exec" in mount for mount in service["tmpfs"]), name
        for mount in service["volumes"]:
            if mount["type"] == "bind":  # an engine that makes a missing folder makes it as root
                assert not mount.get("bind", {}).get("create_host_path"), name


def test_training_has_memory_to_share_and_time_to_stop() -> None:
    services = config("*", CPUS="1.5")["services"]
    for name in [*TRAINING, "leg-cpu", "leg-bridge", "leg-gpu"]:
        service = services[name]
        assert service["entrypoint"] == ["ambidex", "train"], name
        assert service["stop_grace_period"] == "1m30s", name
        assert int(service["shm_size"]) >= 2**30, name
        assert float(service["cpus"]) == 1.5, name
        assert service["environment"]["AMBIDEX_RESUME"] == "true", name


def test_legs_queue_up_and_compare_works_with_two_or_three() -> None:
    services = config("*")["services"]
    assert set(services["leg-bridge"]["depends_on"]) == {"leg-cpu"}
    assert set(services["leg-gpu"]["depends_on"]) == {"leg-bridge"}
    waits = services["compare"]["depends_on"]
    assert {name: wait["required"] for name, wait in waits.items()} == {
        "leg-cpu": True, "leg-bridge": True, "leg-gpu": False,
    }  # fmt: skip
    assert {wait["condition"] for wait in waits.values()} == {"service_completed_successfully"}
    assert not any(services[name].get("depends_on") for name in TRAINING), "a training would start another"


@pytest.mark.parametrize("variant", ["nightly-cu130", "nightly-cu124", "cu126"])
def test_gpu_variant_names_image_and_build(variant: str) -> None:
    services = config("*", GPU_VARIANT=variant)["services"]
    for name in ("train-gpu-nightly", "train-bridge", "leg-gpu", "leg-bridge"):
        assert services[name]["image"] == f"ambidex:{variant}"
        assert services[name]["build"]["args"]["VARIANT"] == variant
    assert services["train-gpu"]["image"] == "ambidex:cu130"


def test_env_example_lists_every_variable() -> None:
    table = good(ask("docker", "compose", "config", "--variables"))
    asked = {line.split()[0] for line in table.splitlines()[1:] if line.strip()}
    listed = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE))
    assert set(listed) == asked
    defaults = dict(re.findall(r"\$\{([A-Z_]+):?-([^}]*)\}", (ROOT / "compose.yaml").read_text("utf-8")))
    assert listed == defaults


def test_the_line_that_the_page_writes_into_env_is_what_compose_builds_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BASE_IMAGE", raising=False)
    line = documented("echo BASE_IMAGE=local/python:3.11-bookworm >> .env")
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    words = [
        "docker",
        "compose",
        "--env-file",
        tmp_path / ".env",
        "--profile",
        "train",
        "config",
        "--format",
        "json",
    ]
    built = json.loads(good(ask(*words)))["services"]["train-cpu"]["build"]["args"]
    assert built["BASE_IMAGE"] == "local/python:3.11-bookworm"
