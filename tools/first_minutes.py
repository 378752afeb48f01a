"""The first five minutes in a terminal, typed for real, and written to docs/first-minutes.md.

python tools/first_minutes.py            # types everything and writes the page
python tools/first_minutes.py --list     # what is typed
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "first-minutes.md"
TYPED = (
    ("Alone, it says what there is and what to do next.", "ambidex"),
    ("Will the torch that is installed run here, and on what?", "ambidex doctor"),
    ("What a training would take, before it is started.", "ambidex train --dry-run --steps 100"),
    ("A hundred steps on the text that every Python brings along.", "ambidex train --steps 100 --out first"),
    ("What it has learnt.", 'ambidex sample first --prompt "def " --tokens 160'),
    ("The run is a folder.", "ls first"),
    ("For other programs.", "ambidex export first --to first-model"),
    ("And what now?", "AMBIDEX_RUNS=. ambidex"),
)
# The doctor's exit code is its verdict: 22, say, for a CUDA build in a container that was given no GPU.
VERDICTS = (0, *range(10, 31))
HEAD = """# The first five minutes

Typed by `python tools/first_minutes.py`, which wrote this page: nothing is shortened but the bar that moves while it
trains, and the place of the environment. Other work shared the machine; yours gives other numbers.
"""


def type_all(folder: Path, environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Why, what was typed, and what the terminal showed. Raises RuntimeError where a command fails."""
    shown = []
    for why, typed in TYPED:
        environ = {**os.environ, "COLUMNS": "100", "PYTHONUTF8": "1", **environment}
        words = shlex.split(typed)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environ[name] = value
        command = [sys.executable, "-m", *words] if words[0] == "ambidex" else words
        done = subprocess.run(
            command, cwd=folder, env=environ, capture_output=True, text=True, encoding="utf-8", check=False
        )
        if done.returncode not in (VERDICTS if typed == "ambidex doctor" else [0]):
            raise RuntimeError(f"{typed}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        shown.append((why, typed, done.stdout.replace(sys.prefix, "venv")))
    return shown


def page(shown: list[tuple[str, str, str]], seconds: float) -> str:
    parts = [HEAD]
    for why, typed, output in shown:
        fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", output)), default=0))
        parts.append(f"{why}\n\n{fence}console\n$ {typed}\n{output.rstrip()}\n{fence}\n")
    return "\n".join([*parts, f"All of it took {seconds:.0f} s.\n"])


def main(arguments: list[str]) -> int:
    if "--list" in arguments:
        print("\n".join(typed for _, typed in TYPED))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        shown = type_all(Path(folder), {})
        PAGE.write_text(page(shown, time.perf_counter() - started), "utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
