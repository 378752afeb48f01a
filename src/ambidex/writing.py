"""`ambidex sample`: load the newest good checkpoint of a run and stream text from it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path

from ambidex import trained
from ambidex.device import cpu as processor
from ambidex.device.choose import choose
from ambidex.engine import Device
from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import one_line
from ambidex.guard import cpu_guard
from ambidex.runs import Run, readable
from ambidex.sampling import generate
from ambidex.text import StreamDecoder, Tokenizer


def write(
    path: Path, prompt: str, tokens: int, *, temperature: float, top_k: int, seed: int, device: str
) -> int:
    """Print the prompt and ``tokens`` tokens after it as they are made. Raises Problems (exit 2 and 3)."""
    asked_by = "flag" if device != "auto" else "default"
    for number, piece in enumerate(
        pieces(path, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed, device=device, asked_by=asked_by)
    ):  # fmt: skip
        sys.stdout.write(piece if number == 0 else readable(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    return Exit.DONE


def beginning(tokenizer: Tokenizer) -> list[int]:
    """Tokens to begin with where nobody gives a prompt: a new line, or the first token where the text had none."""
    try:
        return [int(token) for token in tokenizer.encode("\n")]
    except Problems:
        return [0]


def check_values(prompt: object, counts: Mapping[str, object], temperature: object) -> None:
    """Raise Problems (exit 2) with all that cannot be; from Python anything may come."""
    wrong = [(flag, value, "a whole number, 0 or more") for flag, value in counts.items()
             if not isinstance(value, Integral) or isinstance(value, bool) or value < 0]  # fmt: skip
    if not isinstance(temperature, Real) or not 0 <= float(temperature) < math.inf:
        wrong.append(("--temperature", temperature, "a finite number, 0 or more"))
    if not isinstance(prompt, str):
        wrong.append(("--prompt", prompt, "text"))
    if wrong:
        raise Problems(
            Problem(f"{flag} has a value that it cannot have.", found=one_line(repr(value)), wanted=wanted)
            for flag, value, wanted in wrong
        )


def pieces(
    path: Path,
    prompt: str,
    tokens: int,
    *,
    temperature: float,
    top_k: int,
    seed: int,
    device: str,
    asked_by: str,
) -> Iterator[str]:
    """The prompt, then the text that a run's model writes after it, piece by piece.

    What is passed over of the run's checkpoints is named on standard error. Raises Problems: exit 2 for a number
    that cannot be, 3 for a run that cannot be read, the doctor's for a device that cannot be had.
    """
    check_values(prompt, {"--tokens": tokens, "--top-k": top_k, "--seed": seed}, temperature)
    choice = choose(device, asked_by)
    with cpu_guard(choice.forced_by):
        machine = Device(
            choice.name, "fp32", processor.threads_for_training(), fused=False
        )  # a token is one row
        found = trained.newest(Run(path))
        for words in found.skipped:
            print(words, file=sys.stderr)
        machine.place(found.model)
        begun = (
            [int(token) for token in found.tokenizer.encode(prompt)] if prompt else beginning(found.tokenizer)
        )
        decoder = StreamDecoder(found.tokenizer)
        yield prompt
        for token in generate(
            found.model, machine, begun, tokens, temperature=temperature, top_k=top_k, seed=seed
        ):
            yield decoder.push(token)
        yield decoder.finish()
