"""What saving beside training costs on the preset 45m: the stand-still of a save, and the slower steps beside it."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

STEPS_BETWEEN = 4


def run(place: Path, rounds: int = 5) -> dict[str, Any]:
    """Rounds of so many steps with one save at their start, and of as many without, in turns."""
    import numpy as np

    from ambidex import config, launch
    from ambidex.device import cpu as processor
    from ambidex.device.choose import choose
    from ambidex.engine import Device, available_bytes
    from ambidex.launch import rule
    from ambidex.saver import Saver
    from ambidex.text.tokenizer import ByteTokenizer
    from ambidex.text.tokens import Tokens

    os.environ.pop("OMP_NUM_THREADS", None)
    settings = config.resolve({"preset": "45m", "device": "cpu"}, environment={}).settings
    some = np.random.default_rng(0).integers(0, settings.vocabulary_size, 200_000, dtype=np.uint16)
    tokenizer = ByteTokenizer()
    tokenizer.vocabulary_size = settings.vocabulary_size
    tokens = Tokens(some, some[:5000], tokenizer, "", 0, 0, None, place)  # type: ignore[arg-type]
    precision = rule(choose("cpu", "flag"), processor.look())[0]
    trainer = launch.build(settings, Device("cpu", precision, processor.threads_for_training()), tokens)
    for _ in range(2):
        trainer.update()
    with_save, without, stands = [], [], []
    with Saver(place / "checkpoints", 2, tell=print, free_bytes=available_bytes) as saver:
        saver.save(trainer.snapshot(), None)  # the first takes its memory
        saver.finish()
        for _ in range(rounds):
            without.append(_steps(trainer))
            started = time.perf_counter()
            saver.save(trainer.snapshot(), None)
            stands.append(time.perf_counter() - started)
            with_save.append(stands[-1] + _steps(trainer))
            saver.finish()
    step = statistics.median(without) / STEPS_BETWEEN
    extra = statistics.median(a - b for a, b in zip(with_save, without))
    every = settings.save_every or settings.evaluate_every or max(1, settings.steps // 10)
    return {
        "precision": precision, "threads": trainer.device.threads, "step_seconds": round(step, 3),
        "stand_still_seconds": round(statistics.median(stands), 3), "extra_seconds_a_save": round(extra, 3),
        "steps_between_saves_by_default": every, "share_of_step_time_by_default": f"{extra / (every * step):.3%}",
        "steps_between_saves_for_2_percent": round(max(0.0, extra) / (0.02 * step), 1),
        "checkpoint_MB": round(sum(p.stat().st_size for p in (place / "checkpoints").glob("*/*")) / 2e6, 1),
        "broken": [] if extra < 0.02 * every * step else ["a save costs more than 2 % at the default rhythm"],
    }  # fmt: skip


def _steps(trainer: Any) -> float:
    started = time.perf_counter()
    for _ in range(STEPS_BETWEEN):
        trainer.update()
    return time.perf_counter() - started
