"""What each command does with its words: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from ambidex.errors import Exit, Problem, Problems, did_you_mean
from ambidex.parsers import COMMANDS, Built, Parser


def doctor(arguments: list[str]) -> int:
    from ambidex.device import command as room

    parser = Parser(prog="ambidex doctor", description=COMMANDS["doctor"], allow_abbrev=False)
    room.add_arguments(parser)
    # Intermixed, or the file of `doctor explain --json FILE` would be one word too many.
    options, unknown = parser.parse_known_intermixed_args(arguments)
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
    from ambidex.flags import train_flags

    flags, file, unknown = train_flags(arguments)
    resolved = config.resolve(flags, file=Path(file) if file else None, unknown_flags=unknown)
    from ambidex import launch

    return launch.start(resolved).exit_code


def bench(arguments: list[str]) -> int:
    parser = Parser(prog="ambidex bench", description=COMMANDS["bench"], allow_abbrev=False)
    parser.add_argument(
        "--preset", default="", help="the model whose step is taken apart [nano]; with --to-loss [quick]"
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="as in training [auto]")
    parser.add_argument("--threads", type=int, help="0: as training takes by itself [0]")
    parser.add_argument("--steps", type=int, help="steps that are measured [5]")
    parser.add_argument(
        "--to-loss", type=float, default=0.0, metavar="NATS",
        help="instead: seconds to this validation loss on --data, in turns with a plain loop",
    )  # fmt: skip
    parser.add_argument("--data", metavar="FILE", help="the text for --to-loss")
    parser.add_argument("--rounds", type=int, help="pairs of runs for --to-loss, each with its seed [5]")
    parser.add_argument("--seed", type=int, help="seed of the first round of --to-loss [0]")
    parser.add_argument("--json", action="store_true", help="for a program to read")
    options = parser.parse_args(arguments)
    wrong = [
        Problem(f"{flag} has a value that it cannot have.", found=str(value), wanted=f"{least} or more")
        for flag, value, least in (("--seed", options.seed, 0), ("--threads", options.threads, 0), ("--steps", options.steps, 1),
                                    ("--rounds", options.rounds, 1), ("--to-loss", options.to_loss, 0)) if value is not None and not value >= least
    ]  # fmt: skip
    if options.to_loss and not options.data:
        wrong.append(Problem("--to-loss needs a text.", found="no --data", wanted="a text file",
                             fix="ambidex bench --to-loss 1.88 --data PATH"))  # fmt: skip
    race_alone = {"--data": options.data, "--rounds": options.rounds, "--seed": options.seed}
    step_alone = {"--precision": options.precision, "--threads": options.threads, "--steps": options.steps}
    without = [
        flag for flag, value in (step_alone if options.to_loss else race_alone).items() if value is not None
    ]
    wrong += [
        Problem(f"{flag} has no effect " + ("with --to-loss." if options.to_loss else "without --to-loss."),
                found=" ".join(["ambidex bench", *arguments]), wanted=f"{flag} left out" if options.to_loss else "--to-loss NATS with it",
                fix="" if options.to_loss else "ambidex bench --to-loss 1.88 --data PATH")
        for flag in without
    ]  # fmt: skip
    if wrong:
        raise Problems(wrong)
    rounds, seed = (5 if options.rounds is None else options.rounds), options.seed or 0
    if options.to_loss:
        from ambidex import race

        return race.run(options.to_loss, options.data, options.preset, rounds, seed, options.json)
    from ambidex import bench as room

    return room.run(
        options.preset or "nano", options.precision or "auto", options.threads or 0,
        5 if options.steps is None else options.steps, options.json,
    )  # fmt: skip


def presets(arguments: list[str]) -> int:
    from ambidex import config

    parser = Parser(prog="ambidex presets", description=COMMANDS["presets"], allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="the preset to print")
    name = parser.parse_args(arguments).name
    if name is None:
        names = config.preset_names()
        width = max(map(len, names)) + 2
        for known in names:
            print(f"{known:<{width}}{config.preset_text(known).splitlines()[0].removeprefix('# ')}")
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
    except Built as built:
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
