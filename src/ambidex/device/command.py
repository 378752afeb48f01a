"""`ambidex doctor`, `ambidex doctor explain` and `ambidex variants`: flags in, text and exit code out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import BinaryIO

from ambidex.device.paths import typed
from ambidex.errors import Exit, Problem, Problems, did_you_mean

_HALF_BYTES = 32 << 20
_OF_A_MACHINE = (
    "python_env",
    "torch",
    "gpu",
    "driver",
    "python",
    "os",
    "machine",
    "report",
    "strict",
    "no_probe",
    "device",
)
_EXIT_CODES = (
    "exit codes: 0 usable as asked; 2 usage; 10 no GPU or a CPU build, the CPU works (0 without --strict); "
    "20 this build has no code for the GPU; 21 driver too old; 22 the container got no GPU; 23 hidden by the "
    "environment; 24 torch missing or broken; 25 an extension library lacks this GPU; 30 undetermined"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `ambidex doctor`. The defaults ask for this machine and this Python."""
    parser.epilog = _EXIT_CODES
    parser.usage = "ambidex doctor [OPTION...]\n       ambidex doctor explain [FILE|-]"
    parser.add_argument(
        "action", nargs="?", metavar="explain", help="read a pasted error or log, name its cause and the fix"
    )
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="for explain: a file, or - for standard input (default)"
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON, schema 1")
    parser.add_argument(
        "--report", action="store_true", help="a block to paste, without paths, user names and ids"
    )
    parser.add_argument("--strict", action="store_true", help="exit 10 where there is no GPU or a CPU build")
    parser.add_argument(
        "--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps: judge that one"
    )
    parser.add_argument("--no-probe", action="store_true", help="from theory alone: start no kernel")
    parser.add_argument(
        "--python-env", metavar="PATH", help="judge another environment: its folder or its python"
    )
    supposed = parser.add_argument_group("what if (any of these: no GPU and no torch needed)")
    supposed.add_argument("--torch", metavar="VERSION", help="2.5.1+cu121")
    supposed.add_argument("--gpu", metavar="NAME", help='"RTX 5060", sm_120 or 12.0; several with commas')
    supposed.add_argument("--driver", metavar="VERSION", help="576.02")
    supposed.add_argument("--python", metavar="VERSION", help="3.11")
    supposed.add_argument("--os", metavar="NAME", help="linux, windows or wsl")
    supposed.add_argument("--machine", metavar="NAME", help="x86_64 or aarch64")


def run(arguments: argparse.Namespace, wrong: Sequence[Problem] = ()) -> int:
    """Do what the flags say. Raises `Problems` for all that cannot be understood or read, ``wrong`` first."""
    wrong = [*wrong, *_at_odds(arguments)]
    if arguments.action == "explain":
        if wrong:
            raise Problems(wrong)
        return _explain(arguments.file or "-", as_json=arguments.json)
    from ambidex.device.doctor import doctor
    from ambidex.device.report import for_people

    report = doctor(
        device=arguments.device,
        probe=not arguments.no_probe,
        strict=arguments.strict,
        python_env=arguments.python_env,
        torch=arguments.torch,
        gpu=arguments.gpu,
        driver=arguments.driver,
        python=arguments.python,
        os=arguments.os,
        machine=arguments.machine,
        wrong=wrong,
    )
    if arguments.json:
        _print(report.json())
    elif arguments.report:
        _print(report.paste())
    else:
        _print(for_people(report, sys.stdout) if sys.stdout is not None else "")
    return report.exit_code


def _at_odds(arguments: argparse.Namespace) -> list[Problem]:
    """What is wrong with the words beside the flags, and between flags."""
    found = []
    words = " ".join(word for word in (arguments.action, arguments.file) if word)
    if arguments.action not in (None, "explain"):
        near = did_you_mean(arguments.action, ["explain"])
        quoted = 'a name of several words is quoted, as in --gpu "RTX 5060"'
        found.append(
            Problem(f"{words!r} is not understood.", wanted="explain, or flags alone", fix=near or quoted)
        )
    given = [name for name in _OF_A_MACHINE if getattr(arguments, name) not in (None, False, "auto")]
    if arguments.action == "explain" and given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        what = f"explain reads a text alone, and {flags} would change nothing in its answer."
        found.append(Problem(what, fix=f"leave {flags} out"))
    if arguments.json and arguments.report:
        found.append(Problem("--json and --report exclude each other.", fix="leave one of them out"))
    return found


def add_variants_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `ambidex variants`."""
    parser.add_argument("--json", action="store_true", help="the table as JSON")


def run_variants(arguments: argparse.Namespace) -> int:
    """Print the table of variants, with what fits this machine."""
    import json

    from ambidex.device import facts, variants

    table = variants.table(facts.look().machine)
    _print(json.dumps(table, indent=2) if arguments.json else variants.render(table))
    return 0


def _print(text: str) -> None:
    """Print, with a ? for what this terminal cannot show, and in peace where `head` has read enough.

    With standard output closed there is nobody to tell; a disk that is full is an error of its own.
    """
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except OSError as error:
        # Python flushes once more at its end; that must have somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            what = f"The answer cannot be written: {error.strerror or error}."
            raise Problems(Problem(what), Exit.CANNOT_WRITE) from None


def _explain(name: str, *, as_json: bool) -> int:
    from ambidex.device.explain import explain

    explained = explain(_text(name))
    _print(explained.json() if as_json else str(explained))
    return explained.exit_code


def _ends(file: BinaryIO) -> str:
    """What matters of it; of more than 64 MB only the first and the last 32 are looked at."""
    from ambidex.device.excerpt import excerpt

    head = file.read(_HALF_BYTES)
    tail = b""
    while chunk := file.read(_HALF_BYTES):
        tail = (tail + chunk)[-_HALF_BYTES:]
    text = head + tail
    coding = _two_bytes(text[:200])
    if coding:
        text = text.decode(coding, "replace").encode("utf-8", "replace")
    return excerpt(text).decode("utf-8", "replace")


def _two_bytes(begins: bytes) -> str:
    """Which UTF-16 a text begins in, '' for any other coding: `>` in Windows PowerShell writes it."""
    if b"\0" not in begins:
        return ""
    if begins[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    pairs = max(1, len(begins) // 2)  # without a mark at its start, every other byte of plain words is zero
    return next(
        (
            name
            for name, first in (("utf-16-le", 1), ("utf-16-be", 0))
            if begins[first::2].count(0) > 0.7 * pairs
        ),
        "",
    )


def _text(name: str) -> str:
    """The text of a file or of standard input, of a very long one its beginning and its end."""
    try:
        if name != "-":
            with typed(name).open("rb") as file:
                return _ends(file)
        if sys.stdin is None:
            return ""
        if sys.stdin.isatty():
            print("paste the error, then end with Ctrl-D (Ctrl-Z and Enter on Windows):", file=sys.stderr)
        return _ends(sys.stdin.buffer)
    except (OSError, ValueError) as error:
        raise Problems(
            Problem(
                f"{name} cannot be read",
                found=getattr(error, "strerror", None) or str(error),
                wanted="a text file, or - for standard input",
            )
        ) from None
