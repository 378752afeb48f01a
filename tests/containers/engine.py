"""What the container tests type: docker and Compose, with a time limit on everything."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD = "/opt/ambidex/record.json"
# Enough of a model to train, small enough for hundreds of steps a second on one shared core.
TINY = shlex.split(
    "--layers 1 --width 32 --heads 1 --kv-heads 1 --feed-forward 64 --context 32 --batch-size 2 --precision fp32 "
    "--evaluation-tokens 256 --sample-tokens 0 --data /data/book.txt"
)
SMALL = {
    flag.removeprefix("--").replace("-", "_").upper(): value for flag, value in zip(TINY[::2], TINY[1::2])
}


@dataclass(frozen=True)
class Done:
    """How a command ended, and everything it said."""

    code: int
    text: str
    seconds: float

    def __str__(self) -> str:
        return f"exit {self.code} after {self.seconds:.1f} s\n{self.text}"


def ask(*command: str | Path, seconds: float = 240, **environment: str) -> Done:
    """Run a command in the project's root and wait for it, never for ever."""
    begun = time.monotonic()
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "DOCKER_BUILDKIT": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Done(done.returncode, done.stdout, time.monotonic() - begun)


def docker(*words: str | Path, seconds: float = 240, **environment: str) -> Done:
    return ask("docker", *words, seconds=seconds, **environment)


def good(done: Done) -> str:
    """The command's words; an assertion with all of them where it failed."""
    assert done.code == 0, str(done)
    return done.text


@dataclass
class Project:
    """compose.yaml under a name of its own, with ./runs and ./data in a folder of the test."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"ambidex-test-{self.folder.name}".lower().replace("_", "-")

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def compose(self, *words: str, seconds: float = 240, **environment: str) -> Done:
        given = {"RUNS": str(self.runs), "DATA": str(self.data), "RUN_AS": str(os.getuid()), **self.settings}
        return ask("docker", "compose", "-p", self.name, *words, seconds=seconds, **{**given, **environment})

    def typed(self, line: str, seconds: float = 240, **environment: str) -> Done:
        """A line that a page shows, as it stands there; which project and which folders is said by the environment."""
        given = {"RUNS": str(self.runs), "DATA": str(self.data), "RUN_AS": str(os.getuid()), **self.settings}
        return ask(
            "bash", "-c", line, seconds=seconds, **{**given, "COMPOSE_PROJECT_NAME": self.name, **environment}
        )

    def set(self, *services: str, **settings: str) -> None:
        """Settings of these services beside compose.yaml, so that what is typed need not hold them."""
        these = {"environment": {f"AMBIDEX_{name}": value for name, value in settings.items()}}
        override = self.folder / "settings.yaml"
        override.write_text(json.dumps({"services": dict.fromkeys(services, these)}), "utf-8")
        self.settings["COMPOSE_FILE"] = f"compose.yaml:{override}"

    def close(self) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "5")


def config(*profiles: str, **environment: str) -> dict[str, Any]:
    """compose.yaml as Compose understands it."""
    words = [word for profile in profiles for word in ("--profile", profile)]
    text = good(ask("docker", "compose", *words, "config", "--format", "json", **environment))
    return json.loads(text)


def layers(image: str) -> list[str]:
    return json.loads(good(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image)))


def record(image: str) -> dict[str, Any]:
    return json.loads(good(docker("run", "--rm", "--network=none", "--entrypoint=cat", image, RECORD)))
