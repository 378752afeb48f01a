"""Every command that the pages tell one to type, who types it, and which cannot be typed here, and why.

    python tests/docs_commands.py            # how many there are, and what becomes of them
    python tests/docs_commands.py --all      # each of them
    python tests/docs_commands.py --write    # the table in docs/testing.md

A fence without a language, or in `console`, holds commands: the lines after "$ " where it has such, else the lines that
begin with a program. Who types a command is read from what is there, so that neither side can move on alone:

- a test that asks for it by ``documented("...")``, which gives it the words to run and refuses those that no page shows;
- `.ci/run` and `.ci/engine`, where they hold the same command;
- NOT_RUN: nobody, and why; a test may still ask for it by ``cannot_run("...")``, to check what can be checked;
- else tests/docs/test_commands.py, in the order of the page.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<language>\w*)\n(?P<body>.*?)^(?P=ticks)$", re.DOTALL | re.MULTILINE)
PROGRAMS = (
    "ambidex", "python", "python3", "pip", "pytest", "tox", "docker", "torchrun", "ls", "cd", "mkdir", "echo", "tar",
    "debootstrap", "llama-completion", "ollama", "jupyter", ".ci/engine", "mkdocs", "nvidia-smi", "sudo", "sbatch", "kubectl",
)  # fmt: skip
NOT_RUN = {
    r"docker compose run --rm train-gpu": "needs a GPU in a container",
    r"tox run -e py311-cpu -- ": "a part of what CI runs whole",
    r"tox run -m |REQUIRE_GPU=1 ": "gigabytes of builds, or a GPU",
    r"tox run -e containers -- |AMBIDEX_IMAGE=\S+ tox run -e image": "needs images of gigabytes, or a GPU",
    r"tox run -e siege$|python siege/run\.py": "the better part of an hour; CI runs the small form",
    r"python -m venv rivals|python benchmarks/": "another project's package, in an environment of its own",
    r"python -m pip install jupyterlab|jupyter lab": "a browser and a server that waits; a test executes the notebook's cells",
    r"llama-completion|cd first-gguf && ollama": "llama.cpp and Ollama are programs of their own",
}  # fmt: skip
HERE = "tests/docs/test_commands.py"
TYPED_HERE = r"ambidex |torchrun |echo |mkdir |python examples/"
ELSEWHERE = {
    "docs/bad-input.md": "tests/test_bad_input.py",
    "docs/first-minutes.md": "tests/docs/test_transcript.py",
}
TABLE = re.compile(r"(?<=<!-- commands -->\n).*?(?=<!-- /commands -->)", re.DOTALL)


@dataclass(frozen=True)
class Command:
    page: str  # from the project's root
    line: int
    typed: str  # without "$ " and the remark behind it
    shown: tuple[str, ...]  # what the page says that it prints, where it says so
    by: str  # the test or the script that types it; empty where nobody does
    not_run: str  # why nobody does
    language: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@functools.cache
def all_commands() -> tuple[Command, ...]:
    return tuple(command for path in pages() for command in commands(path))


def commands(path: Path) -> Iterator[Command]:
    """The commands and Python programs of a page, in its order."""
    text, page = path.read_text("utf-8"), path.relative_to(ROOT).as_posix()
    for fence in FENCE.finditer(text):
        first = text.count("\n", 0, fence.start("body")) + 1
        if fence["language"] == "python":
            yield _command(page, first, fence["body"], (), "python")
        elif fence["language"] in ("", "console", "bash", "sh"):
            yield from _of_fence(page, first, fence["body"].splitlines())


def _of_fence(page: str, first: int, lines: list[str]) -> Iterator[Command]:
    prompted = any(line.startswith("$ ") for line in lines)
    for number, line in enumerate(lines):
        typed = line.removeprefix("$ ") if prompted else line
        if (prompted and not line.startswith("$ ")) or not is_command(typed):
            continue
        typed = re.split(r"\s{2,}|\s#\s", typed.strip())[0]
        shown = lines[number + 1 :] if prompted else []
        stop = next((at for at, later in enumerate(shown) if later.startswith("$ ")), len(shown))
        yield _command(page, first + number, typed, tuple(shown[:stop]))


def _command(page: str, line: int, typed: str, shown: tuple[str, ...], language: str = "") -> Command:
    by = ELSEWHERE.get(page) or askers("documented").get(name(typed)) or ("" if language else in_ci(typed))
    why = "" if by or language else why_not(typed)
    if not by and not why and (language or re.match(TYPED_HERE, typed)):
        by = HERE
    return Command(page, line, typed, shown, by, why, language)


def name(typed: str) -> str:
    """A command itself; of a program its first line."""
    return typed.strip().splitlines()[0]


def is_command(line: str) -> bool:
    word = re.sub(r"^(\w+=\S+ )+", "", line).split(" ")[0]
    return word in PROGRAMS


def why_not(typed: str) -> str:
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, typed)), "")


# -- who types it --------------------------------------------------------------------------------------------------------


def documented(typed: str) -> str:
    """What a page shows, for a test to run; a program by its first line. The test counts as its test from then on."""
    found = next((command.typed for command in all_commands() if name(command.typed) == typed), None)
    if found is None:
        raise LookupError(f"no page shows this command any more: {typed}")
    return found


def cannot_run(typed: str) -> str:
    """The same for a test that checks what it can of a command that nobody runs here."""
    return documented(typed)


@functools.cache
def askers(function: str) -> dict[str, str]:
    """Command -> the test or the fixture that asks for it by this function, as its source says."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        source = path.read_text("utf-8")
        if f"{function}(" not in source or path == Path(__file__).resolve():
            continue
        tree = ast.parse(source)
        for around in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            for call in ast.walk(around):
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)
                    and call.func.id == function
                ):
                    (words,) = call.args
                    assert isinstance(words, ast.Constant), f"{path}: {function} wants the command itself"
                    found[words.value] = f"{path.relative_to(ROOT).as_posix()}::{around.name}"
    return found


