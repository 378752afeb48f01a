"""The card: the machine-readable record of everything that can change a run's numbers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import ambidex
from ambidex.device import cpu as processor
from ambidex.device.choose import Choice
from ambidex.engine import TORCHS_OWN, Device, exact_products, numerics
from ambidex.model import LanguageModel
from ambidex.text.tokens import Tokens
from ambidex.trainer import Trainer


def new_card(trainer: Trainer, choice: Choice) -> dict[str, Any]:
    """Everything that can change the run's numbers, and where it came from."""
    tokens, cpu = trainer.tokens, processor.look()
    return {
        "ambidex": ambidex.__version__,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": trainer.settings.model_dump(mode="json"),
        "precision": trainer.device.precision,
        "parameters": sum(trainer.model.shape.parameters().values()),
        "weights_sha256": weights_hash(trainer.model),
        "data": {
            "hash": tokens.data_hash,
            "train_tokens": tokens.train_tokens,
            "validation_tokens": tokens.validation_tokens,
            "bytes": tokens.train_bytes + tokens.validation_bytes,
            "documents": tokens.summary.documents,
            "vocabulary_size": tokens.tokenizer.vocabulary_size,
        },
        "cpu": {"name": cpu.name, "isa": list(cpu.isa), "cores": cpu.cores, "quota": cpu.quota},
        "numerics": numerics(),
        "versions": versions(),
        **leg(trainer, choice),
    }


def leg(trainer: Trainer, choice: Choice) -> dict[str, Any]:
    """What may change when a run is continued elsewhere."""
    return {
        "device": {
            "name": choice.name,
            "reason": choice.reason,
            "forced_by": list(choice.forced_by),
            "decided_by": choice.decided_by,
        },
        "threads": trainer.device.threads,
        "between_products": trainer.device.between_products(),
        "compiled": trainer.is_compiled(),
        "processes": trainer.group.size,
        "build": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "system": f"{platform.system()} {platform.machine()}",
        "from_step": trainer.step,
    }


def between_products(card: Mapping[str, Any]) -> str:
    """Who computed what stands between products in a run's last leg; before there was a choice it was torch."""
    return str(_last(card, "between_products", TORCHS_OWN))


def was_compiled(card: Mapping[str, Any]) -> bool | None:
    """Whether the model was compiled in a run's last leg; None where its card does not say."""
    said = _last(card, "compiled", None)
    return None if said is None else bool(said)


def _last(card: Mapping[str, Any], key: str, unsaid: Any) -> Any:
    """What the newest leg says that says anything of ``key``."""
    legs = [card, *(leg for leg in card.get("resumes", []) if isinstance(leg, Mapping))]
    return next((leg[key] for leg in reversed(legs) if key in leg), unsaid)


def what_decides_numbers(tokens: Tokens, device: Device) -> dict[str, Any]:
    """What has to be alike in all processes, since each steps its own copy of the weights."""
    return {
        "data hash": tokens.data_hash,
        "precision": device.precision,
        "device": device.kind,
        "torch": torch.__version__,
        **numerics(),
        "fp32_products": exact_products(),  # gradients are summed over processes, whoever multiplied them
    }


def measured(trainer: Trainer) -> dict[str, Any]:
    """What is known at the end alone: bytes at the peak of this process, and what one product reached before it."""
    return {"peak_bytes": trainer.device.peak_bytes(), "product_rate": trainer.device.product_rate}


def weights_hash(model: LanguageModel) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode() + b"\0" + weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "numpy", "safetensors", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
