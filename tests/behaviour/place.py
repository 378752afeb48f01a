"""Where Ambidex is: installed on this host, or in an image. The tests type the same words to either.

    pytest tests/behaviour                                  the install of this host, on the CPU
    AMBIDEX_IMAGE=ambidex:cpu pytest tests/behaviour        the same tests in an image
    pytest tests/behaviour -m gpu                           the same tests on a GPU, in either

Nothing here imports torch or Ambidex: beside an image the host needs neither.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

IMAGE = os.environ.get("AMBIDEX_IMAGE", "")


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.out}{self.err}"


@dataclass
class Place:
    """A folder to work in and the prefix that runs `ambidex` there. In an image the folder has the same name."""

    folder: Path
    gpu: bool = False
    names: list[str] = field(default_factory=list)

    def run(self, *words: str, seconds: float = 240) -> Done:
        command, environment = self.command(words)
        done = subprocess.run(command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, encoding="utf-8", timeout=seconds, check=False)  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def stop_when(self, reached: Callable[[], bool], *words: str, seconds: float = 120) -> Done:
        """Start, wait until `reached`, ask it to stop as an operating system or `docker stop` does, and wait."""
        command, environment = self.command(words)
        with subprocess.Popen(command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8") as process:  # fmt: skip
            deadline = time.monotonic() + seconds
            while not reached() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            if IMAGE:
                subprocess.run(
                    ["docker", "stop", "--time", "60", self.names[-1]], capture_output=True, check=False
                )
            elif process.poll() is None:
                process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=90)
        return Done(process.returncode, out, "")

    def command(self, words: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
        settings = {"AMBIDEX_CACHE": str(self.folder / "cache"), "AMBIDEX_THREADS": "1", "PYTHONUTF8": "1"}
        if not IMAGE:
            return [sys.executable, "-m", "ambidex", *words], {**os.environ, **settings}
        self.names.append(f"ambidex-behaviour-{uuid.uuid4().hex[:12]}")
        user = f"{os.getuid()}:0" if hasattr(os, "getuid") else "1000:0"
        # As compose.yaml runs it: nothing may be written but the folder and /tmp, and there is no network.
        options = ["--rm", "--name", self.names[-1], "--init", "--user", user, "--read-only", "--network=none",
                   "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp:exec,mode=1777",
                   f"--volume={self.folder}:{self.folder}", f"--workdir={self.folder}"]  # fmt: skip
        options += ["--gpus=all"] if self.gpu else []
        for name, value in settings.items():
            options += ["--env", f"{name}={value}"]
        return ["docker", "run", *options, IMAGE, *words], dict(os.environ)

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
