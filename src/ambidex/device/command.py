"""`ambidex doctor`, `ambidex doctor explain` and `ambidex variants`: flags in, text and exit code out."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ambidex.errors import Problem, Problems

_EXIT_CODES = (
    "exit codes: 0 usable as asked; 2 usage; 10 no GPU or a CPU build, the CPU works (0 without --strict); "
    "20 this build has no code for the GPU; 21 driver too old; 22 the container got no GPU; 23 hidden by the "
    "environment; 24 torch missing or broken; 25 an extension library lacks this GPU; 30 undetermined"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `ambidex doctor`. The defaults ask for this machine and this Python."""
    parser.epilog = _EXIT_CODES
    parser.add_argument(
        "action", nargs="?", choices=["explain"], help="explain: read a pasted error, name cause and fix"
    )
    parser.add_argument(
        "file", nargs="?", default="-", help="for explain: a file, or - for standard input (default)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the report as JSON, schema 1")
    form.add_argument(
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
    supposed.add_argument("--os", metavar="NAME", help="linux or windows")
    supposed.add_argument("--machine", metavar="NAME", help="x86_64 or aarch64")


def run(arguments: argparse.Namespace) -> int:
    """Do what the flags say. Raises `Problems` for what cannot be understood or read."""
    if arguments.action == "explain":
        return _explain(arguments.file)
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
    )
    if arguments.json:
        _print(report.json())
    elif arguments.report:
        _print(report.paste())
    else:
        _print(for_people(report, sys.stdout))
    return report.exit_code


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
    """Print, with a ? for what this terminal cannot show, and in peace where `head` has read enough."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
    except BrokenPipeError:
        # Python flushes once more at its end; that must have somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(name: str) -> int:
    from ambidex.device.explain import explain

    explained = explain(_text(name))
    _print(str(explained))
    return explained.exit_code


def _text(name: str) -> str:
    """At most the last 2 MB, where the error of a long log stands."""
    limit = 2 << 20
    if name == "-":
        if sys.stdin.isatty():
            print("paste the error, then end with Ctrl-D (Ctrl-Z and Enter on Windows):", file=sys.stderr)
        return sys.stdin.buffer.read()[-limit:].decode("utf-8", "replace")
    try:
        with Path(name).expanduser().open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit))
            return file.read(limit).decode("utf-8", "replace")
    except OSError as error:
        raise Problems(
            Problem(
                f"{name} cannot be read",
                found=error.strerror or str(error),
                wanted="a text file, or - for standard input",
            )
        ) from None