@functools.cache
def scripts() -> dict[str, str]:
    """What CI's scripts type, in the words of a page: command -> script."""
    found = {}
    for name in (".ci/run", ".ci/engine"):
        text = re.sub(r"^\s*#.*$", "", (ROOT / name).read_text("utf-8"), flags=re.MULTILINE).replace(
            "\\\n", " "
        )
        variables = dict(re.findall(r"^(own_base)=(\S+)$", text, re.MULTILINE))
        for line in text.splitlines():
            for typed in re.split(r" \|\| | && ", re.sub(r"^\s*(?:\w+=\S+ )*", "", line)):
                for pattern, word in (
                    (r'"\$tools/venv/bin/(tox|python)"', r"\1"), (r'"\$python"', "python3"), (r'"?\$root/([^" ]+)"?', r"\1"),
                    (r'"\$home/base"', "base"), (r'"\$own_base"', variables.get("own_base", "")), (r"\bquietly ", ""),
                    (r" --quiet| --disable-pip-version-check| --skip-missing-interpreters false| --skip-pkg-install| --result-json \S+", ""), (r"\s+", " "),
                ):  # fmt: skip
                    typed = re.sub(pattern, word, typed)  # noqa: PLW2901
                typed = typed.strip(" ;{}|")  # noqa: PLW2901
                several = re.fullmatch(r"((?:.* )?tox run -e )([\w-]+(?:,[\w-]+)+)", typed)
                for one in [several[1] + e for e in several[2].split(",")] if several else [typed]:
                    found.setdefault(one, name)
                    found.setdefault(one.removeprefix(".ci/engine run "), name)
    return found


def in_ci(typed: str) -> str:
    """The script of CI that types it, every part of it."""
    by = [scripts().get(part) for part in typed.split(" && ")]
    return by[-1] or "" if all(by) else ""


# -- within sentences ----------------------------------------------------------------------------------------------------


def inline(path: Path) -> Iterator[str]:
    """The commands within sentences and tables, `...` and words for a reader's own things included."""
    for found in re.finditer(r"`([^`]+)`", FENCE.sub("", path.read_text("utf-8"))):
        typed = " ".join(found[1].split())
        if " " in typed and is_command(typed):
            yield typed


# -- the count -----------------------------------------------------------------------------------------------------------


def kinds() -> list[tuple[str, str, int]]:
    """(what becomes of it, by whom or why, how many), the largest kind first."""
    count = Counter(
        ("typed", c.by.split("::")[0]) if c.by else ("not run", c.not_run or "NOBODY") for c in all_commands()
    )
    order = sorted(count.items(), key=lambda item: (item[0][0] != "typed", -item[1], item[0][1]))
    return [(kind, who, number) for (kind, who), number in order]


def table() -> str:
    every = all_commands()
    typed = sum(1 for command in every if command.by)
    lines = [
        f"{len(every)} commands in {len(pages())} pages: {typed} are typed by a test or by CI, {len(every) - typed} are not run.",
        "", "| commands | |", "|---|---|",
        *(f"| {number} | {f'typed by `{who}`' if kind == 'typed' else f'not run: {who}'} |" for kind, who, number in kinds()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(*words: str) -> None:
    if "--all" in words:
        for command in all_commands():
            said = command.typed.strip().splitlines()[0]
            print(f"{command}: {said}\n    {command.by or 'not run: ' + command.not_run}")
    elif "--write" in words:
        page = ROOT / "docs" / "testing.md"
        page.write_text(TABLE.sub(lambda _: table(), page.read_text("utf-8")), "utf-8")
    print(table(), end="")
    print(
        f"\n{sum(1 for path in pages() for _ in inline(path))} more stand within sentences and are looked at in words"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
