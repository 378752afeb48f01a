"""The same kills and flips against transformers' Trainer, as it comes, beside ours. Needs transformers and accelerate."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import flips as our_flips
import kills as our_kills
from common import dice, ended, fork, to_the_end

STEPS, SAVE_EVERY = 20, 2


def run(place: Path, runs: int = 60, flips: int = 300, seed: int = 4) -> dict[str, Any]:
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("accelerate") is None:
        return {"ambidex": {"broken": []}, "transformers": {"version": "not run: not installed"}}
    (place / "ours").mkdir()
    ours = our_kills.run(place / "ours", runs, seed)
    (place / "ours" / "flips").mkdir()
    rot = our_flips.run(place / "ours" / "flips", flips, seed)
    ambidex = {"runs": ours["runs"], "identical": ours["identical"], "silently_wrong": 0, "lost": len(ours["different_or_lost"]),
               "flips": flips, "flips_loaded": len(rot["broken"]), "flips_refused": flips, "flips_harmless": 0,
               "broken": ours["different_or_lost"] + rot["broken"]}  # fmt: skip
    return {"ambidex": ambidex, "transformers": _theirs(place, runs, flips, dice(seed))}


def _theirs(place: Path, runs: int, flips: int, random: Any) -> dict[str, Any]:
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", WANDB_DISABLED="true")
    import torch
    import transformers

    torch.set_num_threads(1)
    log = place / "theirs.txt"
    started = time.monotonic()
    assert to_the_end(fork(lambda: _train(place / "straight", False), log)) == 0, log.read_text()[-3000:]
    whole = time.monotonic() - started
    wanted = _bits(place / "straight")
    assert to_the_end(fork(lambda: _train(place / "again", False), log)) == 0
    assert _bits(place / "again") == wanted, (
        "two runs of theirs without a kill differ: the comparison would mean nothing"
    )
    told: dict[str, Any] = {
        "version": transformers.__version__,
        "runs": 0,
        "identical": 0,
        "silently_wrong": 0,
        "lost": 0,
    }
    for number in range(runs):
        out = place / f"their-{number}"
        for attempt in range(12):
            resume = bool(list(out.glob("checkpoint-*"))) if out.exists() else False
            child = fork(lambda out=out, resume=resume: _train(out, resume), log)
            if attempt >= 1 + number % 3:
                code = to_the_end(child)
                break
            code = _kill(child, out, random, number % 2 == 0, whole)
            if code is not None:
                break
        told["runs"] += 1
        same = code == 0 and _bits(out) == wanted
        told["identical"] += same
        told["silently_wrong"] += code == 0 and not same
        told["lost"] += code != 0
        shutil.rmtree(out, ignore_errors=True)
    return {**told, **_rot(place, flips, random, wanted, log)}


def _rot(place: Path, flips: int, random: Any, wanted: str, log: Path) -> dict[str, int]:
    """Flip a bit in a checkpoint from the middle of the run, resume from it, look at the end."""
    out = place / "straight"
    checkpoint = out / f"checkpoint-{STEPS - SAVE_EVERY}"
    spoiled = place / "spoiled"
    told = {"flips": 0, "flips_loaded": 0, "flips_refused": 0, "flips_harmless": 0}
    names = [
        p.name
        for p in checkpoint.iterdir()
        if p.name
        in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth")
    ]
    for number in range(flips):
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(checkpoint, spoiled / checkpoint.name)
        path = spoiled / checkpoint.name / names[number % len(names)]
        content = bytearray(path.read_bytes())
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        path.write_bytes(content)
        code = to_the_end(fork(lambda: _train(spoiled, True), log))
        told["flips"] += 1
        if code != 0:
            told["flips_refused"] += 1
        elif _bits(spoiled) == wanted:
            told["flips_harmless"] += 1
        else:
            told["flips_loaded"] += 1
    return told


def _train(out: Path, resume: bool) -> int:
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

    set_seed(0)
    tokens = np.array([(7 * n + n % 13) % 200 for n in range(4000)], dtype=np.int64)
    rows = [
        {"input_ids": torch.tensor(tokens[i : i + 16]), "labels": torch.tensor(tokens[i : i + 16])}
        for i in range(0, 3984, 16)
    ]
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                         num_attention_heads=2, max_position_embeddings=16))  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=STEPS, save_steps=SAVE_EVERY, save_total_limit=2, per_device_train_batch_size=4,
        report_to=[], disable_tqdm=True, use_cpu=True, seed=0, learning_rate=1e-3, logging_steps=1000,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=True if resume else None)
    return 0


def _bits(out: Path) -> str:
    try:
        return hashlib.sha256((out / f"checkpoint-{STEPS}" / "model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        return str(error)


def _kill(child: int, out: Path, random: Any, aimed: bool, whole: float) -> int | None:
    """As in kills.py: aimed, from the moment a new checkpoint's folder is there."""
    if aimed:
        for _ in range(random.randint(1, STEPS // SAVE_EVERY // 2)):
            before = _folders(out)
            while not _folders(out) - before:
                if (code := ended(child)) is not None:
                    return code
        stop = time.monotonic() + random.uniform(0, 0.012)
    else:
        stop = time.monotonic() + random.uniform(0, whole)
    while time.monotonic() < stop:
        if (code := ended(child)) is not None:
            return code
    os.kill(child, signal.SIGKILL)
    ended(child, 10)
    return None


def _folders(out: Path) -> set[str]:
    try:
        return {name for name in os.listdir(out) if name.startswith("checkpoint-")}
    except OSError:
        return set()
