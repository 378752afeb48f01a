"""Two runs' cards side by side: whether they are the same training at all, and what else differs, weightiest first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ambidex.errors import Problem

# Settings in which two runs may differ and still be the same training: where things lie, how often it is watched, and
# how the work is cut up, which is just what a comparison is to judge.
FREE = frozenset(
    {"preset", "time", "out", "resume", "dry_run", "data", "field", "evaluate_every", "evaluation_tokens",
     "sample_every", "sample_tokens", "prompt", "save_every", "keep", "device", "threads", "tensorboard", "trace",
      "trace_states", "trace_band", "non_finite", "step_timeout", "collective_timeout",
      "from_trace", "compile", "fused", "replay", "micro_batch_size", "precision"}
)  # fmt: skip

# What runs did that are older than a setting, so that its coming parts no old run from a new one.
BEFORE: Mapping[str, Any] = {
    "residual_init": 1.0,
    "ngrams": 1,
    "ngram_rows": 8192,
    "grow_from": 0,
    "grow_at": 0.8,
    "sampled_softmax": 1,
}

MATTERS = (
    ("build.torch", "another build: other kernels"),
    ("device.name", "another device: other kernels"),
    ("build.cuda", "other GPU libraries"),
    ("config.compile", "compiled kernels round elsewhere"),
    ("compiled", "compiled kernels round elsewhere"),
    ("computes_in", "products in another precision"),
    ("numerics.float32_matmul_precision", "products in a lower precision"),
    ("numerics.cuda_allow_tf32", "products in a lower precision"),
    ("numerics.cudnn_allow_tf32", "products in a lower precision"),
    ("numerics.mkldnn", "another library for products"),
    ("numerics.fp32_products", "another library multiplies"),
    ("numerics.cpu_capability", "other vector code: sums in another order"),
    ("between_products", "other code between products: sums in another order"),
    ("numerics.deterministic", "sums in an order that may change"),
    ("config.micro_batch_size", "gradients are added in another order"),
    ("processes", "gradients are added in another order"),
    ("threads", "sums may be split elsewhere"),
    ("cpu.isa", "other instructions"),
    ("cpu.name", "another processor"),
    ("versions.numpy", "another library"),
    ("versions.safetensors", "another library"),
    ("build.python", "another interpreter"),
    ("system", "another system"),
    ("ambidex", "another version of this tool"),
)


class Difference(NamedTuple):
    key: str
    reference: Any
    run: Any
    matters: str  # how it can reach a run's numbers


def differences(reference: Mapping[str, Any], run: Mapping[str, Any]) -> list[Difference]:
    """What differs and may, in the order in which it matters."""
    found = [Difference(key, at(reference, key), at(run, key), why) for key, why in MATTERS]
    return [one for one in found if one.reference != one.run]


def kind(reference: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """What the pair tells apart: "version", "device", "both" (so that neither can be blamed) or "same"."""
    version = at(reference, "build.torch") != at(run, "build.torch")
    device = at(reference, "device.name") != at(run, "device.name")
    return "both" if version and device else "version" if version else "device" if device else "same"


def why_not(reference: Mapping[str, Any], run: Mapping[str, Any]) -> list[Problem]:
    """Everything because of which the two are not the same training; empty where they are."""
    if ("data" in reference) != ("data" in run):
        words = {True: "ambidex train", False: "ambidex.trace, from a loop of somebody's own"}
        return [
            Problem("One of the runs was recorded by ambidex train and the other is of another loop.",
                    found=words["data" in run], wanted=f"{words['data' in reference]}, as the reference",
                    fix="record both in the same way: both by ambidex train --trace, or both with ambidex.trace")
        ]  # fmt: skip
    before, after = config_of(reference), config_of(run)
    # Without a table in one of them nobody looks up its rows: then it is the table that they differ in, if at all. So too
    # where no block waits.
    unused = {"ngram_rows"} if 1 in (before.get("ngrams"), after.get("ngrams")) else set()
    unused |= {"grow_at"} if 0 in (before.get("grow_from"), after.get("grow_from")) else set()
    names = sorted(name for name in {*before, *after} - FREE - unused if before.get(name) != after.get(name))
    problems = [
        Problem("The runs have different settings.", found=_setting(name, after, own="data" not in run),
                wanted=f"{_setting(name, before, own='data' not in run)}, as in the reference",
                fix=_as_in_the_reference(run))
        for name in names
    ]  # fmt: skip
    if at(reference, "precision") != at(run, "precision"):
        problems.append(
            Problem("The runs compute in different precisions.", found=_shown(at(run, "precision")),
                    wanted=f"{_shown(at(reference, 'precision'))}, as in the reference",
                    fix="--precision fp32 for both, or bf16" if "data" in run else "weights of the same precision in both")
        )  # fmt: skip
    if at(reference, "data.hash") != at(run, "data.hash"):
        problems.append(
            Problem("The runs were trained on different text.", found=f"data hash {_shown(at(run, 'data.hash'))[:16]}",
                    wanted=f"data hash {_shown(at(reference, 'data.hash'))[:16]}, as in the reference",
                    fix="--data with the same files for both, and the same --tokenizer")
        )  # fmt: skip
    return problems


def _as_in_the_reference(run: Mapping[str, Any]) -> str:
    if "data" not in run:
        return "the same config for ambidex.trace in both"
    return "ambidex train with that setting; --html FILE shows the losses of both as they are"


def config_of(card: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that decide numbers, older cards filled up; a loop of one's own has no data on its card, and any keys."""
    config = dict(card.get("config", {}))
    if "data" not in card:
        return config
    config = {**BEFORE, **config}
    return {**config, "grow_from": 0} if config["grow_from"] == config.get("layers") else config


def at(card: Mapping[str, Any], path: str) -> Any:
    """``card["a"]["b"]`` for "a.b"; None where it is not there."""
    value: Any = card
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _setting(name: str, config: Mapping[str, Any], *, own: bool) -> str:
    """As it is typed for `ambidex train`, or as it stands in the config of somebody's own loop."""
    shown = str(name)[:100] if own else "--" + name.replace("_", "-")[:100]
    return f"{shown}{':' * own} {_shown(config[name])}" if name in config else f"no {shown}"


def _shown(value: Any) -> str:
    return str(value)[:200]
