"""What the pages tell one to type: each command has somebody who types it, or a reason; what is left is looked at in words.

Which tests and scripts type what is read by docs_commands.py. Of a command that nobody types here, and of those within
sentences, everything that can be known without running them is checked: the flags by the program's own parser, the files, the
environments of tox, the services of Compose, the extras, the variables of .env.
"""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from agreement_files import ROOT, read_yaml, text, tox

import docs_commands
from ambidex import parsers
from ambidex.commands import parser_of
from docs_commands import Command, all_commands, askers, inline, name, pages

LEFT = [command for command in all_commands() if not command.by]
WITHIN = sorted({typed for page in pages() for typed in inline(page)})


def test_every_command_is_typed_by_somebody_or_has_a_reason() -> None:
    nobody = [f"{command}: {command.typed}" for command in LEFT if not command.not_run]
    assert not nobody, "write a test that asks for it by documented(...), or say why not in NOT_RUN"


@pytest.mark.parametrize("function", ["documented", "cannot_run"])
def test_every_command_that_a_test_asks_for_stands_on_a_page(function: str) -> None:
    shown = {name(command.typed) for command in all_commands()}
    assert len(askers(function)) > 1
    gone = {typed: who for typed, who in askers(function).items() if typed not in shown}
    assert not gone


def test_a_command_that_no_page_shows_is_refused() -> None:
    with pytest.raises(LookupError, match="no page shows"):
        docs_commands.documented("ambidex fly")


def test_every_reason_is_the_reason_of_some_command() -> None:
    used = {command.not_run for command in LEFT}
    assert used == set(docs_commands.NOT_RUN.values())


def test_the_page_s_count_is_the_count() -> None:
    found = docs_commands.TABLE.search(text("docs/testing.md"))
    assert found
    assert found[0] == docs_commands.table(), "type: python tests/docs_commands.py --write"


# -- what can be known of a command without running it -----------------------------------------------------------------------


@pytest.mark.parametrize("command", LEFT, ids=str)
def test_what_is_not_run_names_only_what_is_there(command: Command) -> None:
    if command.typed in askers("cannot_run"):
        return  # its own test looks at it
    assert wrong_with(command.typed) == []


@pytest.mark.parametrize("typed", WITHIN)
def test_a_command_within_a_sentence_names_only_what_is_there(typed: str) -> None:
    assert wrong_with(typed) == []


def wrong_with(typed: str) -> list[str]:
    """What a command names that is not there, in sentences. A command of which nothing is known is wrong too."""
    found: list[str] = []
    for part in typed.split(" && "):
        words = shlex.split(re.sub(r"^(?:[A-Z_]+=(?:\$\([^)]*\)|\S)+ )+", "", part))
        look = next((look for begun, look in LOOKS.items() if " ".join(words).startswith(begun)), None)
        found += [f"nothing is known of {part!r}"] if look is None else look(words)
    return found


def flags(words: list[str]) -> list[str]:
    return [word.split("=")[0] for word in words if re.match(r"--[a-z]", word)]


def of_ambidex(words: list[str]) -> list[str]:
    if words[1].isupper() or words[1].startswith("--"):
        return []
    if words[1] not in parsers.COMMANDS:
        return [f"there is no command {words[1]}"]
    parser = parser_of(words[1])
    known = {flag for action in parser._actions for flag in action.option_strings} | {"--help"}
    return [f"ambidex {words[1]} has no {flag}" for flag in flags(words) if flag not in known]


def of_tox(words: list[str]) -> list[str]:
    there, wrong = set(tox("description")["env"]), []
    ours = words[: words.index("--")] if "--" in words else words
    for flag, value in pairwise(ours):
        if flag == "-e":
            wrong += [f"tox has no environment {one}" for one in value.split(",") if one not in there]
        elif flag == "-m" and not re.search(rf"^    {value} = ", text("tox.ini"), re.MULTILINE):
            wrong.append(f"tox has no label {value}")
    theirs = words[len(ours) + 1 :]
    if "train" in ours:
        return wrong + of_ambidex(["ambidex", "train", *theirs])
    return wrong + (of_pytest(["pytest", *theirs]) if theirs else [])


def of_pytest(words: list[str]) -> list[str]:
    markers = {
        line.split(":")[0]
        for line in tomllib.loads(text("pyproject.toml"))["tool"]["pytest"]["ini_options"]["markers"]
    }
    wrong = []
    for flag, value in pairwise(words):
        if flag == "-m" and value not in markers:
            wrong.append(f"there is no marker {value}")
        if flag == "-k" and not any(value in path.name for path in (ROOT / "tests").rglob("test_*.py")):
            wrong.append(f"no file of tests has {value} in its name")
        if value.startswith("tests/") and not (ROOT / value).exists():
            wrong.append(f"there is no {value}")
    return wrong


