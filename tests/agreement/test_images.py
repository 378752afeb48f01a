"""compose.yaml, the Dockerfiles and the pages against the table of variants. No engine is needed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from agreement_files import ROOT, ROWS, read_yaml, table, text

OFFERED = {name for name, row in ROWS.items() if row["state"] != "known"}
BY_DEFAULT = re.compile(r"\$\{GPU_VARIANT:-([^}]+)\}")


def services() -> dict[str, dict[str, Any]]:
    return dict(read_yaml("compose.yaml")["services"])


def resolved(value: str) -> str:
    """`${GPU_VARIANT:-nightly-cu130}` -> `nightly-cu130`."""
    return BY_DEFAULT.sub(r"\1", value)


def build_of(service: dict[str, Any]) -> dict[str, Any]:
    return dict(service.get("build") or services()[service["extends"]]["build"])


@pytest.mark.parametrize("name", [name for name in services() if "image" in services()[name]])
def test_a_service_s_image_is_named_for_the_row_that_it_is_built_from(name: str) -> None:
    service = services()[name]
    variant = resolved(service["build"]["args"]["VARIANT"])
    assert variant in ROWS
    assert resolved(service["image"]).removesuffix("-tests") == f"ambidex:{variant}"
    file = "docker/nightly.Dockerfile" if "cuda" in ROWS[variant] else "docker/cpu.Dockerfile"
    assert service["build"]["dockerfile"] == file
    if label := service["build"].get("labels", {}).get("ambidex.torch.version"):
        assert label == f"{ROWS[variant]['torch']}+{ROWS[variant]['local']}"


@pytest.mark.parametrize("name", [name for name in services() if name.startswith("train-")])
def test_a_service_trains_on_what_its_name_says(name: str) -> None:
    service = services()[name]
    variant = resolved(service["build"]["args"]["VARIANT"])
    device = service["environment"]["AMBIDEX_DEVICE"]
    assert device == ("cuda" if "gpu" in name else "cpu")
    assert ("deploy" in service) == (device == "cuda")
    assert ("cuda" in ROWS[variant]) == (name != "train-cpu")
    assert ("nightly" in variant) == (name in ("train-gpu-nightly", "train-bridge"))


def test_the_default_gpu_build_is_one_living_nightly_everywhere() -> None:
    defaults = set(BY_DEFAULT.findall(text("compose.yaml")))
    assert len(defaults) == 1
    variant = defaults.pop()
    assert (ROWS[variant]["channel"], ROWS[variant]["state"]) == ("nightly", "living")
    assert f"ARG VARIANT={variant}\n" in text("docker/nightly.Dockerfile")
    assert f"#GPU_VARIANT={variant}\n" in text(".env.example")


@pytest.mark.parametrize("kind", ["cpu", "nightly"])
def test_a_dockerfile_s_default_and_its_examples_are_rows(kind: str) -> None:
    found = text(f"docker/{kind}.Dockerfile")
    (default,) = re.findall(r"^ARG VARIANT=(.+)$", found, re.MULTILINE)
    assert default in ROWS
    assert ("cuda" in ROWS[default]) == (kind == "nightly")
    assert set(re.findall(r"GPU_VARIANT=(\S+)", found)) <= set(ROWS)
    base = re.findall(r"^ARG BASE_IMAGE=(.+)$", found, re.MULTILINE)
    assert base == re.findall(r"BASE_IMAGE: \$\{BASE_IMAGE:-(.+)\}", text("compose.yaml"))


def test_every_variant_that_a_service_builds_by_default_has_pinned_requirements_or_floats() -> None:
    for service in services().values():
        variant = resolved(build_of(service)["args"]["VARIANT"])
        if "torch" in ROWS[variant]:
            assert (ROOT / f"docker/requirements/{variant}.txt").exists(), variant


def test_the_pages_list_every_variant_that_is_offered_and_no_other() -> None:
    readme = table("README.md", "## In containers")
    page = table("docs/containers.md", "### What was run, and what was not")
    assert {name for name in readme if name in ROWS} == OFFERED
    assert {name for name in page if name in ROWS} == OFFERED
    for name in OFFERED:
        assert readme[name][0].split(",")[0] == page[name][0].split(",")[0], (
            f"{name}: run on one page and not on the other"
        )


def test_the_page_s_table_of_variants_is_the_table() -> None:
    page = table("docs/containers.md", "## Which variant")
    assert set(page) == OFFERED
    for name, (torch, cuda, archs, driver, state) in page.items():
        row = ROWS[name]
        assert torch == row.get("torch", "the newest"), name
        assert cuda == row.get("cuda", ""), name
        listed = row.get("archs", [])
        assert archs == (
            f"{listed[0]} to {listed[-1]}" if listed else "not in the table" if "cuda" in row else ""
        ), name
        assert driver == row.get("min_driver", {}).get("linux", ""), name
        assert state == row["state"], name


def test_the_page_s_table_of_services_is_compose_yaml() -> None:
    page = table("docs/containers.md", "## The services")
    there = services()
    assert set(page) == {name for name in there if not name.startswith("leg-")}
    for name in ("train-cpu", "train-gpu-nightly", "train-gpu", "train-bridge"):
        image, computes, profile, runs = page[name]
        service = there[name]
        variant = resolved(service["build"]["args"]["VARIANT"])
        assert f"`ambidex:{variant}`" in image or (
            "$GPU_VARIANT" in image and "GPU_VARIANT" in service["image"]
        ), name
        assert computes == ("GPU" if service["environment"]["AMBIDEX_DEVICE"] == "cuda" else "CPU"), name
        assert profile == "".join(f"`{word}`" for word in service.get("profiles", [])), name
        assert runs == f"`{service['environment']['AMBIDEX_RUNS'].removeprefix('/')}`", name


def profiles_of(service: dict[str, Any]) -> set[str]:
    """Compose adds up those of a service and of the one that it extends."""
    extended = services()[service["extends"]] if "extends" in service else {}
    return {*service.get("profiles", []), *extended.get("profiles", [])}


def test_no_service_starts_unasked_and_a_profile_other_than_gpu_is_one_thing() -> None:
    starts: dict[str, set[str]] = {}
    for name, service in services().items():
        assert profiles_of(service), f"{name} has no profile, so it would start beside whatever is started"
        for profile in profiles_of(service):
            starts.setdefault(profile, set()).add(name)
    assert starts.pop("gpu") >= {"train-gpu-nightly", "train-gpu", "leg-gpu", "tests-gpu"}
    assert starts == {
        "train": {"train-cpu"}, "doctor": {"doctor"}, "tests": {"tests"}, "nodes": {"node-0", "node-1"},
        "compare": {"leg-cpu", "leg-bridge", "compare"},
    }  # fmt: skip


NAMED = re.compile(r"docker compose (?:run|up|build)\b(?:\s+--build-arg\s+\S+|\s+--[a-z-]+)*\s*([\w-]*)")
# The one place that tells what happens without a name.
UNNAMED = re.compile(r"`docker compose (?:up` says `no service selected`|build` builds nothing)")


@pytest.mark.parametrize(
    "file", ["README.md", ".env.example", "compose.yaml", "docs", "docker", "src", ".ci", ".github"]
)
def test_no_page_and_no_message_builds_or_runs_without_a_name(file: str) -> None:
    """Every service has a profile, so `docker compose build` alone builds nothing, and does not say so."""
    kinds = {".md", ".py", ".yml", ".Dockerfile"}
    place = ROOT / file
    for path in [place] if place.is_file() else [path for path in place.rglob("*") if path.suffix in kinds]:
        said = re.sub(r"\s*\n#?\s*", " ", UNNAMED.sub("", path.read_text("utf-8")))
        for found in NAMED.finditer(said):
            assert found[1] in {*services(), "SERVICE"}, f"{path.relative_to(ROOT)}: {found[0]}"


@pytest.mark.parametrize("page", ["README.md", "docs/containers.md", "docs/testing.md", "CONTRIBUTING.md"])
def test_a_command_on_a_page_names_services_and_variants_that_are_there(page: str) -> None:
    found = text(page)
    flags = r"(?: --\S+(?: gpu)?)*"
    named = re.findall(rf"docker compose{flags} (?:run|up|build){flags} ([a-z][\w-]*)", found)
    assert set(named) <= set(services()), page
    assert set(re.findall(r"GPU_VARIANT=([\w-]+)", found)) <= set(ROWS), page
    assert set(re.findall(r"docker/(?:build|fetch)\.py ([a-z][\w-]*)", found)) <= set(ROWS), page
