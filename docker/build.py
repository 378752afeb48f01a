#!/usr/bin/env python3
"""Build the image of one variant, and write what is really inside onto it as labels.

    python3 docker/build.py cpu                  ambidex:cpu
    python3 docker/build.py cu124 --tag mine     another name
    python3 docker/build.py cpu --offline        no network at all: everything has to be in docker/wheels

`docker compose build SERVICE` makes the same image from the same layers without the labels that can only be known afterwards:
a Dockerfile cannot label an image with what it finds inside. So this builds, reads the image's own record, and builds
once more from the cache with the record's words as labels. The settings of .env hold here too.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import check
from pin import read_row

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = ("BASE_IMAGE", "COMPILER", "TORCH_INDEX", "PYTHON_INDEX", "APT_MIRROR", "REVISION")
RECORD = "/opt/ambidex/record.json"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("variant", help="a row of src/ambidex/device/variants.toml")
    arguments.add_argument("--tag", help="the image's name (ambidex:VARIANT)")
    arguments.add_argument("--offline", action="store_true", help="give the build no network")
    asked = arguments.parse_args()
    tag = asked.tag or f"ambidex:{asked.variant}"
    row = read_row(ROOT / "src/ambidex/device/variants.toml", asked.variant)
    if wrong := [*check.engine_problems(), *check.builder_problems()]:
        raise SystemExit("\n".join(f"error: {sentence}" for sentence in wrong))
    build(row, tag, offline=asked.offline)
    record, plain = read_record(tag), image_id(tag)
    build(row, tag, offline=asked.offline, labels=labels(record))
    if image_id(tag) != plain:  # else a nameless twin stays behind each time; their layers are the same
        subprocess.run(["docker", "image", "rm", plain], capture_output=True, check=False)
    print(f"{tag}: torch {record['torch']['version']}, {' '.join(record['torch']['archs']) or 'CPU'}")


def build(row: dict, tag: str, *, offline: bool, labels: dict[str, str] | None = None) -> None:
    dockerfile = "docker/nightly.Dockerfile" if "cuda" in row else "docker/cpu.Dockerfile"
    command = ["docker", "build", "--file", dockerfile, "--tag", tag, "--build-arg", f"VARIANT={row['name']}"]
    command += ["--network", "none"] if offline else []
    for name in ARGUMENTS:
        value = setting(name)
        command += ["--build-arg", f"{name}={value}"] if value is not None else []
    if certificate := setting("CA_FILE"):
        command += ["--secret", f"id=ca,src={certificate}"]
    for name, value in (labels or {}).items():
        command += ["--label", f"{name}={value}"]
    done = subprocess.run([*command, "."], cwd=ROOT, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False)
    if done.returncode:
        raise SystemExit(
            f"error: {tag} was not built; the first line above that begins with `error:` says why"
        )


def setting(name: str) -> str | None:
    """From the environment, else from .env; None where neither has it, so that the Dockerfile's default holds."""
    return os.environ[name] if name in os.environ else check.from_env_file(name) or None


def image_id(tag: str) -> str:
    words = ["docker", "image", "inspect", "--format", "{{.Id}}", tag]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def read_record(tag: str) -> dict:
    """The record out of the image, without running anything in it."""
    made = subprocess.run(
        ["docker", "create", tag], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["docker", "cp", f"{made}:{RECORD}", folder], capture_output=True, check=True)
            return json.loads(Path(folder, "record.json").read_text("utf-8"))
    finally:
        subprocess.run(["docker", "rm", "--volumes", made], capture_output=True, check=False)


def labels(record: dict) -> dict[str, str]:
    """The record's few words that `docker inspect` should answer without starting anything."""
    torch = record["torch"]
    words = {
        "org.opencontainers.image.version": record["project"]["version"],
        "org.opencontainers.image.created": record["built"],
        "ambidex.torch.version": torch["version"],
        "ambidex.torch.git": torch["git"],
        "ambidex.torch.cuda": torch["cuda"],
        "ambidex.torch.archs": " ".join(torch["archs"]),
        "ambidex.torch.library": torch["library_sha256"],
        "ambidex.nightly": record.get("nightly_date"),
        "ambidex.python": record["python"],
    }
    return {name: value for name, value in words.items() if value}


if __name__ == "__main__":
    main()
