"""The commands: parse, call, print. No logic, and nothing heavy imported before a command needs it."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from ambidex.device.cpu import spin_briefly
from ambidex.errors import Exit, Problem, Problems, did_you_mean
from ambidex.stops import obey_as_first_process

COMMANDS = {
    "doctor": "will this build run on this machine, why, and what to type",
    "train": "train a model, on the device that works",
    "sample": "write text with a trained model",
    "export": "a trained model as a folder for transformers, or as GGUF",
    "checkpoints": "list a run's checkpoints, and verify every byte of them",
    "bench": "this machine's peak, and how near training comes to it",
    "compare": "are these runs the same, and where do they part",
    "report": "one HTML page for a run",
    "top": "the runs that are trained now, and those that were",
    "presets": "list the presets, or print one to copy and change",
    "variants": "the PyTorch builds that there are, and which fit here",
    "completion": "what lets a shell complete these commands",
}

# What the extra `train` brings. That one of them is missing is no mistake in the program.
FOR_TRAINING = ("torch", "numpy", "pydantic", "safetensors", "tokenizers", "matplotlib", "tqdm", "filelock")

# What a write to standard output may end in: a full disk, a quota, a device that is gone.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

# What a file may answer where no reader foresaw it: the disk's doing, and no mistake in the program.
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENXIO, errno.ELOOP)

EXAMPLES = {
    "doctor": (
        "ambidex doctor",
        'ambidex doctor --torch 2.5.1+cu121 --gpu "RTX 5060" --driver 576.02',
        "ambidex doctor explain error.txt",
    ),
    "train": (
        "ambidex train --dry-run",
        "ambidex train --data book.txt --steps 500 --out my-run",
        "ambidex train --resume --out my-run",
    ),
    "sample": ('ambidex sample my-run --prompt "Once" --tokens 400', "ambidex sample my-run --temperature 0"),
    "compare": ("ambidex compare runs/cpu runs/gpu", "ambidex compare runs/cpu runs/bridge runs/gpu --json"),
    "export": ("ambidex export my-run --to model", "ambidex export my-run --format gguf --to model-gguf"),
    "bench": (
        "ambidex bench",
        "ambidex bench --preset 45m --steps 2",
        "ambidex bench --to-loss 1.88 --data book.txt",
    ),
    "checkpoints": ("ambidex checkpoints my-run",),
    "report": ("ambidex report my-run",),
    "top": ("ambidex top", "ambidex top runs"),
    "presets": ("ambidex presets", "ambidex presets mini > mine.toml"),
    "variants": ("ambidex variants",),
    "completion": (
        "ambidex completion bash > ~/.local/share/bash-completion/completions/ambidex",
        "ambidex completion zsh > ~/.zfunc/_ambidex",
    ),
}


class Parser(argparse.ArgumentParser):
    """argparse that reports like everything else here, and shows examples."""

    collecting = False  # a command then stops at its finished parser, which completion reads

    def parse_known_args(self, *words: Any, **named: Any) -> Any:
        if Parser.collecting:
            raise _Built(self)
        return super().parse_known_args(*words, **named)

    def format_help(self) -> str:
        examples = EXAMPLES.get(self.prog.removeprefix("ambidex "), ())
        shown = ["", "examples:", *(f"  {example}" for example in examples), ""] if examples else []
        return super().format_help() + "\n".join(shown)

    def error(self, message: str) -> NoReturn:
        raise Problems(Problem(f"{message[:1].upper()}{message[1:]}.", fix=f"{self.prog} --help"))

    def _get_formatter(self) -> argparse.HelpFormatter:
        """With a width, since without one every flag that is added loads `shutil` and what it brings."""
        try:
            columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size().columns
        except (OSError, ValueError):
            columns = 100
        return self.formatter_class(self.prog, width=max(40, columns - 2))  # type: ignore[call-arg]


class _Built(Exception):  # noqa: N818  no error
    """A command's parser, ready."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a file name, or a sample, may hold what this terminal cannot show
            stream.reconfigure(errors="backslashreplace")
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
        return Exit.DONE
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
    spin_briefly(os.environ)
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        near = did_you_mean(command, list(COMMANDS))
        raise Problems(Problem(f"There is no command {command!r}.", wanted=", ".join(COMMANDS), fix=near))
    return int(FUNCTIONS[command](rest))


