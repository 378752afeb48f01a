"""The model that a run has come to: its newest good checkpoint, its tokenizer, and what was passed over."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ambidex import checkpoint, plan, runs
from ambidex.config import Settings
from ambidex.errors import Exit, Problem, Problems
from ambidex.model import LanguageModel
from ambidex.resume import check_agrees, check_card_agrees, check_none_saved, settings_of
from ambidex.runs import Run
from ambidex.text import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Trained:
    """Weights, in fp32 on the CPU, after ``step`` updates. ``skipped`` has a line for each checkpoint passed over."""

    model: LanguageModel
    tokenizer: Tokenizer
    settings: Settings
    card: dict[str, Any]
    step: int
    skipped: tuple[str, ...]


def newest(run: Run) -> Trained:
    """The newest good checkpoint of a run, as a model. Raises Problems (exit 3) where there is none that fits."""
    card = run.card
    settings = settings_of(card)
    try:
        tokenizer = load_tokenizer(run.path / runs.TOKENIZER)
    except Problems as problems:
        fix = f"{run.command_to_resume()}, which writes it again"
        raise Problems([replace(one, fix=fix) for one in problems.problems], problems.exit_code) from None
    found = checkpoint.newest_good(run.checkpoints, plan.tensors_of(settings, tokenizer.vocabulary_size))
    if found.checkpoint is None:
        check_card_agrees(run, settings, groups=("model", "text"))
        if not found.skipped:
            check_none_saved(run)
        raise Problems(
            Problem("The run has no good checkpoint.", found="; ".join(found.skipped) or f"{run.checkpoints} holds none",
                    fix=run.command_to_resume()), Exit.DATA,
        )  # fmt: skip
    check_agrees(found.checkpoint, settings, groups=("model", "text"))
    model = LanguageModel(plan.shape_of(settings, tokenizer.vocabulary_size))
    model.load_state_dict(found.checkpoint.model, strict=False)
    return Trained(model, tokenizer, settings, card, found.checkpoint.step, found.skipped)
