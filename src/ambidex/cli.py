"""The program: which command, and how it ends. What a user can cause ends in a sentence and an exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ambidex.commands import FUNCTIONS
from ambidex.errors import Exit, Problem, Problems, did_you_mean
from ambidex.parsers import COMMANDS, EXAMPLES
from ambidex.stops import obey_as_first_process

# What the extra `train` brings. That one of them is missing is no mistake in the program.
FOR_TRAINING = ("torch", "numpy", "pydantic", "safetensors", "tokenizers", "matplotlib", "tqdm", "filelock")

# What a write to standard output may end in: a full disk, a quota, a device that is gone.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

# What a file may answer where no reader foresaw it: the disk's doing, and no mistake in the program.
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENXIO, errno.ELOOP)


def entry() -> NoReturn:
    """The console script."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        sys.exit(main(sys.argv[1:]))
    # One of torchrun's processes. A thread of gloo's that still lives when Python takes itself apart asks for its lock
    # and aborts the process (torch 2.13), and one that waits for a lost process cannot be joined. So: straight out.
    try:
        code = main(sys.argv[1:])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else Exit.USAGE
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. What a user can cause ends in a sentence, never in a traceback."""
    occupy_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a file name, or a sample, may hold what this terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    code = int(Exit.DONE)
    try:
        code = run(list(arguments))
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk is still a sentence
        return code
    except Problems as problems:
        rank = os.environ.get("RANK", "0")  # of several processes on one screen, torchrun's
        complain(str(problems) if rank == "0" else f"rank {rank}: {problems}")
        return problems.exit_code
    except ModuleNotFoundError as error:
        if error.name not in FOR_TRAINING:
            raise
        if {"-h", "--help"}.intersection(arguments):  # its flags are settings, which need pydantic
            print(_help_without(arguments[0], str(_not_installed(arguments, error.name))))
            return Exit.DONE
        complain(str(Problems(_not_installed(arguments, error.name))))
        return Exit.USAGE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:  # whoever read it, such as `head`, has enough
        _to_nobody(sys.stdout)
        return code
    except OSError as error:
        if error.filename is not None and error.errno in (*FULL, *REFUSED):
            complain(str(Problems(Problem("The disk did not do what was asked of it.", found=str(error)))))
            writing = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
            return Exit.CANNOT_WRITE if writing else Exit.DATA
        if (
            error.filename is not None or error.errno not in FULL
        ):  # of a file, which has its own words; or a mistake
            raise
        _to_nobody(sys.stdout)
        complain(str(Problems(Problem("The output cannot be written.", found=error.strerror or str(error)))))
        return Exit.CANNOT_WRITE


def occupy_standard_streams() -> None:
    """Where whoever started us closed a standard stream, send it nowhere.

    Its number would be given to the next file that is opened, a checkpoint perhaps, and what a library or a child
    process writes to "standard output" would stand in that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest free number, which is this one
        if number and getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115


def _not_installed(arguments: Sequence[str], package: str) -> Problem:
    return Problem(
        f"ambidex {arguments[0]} needs packages that are not installed.",
        found=f"no {package} for {sys.executable}",
        wanted="what ambidex[train] brings; ambidex doctor needs none of it",
        fix='python -m pip install "ambidex[train]"; where you want the CPU build of torch, first what '
        "ambidex variants says",
    )


def _help_without(command: str, why: str) -> str:
    """What can be said of a command whose flags cannot be listed here."""
    examples = "\n".join(f"  {example}" for example in EXAMPLES[command])
    return f"usage: ambidex {command} ...\n\n{COMMANDS[command]}\n\nexamples:\n{examples}\n\n{why}"


def _to_nobody(stream: io.TextIOBase | Any) -> None:
    """What is still held for a reader who cannot have it is dropped, so that Python's end does not stumble over it."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def complain(text: str) -> None:
    """To standard error, where there is one and somebody still reads it."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return Exit.DONE
    if arguments[0] in ("-V", "--version"):
        import ambidex

        print(f"ambidex {ambidex.__version__}")
        return Exit.DONE
    obey_as_first_process()
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        near = did_you_mean(command, list(COMMANDS))
        raise Problems(Problem(f"There is no command {command!r}.", wanted=", ".join(COMMANDS), fix=near))
    return int(FUNCTIONS[command](rest))


def overview() -> str:
    from ambidex import welcome

    return welcome.overview(COMMANDS, welcome.next_steps(Path(os.environ.get("AMBIDEX_RUNS") or "runs")))
