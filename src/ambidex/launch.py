"""From settings to a finished run: device, text, run folder, model; then the loop; then what to type next."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ambidex
from ambidex import checkpoint, config, plan, runs
from ambidex.checkpoint import Checkpoint
from ambidex.config import Resolved, Settings
from ambidex.device.choose import Choice, choose
from ambidex.device.cpu import Cpu, has_fast_bf16, look_at_cpu, threads_for_training
from ambidex.engine import Device, compile_problem, numerics
from ambidex.errors import Exit, Problem, Problems
from ambidex.model import LanguageModel, initialise
from ambidex.optim import Optimizer, Schedule
from ambidex.runs import Run
from ambidex.screen import Screen, line
from ambidex.stops import Stops
from ambidex.text.batches import Batches
from ambidex.text.tokens import Tokens, prepare
from ambidex.trainer import Trainer, fit

WARM_UP_STEPS = 4  # of which the first is left out: it pays for memory and threads


@dataclass(frozen=True)
class Outcome:
    """The run, and the exit code that it ended in: 0, or 130 and 143 where a signal stopped it after a checkpoint."""

    run: Run
    exit_code: int


def train(config_file: str | Path | None = None, /, **settings: Any) -> Run:
    """Train as `ambidex train` does; keywords are the flags with underscores. Returns the run.

    Raises Problems with all that is wrong, and KeyboardInterrupt where Ctrl-C stopped it (after a checkpoint).
    """
    resolved = config.resolve(settings, file=Path(config_file) if config_file else None, called_from="argument")
    outcome = start(resolved)
    if outcome.exit_code == Exit.INTERRUPTED:
        raise KeyboardInterrupt
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)
    return outcome.run


def start(resolved: Resolved) -> Outcome:
    """Everything that `ambidex train` does once its settings are known."""
    with Stops() as stops:
        choice = choose(resolved.settings.device, resolved.kind("device"), asked=resolved.asked("device"))
        cpu = look_at_cpu()
        line("device", f"{choice.name}: {choice.reason}")
        for notice in choice.notices:
            line("", notice)
        place = find_place(resolved, choice)
        resolved = place.resolved
        settings = resolved.settings
        tokens = prepare(
            settings.data, tokenizer=settings.tokenizer, vocabulary_size=settings.vocabulary_size,
            field=settings.field, validation_fraction=settings.validation_fraction,
            cache=cache_folder(), progress=sys.stderr.isatty(),
        )  # fmt: skip
        return Outcome(Run("."), 0)