def overview() -> str:
    from ambidex import welcome

    return welcome.overview(COMMANDS, welcome.next_steps(Path(os.environ.get("AMBIDEX_RUNS") or "runs")))


def doctor(arguments: list[str]) -> int:
    from ambidex.device import command as room

    parser = Parser(prog="ambidex doctor", description=COMMANDS["doctor"], allow_abbrev=False)
    room.add_arguments(parser)
    options, unknown = parser.parse_known_args(arguments)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    return room.run(options, [_unknown(word, flags) for word in unknown])


def _unknown(word: str, flags: list[str]) -> Problem:
    return Problem(
        f"{word!r} is not understood.", fix=did_you_mean(word, flags) or "ambidex doctor --help lists what is"
    )


def variants(arguments: list[str]) -> int:
    from ambidex.device import command as room

    parser = Parser(prog="ambidex variants", description=COMMANDS["variants"], allow_abbrev=False)
    room.add_variants_arguments(parser)
    return room.run_variants(parser.parse_args(arguments))


def train(arguments: list[str]) -> int:
    from ambidex import config

    flags, file, unknown = train_flags(arguments)
    resolved = config.resolve(flags, file=Path(file) if file else None, unknown_flags=unknown)
    from ambidex import launch

    return launch.start(resolved).exit_code


def train_flags(arguments: list[str]) -> tuple[dict[str, Any], str | None, list[str]]:
    """The flags as they were typed, the configuration file, and words that are neither. Types are config's business."""
    from ambidex import config

    parser = Parser(
        prog="ambidex train", allow_abbrev=False, argument_default=argparse.SUPPRESS,
        usage="ambidex train [CONFIG.toml] [--SETTING VALUE ...]", formatter_class=Wide,
        description="Train a model. A later source wins: preset, TOML file, environment (AMBIDEX_...), flags. "
                    "In brackets stands what holds where none of them says anything.",
    )  # fmt: skip
    parser.add_argument("config", nargs="?", default=None, metavar="CONFIG.toml", help="a file of settings")
    groups: dict[str, Any] = {}
    defaults = config.defaults()
    for name, info in config.fields().items():
        group = groups.setdefault(config.group(info), parser.add_argument_group(config.group(info)))
        text = f"{info.description}" + (
            "" if defaults[name] == "" or defaults[name] is False else f" [{_shown(defaults[name])}]"
        )
        if info.annotation is bool:
            group.add_argument(config.flag(name), dest=name, action=argparse.BooleanOptionalAction, help=text)
        elif name == "data":
            group.add_argument(config.flag(name), dest=name, nargs="*", metavar="PATH", help=text)
        else:  # "?" so that a missing value is reported with everything else that is wrong
            words = (
                "{" + ",".join(found) + "}" if (found := config.choices(name)) else _value_word(name, info)
            )
            group.add_argument(config.flag(name), dest=name, nargs="?", const=None, metavar=words, help=text)
    found, unknown = parser.parse_known_args(arguments)
    flags = vars(found)
    file = flags.pop("config")
    if file is not None and file[:1] in config.DASHES[1:]:  # pasted from where dashes are made long
        file, unknown = None, [file, *unknown]
    # What was typed behind a flag that there is not is that flag's value: neither a second mistake nor a file.
    values = {
        word for flag, word in pairwise(arguments)
        if flag in unknown and flag[:1] in config.DASHES and "=" not in flag and word[:1] not in config.DASHES
    }  # fmt: skip
    return flags, None if file in values else file, [word for word in unknown if word not in values]


