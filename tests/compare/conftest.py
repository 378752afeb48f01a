"""A reference with its states, trained once a recipe, and candidates that start from them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

SMALL: dict[str, Any] = {
    "layers": 2, "width": 64, "heads": 2, "kv_heads": 1, "feed_forward": 128, "context": 32, "batch_size": 8,
    "steps": 12, "evaluate_every": 12, "evaluation_tokens": 256, "sample_tokens": 0, "threads": 1, "device": "cpu",
    "precision": "fp32", "optimizer": "muon", "learning_rate": 1e-2, "trace": True, "trace_band": 0,
}  # fmt: skip

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "story.txt"
    lines = (f"line {n} is followed by line {n + 1}, as {n % 7} is by {n * n % 97}.\n" for n in range(3000))
    path.write_text("".join(lines), "utf-8", newline="\n")
    return path


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Iterator[Train]:
    """``train(**settings)`` trains the small model in this process and returns its run folder."""
    import ambidex
    from ambidex.compare import legs

    measured = legs.Workshop.floor_tables

    def one(*, floor: bool = False, **settings: Any) -> Path:
        out = tmp_path_factory.mktemp("run") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AMBIDEX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
            if (
                not floor
            ):  # the candidate's own floor can only raise a limit, so the verdict is the harsher without it
                patch.setattr(legs.Workshop, "floor_tables", lambda *_: {})
            else:
                patch.setattr(legs.Workshop, "floor_tables", measured)
            return Path(ambidex.train(**{**SMALL, "data": [str(text)], **settings}, out=str(out)).path)

    return one


@pytest.fixture(scope="session")
def reference(train: Train) -> Path:
    """muon, fp32."""
    return train(floor=True, trace_states=True)


@pytest.fixture(scope="session")
def adamw_reference(train: Train) -> Path:
    return train(floor=True, trace_states=True, optimizer="adamw", learning_rate=3e-3)


@pytest.fixture(scope="session")
def ngrams_reference(train: Train) -> Path:
    return train(floor=True, trace_states=True, ngrams=4, ngram_rows=256)


@pytest.fixture(scope="session")
def bf16_reference(train: Train) -> Path:
    return train(floor=True, trace_states=True, precision="bf16")
