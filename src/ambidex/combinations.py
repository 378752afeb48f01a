"""What is right by itself and wrong together, and the nearest that is right."""

from __future__ import annotations

from ambidex.errors import Problem
from ambidex.settings import Settings


def impossible(settings: Settings) -> list[tuple[tuple[str, ...], Problem]]:
    """What is right by itself and wrong together: the names involved, and the problem."""
    s = settings
    found: list[tuple[tuple[str, ...], Problem]] = []
    if s.width % s.heads:
        found.append(
            (
                ("width", "heads"),
                Problem(
                    "The width must divide into heads.",
                    found=f"--width {s.width} --heads {s.heads}",
                    wanted="a width that is a multiple of the heads",
                    fix=f"--width {_nearest_multiple(s.width, s.heads)}, or --heads {_nearest_divisor(s.width, s.heads)}",
                ),
            )
        )
    elif (s.width // s.heads) % 2:
        found.append(
            (
                ("width", "heads"),
                Problem(
                    "A head must have an even width, since rotary positions turn pairs.",
                    found=f"{s.width} / {s.heads} = {s.width // s.heads}",
                    wanted="an even number",
                    fix=f"--width {_nearest_multiple(s.width, 2 * s.heads)}",
                ),
            )
        )
    if s.heads % s.kv_heads:
        found.append(
            (
                ("heads", "kv_heads"),
                Problem(
                    "The query heads must divide into groups that share a key/value head.",
                    found=f"--heads {s.heads} --kv-heads {s.kv_heads}",
                    wanted="kv-heads that divide the heads",
                    fix=f"--kv-heads {_nearest_divisor(s.heads, s.kv_heads)}",
                ),
            )
        )
    if s.micro_batch_size and s.batch_size % s.micro_batch_size:
        found.append(
            (
                ("batch_size", "micro_batch_size"),
                Problem(
                    "The batch must divide into micro-batches.",
                    found=f"--batch-size {s.batch_size} --micro-batch-size {s.micro_batch_size}",
                    wanted="a micro-batch size that divides the batch size",
                    fix=f"--micro-batch-size {_nearest_divisor(s.batch_size, s.micro_batch_size)}",
                ),
            )
        )
    if s.tokenizer == "bpe" and s.vocabulary_size < 257:
        found.append(
            (
                ("tokenizer", "vocabulary_size"),
                Problem(
                    "A learnt vocabulary needs more tokens than there are bytes.",
                    found=f"--vocabulary-size {s.vocabulary_size}",
                    wanted="257 or more",
                    fix="--vocabulary-size 4096",
                ),
            )
        )
    if s.ngrams > s.context:
        found.append(
            (
                ("ngrams", "context"),
                Problem(
                    "A group of tokens is longer than a sequence.",
                    found=f"--ngrams {s.ngrams} --context {s.context}",
                    wanted="groups of at most as many tokens as a sequence has",
                    fix=f"--ngrams {s.context}",
                ),
            )
        )
    if s.grow_from > s.layers:
        found.append(
            (
                ("grow_from", "layers"),
                Problem(
                    "More blocks are to train from the start than there are.",
                    found=f"--grow-from {s.grow_from} --layers {s.layers}",
                    wanted="at most as many as --layers",
                    fix="--grow-from 1",
                ),
            )
        )
    if s.precision == "fp16" and s.device in ("cpu", "mps"):
        found.append(
            (
                ("precision", "device"),
                Problem(
                    "fp16 training needs a CUDA GPU.",
                    found=f"--precision fp16 --device {s.device}",
                    wanted="fp32 or bf16 here",
                    fix="--precision auto",
                ),
            )
        )
    return found  # fmt: skip


def _nearest_divisor(number: int, near: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - near), d))


def _nearest_multiple(number: int, of: int) -> int:
    return max(1, round(number / of)) * of
