"""`ambidex sample`: load the newest good checkpoint of a run and stream text from it."""

from __future__ import annotations

import sys
from pathlib import Path

from ambidex import checkpoint, plan, runs
from ambidex.device import cpu as processor
from ambidex.device.choose import choose
from ambidex.engine import Device
from ambidex.errors import Exit, Problem, Problems
from ambidex.guard import cpu_guard
from ambidex.model import LanguageModel
from ambidex.resume import settings_of
from ambidex.runs import Run
from ambidex.sampling import generate
from ambidex.text import StreamDecoder, Tokenizer, load_tokenizer


def write(
    path: Path, prompt: str, tokens: int, *, temperature: float, top_k: int, seed: int, device: str
) -> int:
    """Print the prompt and ``tokens`` tokens after it as they are made. Raises Problems (exit 2 and 3)."""
    problems = [
        Problem(f"{flag} has a value that it cannot have.", found=str(value), wanted=wanted)
        for flag, value, wanted, good in (
            ("--tokens", tokens, "0 or more", tokens >= 0),
            ("--temperature", temperature, "0 or more", temperature >= 0),
            ("--top-k", top_k, "0 or more", top_k >= 0),
            ("--seed", seed, "0 or more", seed >= 0),
        )
        if not good
    ]
    if problems:
        raise Problems(problems)
    run = Run(path)
    choice = choose(device, "flag" if device != "auto" else "default")
    with cpu_guard(choice.forced_by):
        machine = Device(choice.name, "fp32", processor.threads_for_training())
        model, tokenizer = load(run)
        machine.place(model)
        begun = [int(token) for token in tokenizer.encode(prompt or "\n")]
        decoder = StreamDecoder(tokenizer)
        sys.stdout.write(prompt)
        for token in generate(model, machine, begun, tokens, temperature=temperature, top_k=top_k, seed=seed):
            sys.stdout.write(runs.printable(decoder.push(token)))
            sys.stdout.flush()
        sys.stdout.write(runs.printable(decoder.finish()) + "\n")
    return Exit.DONE


def load(run: Run) -> tuple[LanguageModel, Tokenizer]:
    """Model and tokenizer of the newest good checkpoint. What is passed over is named on standard error."""
    card = run.card
    tokenizer = load_tokenizer(run.path / runs.TOKENIZER)
    settings = settings_of(card)
    found = checkpoint.newest_good(run.checkpoints, plan.tensors_of(settings, tokenizer.vocabulary_size))
    for words in found.skipped:
        print(words, file=sys.stderr)
    if found.checkpoint is None:
        raise Problems(
            Problem("The run has no good checkpoint.", found="; ".join(found.skipped) or f"{run.checkpoints} holds none",
                    fix=run.command_to_resume()), Exit.DATA,
        )  # fmt: skip
    model = LanguageModel(plan.shape_of(settings, tokenizer.vocabulary_size))
    model.load_state_dict(found.checkpoint.model, strict=False)
    return model, tokenizer