def _value_word(name: str, info: Any) -> str:
    """What stands for the value of a setting in its help."""
    if name in ("time", "step_timeout", "collective_timeout"):
        return "TIME"
    short = {int: "N", float: "X"}
    return short.get(info.annotation) or {"out": "DIR", "from_trace": "RUN", "prompt": "TEXT"}.get(
        name, name.upper()
    )


def _shown(value: Any) -> str:
    return (
        " ".join(value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


class Wide(argparse.HelpFormatter):
    def __init__(self, prog: str, width: int | None = None) -> None:
        super().__init__(prog, max_help_position=32, width=width)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """A flag's value may be left out for the parser alone, which lets `config` report it; a reader has to give it."""
        if action.nargs == "?" and action.option_strings:
            return self._metavar_formatter(action, default_metavar)(1)[0]
        return super()._format_args(action, default_metavar)


def bench(arguments: list[str]) -> int:
    parser = Parser(prog="ambidex bench", description=COMMANDS["bench"], allow_abbrev=False)
    parser.add_argument(
        "--preset", default="", help="the model whose step is taken apart [nano]; with --to-loss [quick]"
    )
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto", help="as in training [auto]"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: as training takes by itself [0]")
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured [5]")
    parser.add_argument(
        "--to-loss", type=float, default=0.0, metavar="NATS",
        help="instead: seconds to this validation loss on --data, in turns with a plain loop",
    )  # fmt: skip
    parser.add_argument("--data", default="", metavar="FILE", help="the text for --to-loss")
    parser.add_argument(
        "--rounds", type=int, default=5, help="pairs of runs for --to-loss, each with its seed [5]"
    )
    parser.add_argument("--json", action="store_true", help="for a program to read")
    options = parser.parse_args(arguments)
    wrong = [
        Problem(f"{flag} has a value that it cannot have.", found=str(value), wanted=f"{least} or more")
        for flag, value, least in (("--threads", options.threads, 0), ("--steps", options.steps, 1),
                                    ("--rounds", options.rounds, 1), ("--to-loss", options.to_loss, 0)) if not value >= least
    ]  # fmt: skip
    if options.to_loss and not options.data:
        wrong.append(Problem("--to-loss needs a text.", found="no --data", wanted="a text file",
                             fix="ambidex bench --to-loss 1.88 --data PATH"))  # fmt: skip
    if wrong:
        raise Problems(wrong)
    if options.to_loss:
        from ambidex import race

        return race.run(options.to_loss, options.data, options.preset, options.rounds, options.json)
    from ambidex import bench as room

    return room.run(options.preset or "nano", options.precision, options.threads, options.steps, options.json)


def presets(arguments: list[str]) -> int:
    from ambidex import config

    parser = Parser(prog="ambidex presets", description=COMMANDS["presets"], allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="the preset to print")
    name = parser.parse_args(arguments).name
    if name is None:
        for known in config.preset_names():
            print(f"{known:<8}{config.preset_text(known).splitlines()[0].removeprefix('# ')}")
    else:
        print(config.preset_text(name), end="")
    return Exit.DONE


def compare(arguments: list[str]) -> int:
    parser = Parser(prog="ambidex compare", description=COMMANDS["compare"], allow_abbrev=False)
    try:
        from ambidex.compare import command as room
    except ImportError as error:
        raise Problems(
            Problem(
                "compare needs numpy and safetensors.", found=str(error), fix="pip install numpy safetensors"
            )
        ) from None
    room.add_arguments(parser)

    def measure_again(path: Path, legs: int) -> None:
        from ambidex.launch import measure_again as measure  # and with it torch

        with redirect_stdout(sys.stderr):
            measure(path, legs)

    return room.run(parser.parse_args(arguments), measure_again)


def report(arguments: list[str]) -> int:
    parser = Parser(prog="ambidex report", description=COMMANDS["report"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--html", metavar="FILE", type=Path, help="where the page goes [RUN/report.html]")
    options = parser.parse_args(arguments)
    from ambidex import runpage

    return runpage.report(options.run, options.html)


def top(arguments: list[str]) -> int:
    parser = Parser(prog="ambidex top", description=COMMANDS["top"], allow_abbrev=False)
    parser.add_argument(
        "dir",
        metavar="DIR",
        type=Path,
        nargs="?",
        help="a folder of runs, or one run [AMBIDEX_RUNS, or runs]",
    )
    parser.add_argument("--once", action="store_true", help="print once, on a terminal too")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two looks [2]")
    options = parser.parse_args(arguments)
    if not 0.1 <= options.every <= 3600:
        raise Problems(
            Problem(
                "--every has a value that it cannot have.", found=str(options.every), wanted="0.1 to 3600"
            )
        )
    from ambidex import top as room

    folder = options.dir or Path(os.environ.get("AMBIDEX_RUNS") or "runs")
    return room.show(folder, once=options.once, every=options.every)


def sample(arguments: list[str]) -> int:
    parser = Parser(prog="ambidex sample", description=COMMANDS["sample"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--prompt", default="", help="what the text begins with")
    parser.add_argument("--tokens", type=int, default=200, help="how many tokens to write [200]")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest each time [0.8]"
    )
    parser.add_argument("--top-k", type=int, default=0, help="choose among the K likeliest only; 0: all [0]")
    parser.add_argument("--seed", type=int, default=0, help="another number, another text [0]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")
    options = parser.parse_args(arguments)
    from ambidex.writing import write

    return write(
        Path(options.run), options.prompt, options.tokens, temperature=options.temperature, top_k=options.top_k,
        seed=options.seed, device=options.device,
    )  # fmt: skip


def export(arguments: list[str]) -> int:
    parser = Parser(prog="ambidex export", description=COMMANDS["export"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run folder; its newest good checkpoint is taken")
    parser.add_argument(
        "--format", default="hf", help="hf: a folder for transformers; gguf: for llama.cpp and Ollama [hf]"
    )
    parser.add_argument(
        "--to", required=True, metavar="DIR", help="a new folder, or an earlier export of the same format"
    )
    options = parser.parse_args(arguments)
    from ambidex.export.command import export as room

    room(options.run, options.format, options.to)
    return Exit.DONE


def checkpoints(arguments: list[str]) -> int:
    parser = Parser(prog="ambidex checkpoints", description=COMMANDS["checkpoints"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run folder")
    parser.add_argument("--json", action="store_true", help="for a program to read")
    options = parser.parse_args(arguments)
    from ambidex import listing

    return listing.show(Path(options.run), options.json)


def completion(arguments: list[str]) -> int:
    parser = Parser(prog="ambidex completion", description=COMMANDS["completion"], allow_abbrev=False)
    parser.add_argument("shell", metavar="SHELL", help="bash, zsh or tcsh")
    shell = parser.parse_args(arguments).shell
    from ambidex.completion import script

    print(script(shell, {name: (words, parser_of(name)) for name, words in COMMANDS.items()}))
    return Exit.DONE


def parser_of(command: str) -> Parser:
    """The parser of a command, without running it. Raises what the command raises where it cannot be built."""
    Parser.collecting = True
    try:
        FUNCTIONS[command]([])
    except _Built as built:
        return built.parser
    finally:
        Parser.collecting = False
    raise AssertionError(f"{command} parsed nothing")


FUNCTIONS: dict[str, Callable[[list[str]], int]] = {
    "doctor": doctor,
    "train": train,
    "sample": sample,
    "export": export,
    "checkpoints": checkpoints,
    "bench": bench,
    "compare": compare,
    "report": report,
    "top": top,
    "presets": presets,
    "variants": variants,
    "completion": completion,
}
