#!/usr/bin/env python3
"""Whether this host can build and run the images: an engine, Compose, and for a GPU service its driver and toolkit.

    python3 docker/check.py                      the CPU services
    python3 docker/check.py train-gpu-nightly    a GPU service

Each thing that is missing is one sentence: what, what was found, what is wanted, what to type. Exit 0 if nothing is,
else 2. The container tests ask the same question before they begin.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

ENGINE_WANTED = (20, 10)  # the first with BuildKit's mounts and no experimental switch
COMPOSE_WANTED = (2, 20)  # the first with depends_on ... required: false
ROOT = Path(__file__).resolve().parent.parent


def problems(service: str = "train-cpu") -> list[str]:
    """Everything that is in the way of this service, nearest cause first."""
    docker = shutil.which("docker")
    if docker is None:
        return [
            "there is no docker on PATH, and Docker Engine 20.10 or newer is wanted: type "
            "sudo apt-get install docker.io (Debian, Ubuntu), or install Docker Desktop (macOS, Windows)"
        ]
    found = [*engine_problems(), *builder_problems(), *compose_problems()]
    if "gpu" in service:
        found += gpu_problems()
    return found + folder_problems()


def engine_problems() -> list[str]:
    done = ask("docker", "version", "--format", "{{.Server.Version}}")
    answer = done.stdout.strip()
    if done.returncode or not answer[:1].isdigit():
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        where = os.environ.get("DOCKER_HOST", "its usual place")
        typed = 'sudo systemctl start docker, or on a Debian without one: eval "$(sudo .ci/engine up)"'
        if "permission denied" in said[-1]:
            typed = "sudo usermod -aG docker $USER, then log in again"
        return [f"no container engine answers at {where} (it said: {said[-1]}): type {typed}"]
    if numbers(answer) < ENGINE_WANTED:
        return [f"the container engine is {answer}, and 20.10 or newer is wanted: update Docker Engine"]
    return []


def builder_problems() -> list[str]:
    """A client since 23 builds with the buildx plugin; without it, it falls back to a builder that knows no mounts."""
    client = ask("docker", "--version").stdout
    if numbers(client) >= (23,) and ask("docker", "buildx", "version").returncode:
        return [
            f"this docker client ({client.strip()}) has no buildx plugin, which it needs to build: type "
            "sudo apt-get install docker-buildx-plugin (Docker's packages) or docker-buildx (Debian's)"
        ]
    return []


def compose_problems() -> list[str]:
    done = ask("docker", "compose", "version", "--short")
    if done.returncode or not numbers(done.stdout):
        return [
            "docker compose is missing, and Compose 2.20 or newer is wanted: type "
            "sudo apt-get install docker-compose-plugin, or put its binary into ~/.docker/cli-plugins"
        ]
    if numbers(done.stdout) < COMPOSE_WANTED:
        version = done.stdout.strip()
        return [f"docker compose is {version}, and 2.20 or newer is wanted: update docker-compose-plugin"]
    return []


def gpu_problems() -> list[str]:
    listing = ask("nvidia-smi", "-L")
    if listing.returncode or "GPU" not in listing.stdout:
        return [
            "this host shows no NVIDIA GPU (nvidia-smi -L found none), and the engine refuses a GPU service without one: "
            "type docker compose run --rm train-cpu, or install the NVIDIA driver if there is a GPU"
        ]
    info = ask("docker", "info", "--format", "{{json .}}").stdout
    known = json.loads(info) if info.startswith("{") else {}
    if "nvidia" not in known.get("Runtimes", {}) and not known.get("DiscoveredDevices"):
        return [
            "the engine cannot give a container the GPU (it has no nvidia runtime and no CDI devices): install "
            "nvidia-container-toolkit, then type sudo nvidia-ctk runtime configure --runtime=docker && "
            "sudo systemctl restart docker"
        ]
    return []


def folder_problems() -> list[str]:
    """Whether the user that the containers run as may write the runs."""
    runs = Path(os.environ.get("RUNS") or ROOT / "runs")
    if not runs.is_dir():
        return [f"{runs} is not there, and no engine is to make it as root: type mkdir {runs}"]
    if not hasattr(os, "getuid") or sys.platform != "linux":
        return []  # Docker Desktop maps the owners itself
    uid = int(os.environ.get("RUN_AS") or from_env_file("RUN_AS") or 1000)
    facts = runs.stat()
    owner, group, others = (facts.st_mode & bit for bit in (stat.S_IWUSR, stat.S_IWGRP, stat.S_IWOTH))
    if (uid == facts.st_uid and owner) or (facts.st_gid == 0 and group and uid != facts.st_uid) or others:
        return []
    return [
        f"{runs} belongs to user {facts.st_uid} and the containers run as user {uid}, who cannot write it: type "
        f"echo RUN_AS={facts.st_uid} >> .env"
    ]


def from_env_file(name: str) -> str:
    """The value that Compose would take from .env."""
    try:
        text = (ROOT / ".env").read_text("utf-8")
    except OSError:
        return ""
    found = re.findall(rf"^\s*{name}\s*=\s*['\"]?([^'\"#\s]*)", text, re.MULTILINE)
    return found[-1] if found else ""


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as failure:
        return subprocess.CompletedProcess(command, 127, "", str(failure))


def numbers(text: str) -> tuple[int, ...]:
    """`Docker version 20.10.24+dfsg1` -> (20, 10, 24)."""
    found = re.search(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


if __name__ == "__main__":
    wrong = problems(*sys.argv[1:2])
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2 if wrong else 0)
