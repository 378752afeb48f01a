"""Every command that the pages tell one to type, and which of them cannot be run by a test, and why.

    python tests/docs_commands.py     # how many there are, and what becomes of each

A fence without a language, or in `console`, holds commands: the lines after "$ " where it has such, else the lines that
begin with a program. `<!-- not run: why -->` on the line before a fence takes it out; NOT_RUN takes out what no test of
this environment can run anywhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^(?P<ticks>`{3,})(?P<language>\w*)\n(?P<body>.*?)^(?P=ticks)$",
    re.DOTALL | re.MULTILINE,
)
PROGRAMS = (
    "ambidex", "python", "python3", "pip", "tox", "docker", "torchrun", "ls", "cd", "echo", "tar", "debootstrap",
    "llama-completion", "ollama", "jupyter", ".ci/engine", "mkdocs", "nvidia-smi", "sudo",
)  # fmt: skip
NOT_RUN = {
    r"docker |python3? docker/|\.ci/engine|debootstrap|tar |echo \w+=.*\.env": "needs a container engine or a network: tox run -e containers",
    r"tox|mkdocs": "runs the tests, or needs what runs them",
    r"(python3? -m )?pip install|python3? -m venv": "needs a package index; tests/release/test_release.py installs the built wheel",
    r"python3? benchmarks/": "measures for minutes, on a quiet machine",
    r"nvidia-smi|sudo ": "needs a GPU, or changes the machine",
    r"torchrun": "tests/parallel run it",
    r"python3? (tools/first_minutes|tools/gpu_errors|tests/)": "writes into the project; a test runs what it does",
}
ELSEWHERE = {
    "docs/bad-input.md": "tests/test_bad_input.py",
    "docs/first-minutes.md": "tests/docs/test_transcript.py",
}


@dataclass(frozen=True)
class Command:
    page: str  # from the project's root
    line: int
    typed: str  # without "$ " and the remark behind it
    shown: tuple[str, ...]  # what the page says that it prints, where it says so
    not_run: str  # why, or nothing
    language: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(path: Path) -> Iterator[Command]:
    """The commands and Python programs of a page, in its order."""
    text, page = path.read_text("utf-8"), path.relative_to(ROOT).as_posix()
    for fence in FENCE.finditer(text):
        first = text.count("\n", 0, fence.start("body")) + 1
        mark = fence["mark"] or ""
        why = mark.removeprefix("not run: ") if mark.startswith("not run: ") else ""
        if fence["language"] == "python":
            yield Command(page, first, fence["body"], (), why, "python")
        elif fence["language"] in ("", "console", "bash", "sh"):
            yield from _of_fence(page, first, fence["body"].splitlines(), why)


def _of_fence(page: str, first: int, lines: list[str], why: str) -> Iterator[Command]:
    prompted = any(line.startswith("$ ") for line in lines)
    for number, line in enumerate(lines):
        typed = line.removeprefix("$ ") if prompted else line
        if (prompted and not line.startswith("$ ")) or not is_command(typed):
            continue
        typed = re.split(r"\s{2,}|\s#\s", typed.strip())[0]
        shown = lines[number + 1 :] if prompted else []
        stop = next((at for at, later in enumerate(shown) if later.startswith("$ ")), len(shown))
        yield Command(page, first + number, typed, tuple(shown[:stop]), why or why_not(typed))


def is_command(line: str) -> bool:
    word = re.sub(r"^(\w+=\S+ )+", "", line).split(" ")[0]
    return word in PROGRAMS


def why_not(typed: str) -> str:
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, typed)), "")


def inline(path: Path) -> Iterator[tuple[str, list[str]]]:
    """`ambidex ...` within sentences and tables: what is written, and its flags."""
    text = FENCE.sub("", path.read_text("utf-8"))
    for found in re.finditer(r"`(?:python -m )?(ambidex [a-z]+(?: [^`]*)?)`", text):
        yield found[1], re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", found[1])


def main() -> None:
    every = [command for path in pages() for command in commands(path)]
    run = [c for c in every if c.page not in ELSEWHERE and not c.not_run]
    held = Counter(c.page for c in every if c.page in ELSEWHERE)
    print(f"{len(every)} commands in {len(pages())} pages: {len(run)} run by tests/docs/test_commands.py")
    for page, count in held.items():
        print(f"{count:>5} of {page}, run by {ELSEWHERE[page]}")
    for why, count in Counter(
        c.not_run for c in every if c.not_run and c.page not in ELSEWHERE
    ).most_common():
        print(f"{count:>5} not run: {why}")
    print(
        f"{sum(1 for path in pages() for _ in inline(path)):>5} more within sentences, whose flags are checked"
    )


if __name__ == "__main__":
    main()