def of_compose(words: list[str]) -> list[str]:
    services = read_yaml("compose.yaml")["services"]
    profiles = {profile for service in services.values() for profile in service.get("profiles", [])}
    wrong, at = [], 2
    if words[at] == "--profile":
        wrong += [f"compose.yaml has no profile {words[3]}"] if words[3] not in {*profiles, "*"} else []
        at += 2
    action, rest = words[at], words[at + 1 :]
    if action not in ("run", "up", "build", "down", "config"):
        return [*wrong, f"docker compose {action}?"]
    named = [word for word in rest if not word.startswith("-") and "=" not in word]
    if action == "run":
        service = named[0]
        theirs = rest[rest.index(service) + 1 :]
        if service in services and services[service].get("entrypoint", ["ambidex", "train"])[:2] == [
            "ambidex",
            "train",
        ]:
            wrong += of_ambidex(["ambidex", "train", *theirs])
        named = [service]
    return wrong + [f"compose.yaml has no service {one}" for one in named if one not in services]


@functools.cache
def help_of(program: Path) -> str:
    words = [sys.executable, str(program), "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_program(words: list[str]) -> list[str]:
    if words[1] == "-m":
        return of_install(words[3:]) if words[2:4] == ["pip", "install"] else []
    program = ROOT / words[1]
    if not program.is_file():
        return [f"there is no {words[1]}"]
    if not flags(words):
        return []
    source, asked = program.read_text("utf-8"), flags(words)
    if "argparse" not in source:
        return [f"{words[1]} has no {flag}" for flag in asked if flag not in source]
    said = help_of(program)
    return [f"{words[1]} has no {flag}" for flag in asked if not re.search(rf"{flag}\b", said)]


def of_install(words: list[str]) -> list[str]:
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    return [f"ambidex has no extra {extra}" for word in words for found in [re.fullmatch(r"(?:ambidex|\.)\[([\w,]+)\]", word)]
            if found for extra in found[1].split(",") if extra not in extras]  # fmt: skip


def of_file(words: list[str]) -> list[str]:
    named = [word for word in words[1:] if re.search(r"\.(sh|yaml|ipynb)$", word)]
    return (
        ["no file is named"]
        if not named
        else [f"there is no {one}" for one in named if not (ROOT / one).is_file()]
    )


def of_variable(words: list[str]) -> list[str]:
    variable = words[1].split("=")[0]
    return [] if f"{variable}=" in text(".env.example") else [f".env.example has no {variable}"]


def of_torchrun(words: list[str]) -> list[str]:
    run = pytest.importorskip("torch.distributed.run")
    known = {flag for action in run.get_args_parser()._actions for flag in action.option_strings}
    ours = words[: words.index("-m")] if "-m" in words else words
    wrong = [f"torchrun has no {flag}" for flag in flags(ours) if flag not in known]
    return wrong + (of_ambidex(words[len(ours) + 1 :]) if "-m" in words else [])


def nothing(words: list[str]) -> list[str]:
    """A program that is not ours, and nothing of ours in its words."""
    return []


LOOKS: dict[str, Callable[[list[str]], list[str]]] = {
    "ambidex ": of_ambidex, "python -m ambidex ": lambda words: of_ambidex(words[2:]), "tox ": of_tox, "pytest ": of_pytest,
    "docker compose ": of_compose, "docker ": nothing, "python ": of_program, "python3 ": of_program,
    "pip install": lambda words: of_install(words[1:]), "pip config": nothing, "jupyter lab": of_file, "sbatch ": of_file,
    "kubectl apply": of_file, "echo ": of_variable, "torchrun ": of_torchrun, "sudo systemctl": nothing, "sudo apt-get": nothing,
    "mkdocs serve": nothing, "nvidia-smi": nothing, "rivals/bin/python -m pip install": nothing,
}  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("ambidex train --stepz 5", "ambidex train has no --stepz"),
        ("tox run -e py311-cqu", "tox has no environment py311-cqu"),
        ("tox run -m heavier", "tox has no label heavier"),
        ("tox run -e containers -- -m wheelz", "there is no marker wheelz"),
        ("tox run -e train -- --stepz 50", "ambidex train has no --stepz"),
        ("docker compose run --rm train-gpuu", "compose.yaml has no service train-gpuu"),
        ("docker compose run --rm train-gpu --stepz 5", "ambidex train has no --stepz"),
        ("docker compose --profile gpuu up compare", "compose.yaml has no profile gpuu"),
        ("python siege/rum.py kills", "there is no siege/rum.py"),
        ("python siege/run.py --smal", "siege/run.py has no --smal"),
        ('pip install "ambidex[trains]"', "ambidex has no extra trains"),
        ("jupyter lab examples/last.ipynb", "there is no examples/last.ipynb"),
        ("echo RAN_AS=$(id -u) >> .env", ".env.example has no RAN_AS"),
        ("torchrun --nodez 2 -m ambidex train --stepz 5", "torchrun has no --nodez"),
        ("frobnicate it", "nothing is known of 'frobnicate it'"),
    ],
)  # fmt: skip
def test_a_slip_in_a_command_is_seen(typed: str, said: str) -> None:
    assert said in wrong_with(typed)
