"""One typed model of every setting: a field is at once a flag, a TOML key, an environment variable and a docs row.

pydantic does the types and the bounds; `config.py` merges the sources, `combinations.py` knows what cannot go together.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

PREFIX = "AMBIDEX_"
LARGEST = 1_000_000_000  # of any count: far beyond a run, and within every integer type on the way
WIDEST = 1_048_576  # of any length of a tensor
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


def _seconds(value: object) -> object:
    """``"1h30m"``, ``"90s"`` or ``90`` to seconds."""
    if not isinstance(value, str):
        return value
    if value.strip().startswith("-"):
        raise ValueError("wanted 0 or more, such as 90s, 5m or 1h30m")
    found = DURATION.fullmatch(value.strip().lower())
    if not found or not value.strip():
        raise ValueError("wanted a duration such as 90s, 5m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def _timeout(value: object) -> object:
    """``"auto"``, or a duration."""
    return value if value == "auto" else _seconds(value)


def _device(value: object) -> object:
    if not isinstance(value, str) or not DEVICE.fullmatch(value):
        raise ValueError("wanted auto, cpu, cuda, cuda:N or mps")
    return value


def _sources(value: object) -> object:
    """One path, or a list of them."""
    return [value] if isinstance(value, str) else value


def setting(default: Any, help: str, *, numeric: bool, group: str, **bounds: Any) -> Any:  # noqa: A002
    """A field. ``numeric`` says that it can change a run's numbers: two runs that differ in one are not the same run."""
    return Field(default, description=help, json_schema_extra={"numeric": numeric, "group": group}, **bounds)


Seconds = Annotated[float, BeforeValidator(_seconds)]
Timeout = Annotated[
    Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)], BeforeValidator(_timeout)
]
DeviceName = Annotated[str, BeforeValidator(_device)]
Sources = Annotated[tuple[str, ...], BeforeValidator(_sources)]


class Settings(BaseModel):
    """Every setting of a training run. 0 stands for "choose for me" where the help says so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = setting(
        "nano", "The preset that the other settings start from.", numeric=False, group="run"
    )
    steps: int = setting(
        300, "Optimizer updates in the whole run.", numeric=True, group="run", ge=1, le=LARGEST
    )
    time: Seconds = setting(
        0.0, "Train for about this long (90s, 5m, 1h30m); becomes a number of steps. 0: --steps counts.",
        numeric=False, group="run", ge=0, allow_inf_nan=False,
    )  # fmt: skip
    seed: int = setting(
        0, "Decides the first weights and the order of the data.", numeric=True, group="run", ge=0, le=2**53
    )
    out: str = setting("", "The run folder. Left out: runs/PRESET-NNN.", numeric=False, group="run")
    resume: bool = setting(
        False, "Continue the run in --out, or the newest unfinished one like this; else start one.",
        numeric=False, group="run",
    )  # fmt: skip
    dry_run: bool = setting(False, "Print the plan and stop.", numeric=False, group="run")

    data: Sources = setting(
        ("builtin",),
        "Files, folders, - for standard input, hf:NAME, or builtin.",
        numeric=False,
        group="text",
    )
    field: str = setting("text", "The field of a JSON line, or the column of a table, that holds the text.",
                         numeric=False, group="text", min_length=1)  # fmt: skip
    tokenizer: Literal["byte", "char", "bpe"] = setting(
        "byte", "What a token is: a byte, a character, or a learnt piece.", numeric=True, group="text"
    )
    vocabulary_size: int = setting(
        256, "Tokens that a learnt (bpe) vocabulary has; byte and char decide it themselves.",
        numeric=True, group="text", ge=1, le=1_000_000,
    )  # fmt: skip
    validation_fraction: float = setting(
        0.05, "Part of the text held out to measure on.", numeric=True, group="text", gt=0, lt=1
    )

    layers: int = setting(4, "Transformer blocks.", numeric=True, group="model", ge=1, le=1024)
    width: int = setting(
        192, "Numbers that stand for a token between blocks.", numeric=True, group="model", ge=2, le=WIDEST
    )
    heads: int = setting(3, "Query heads.", numeric=True, group="model", ge=1, le=WIDEST)
    kv_heads: int = setting(
        3, "Key/value heads; fewer than heads shares them.", numeric=True, group="model", ge=1, le=WIDEST
    )
    feed_forward: int = setting(
        512, "Width inside a feed-forward layer.", numeric=True, group="model", ge=1, le=WIDEST
    )
    context: int = setting(128, "Tokens of a sequence.", numeric=True, group="model", ge=1, le=WIDEST)
    tied: bool = setting(True, "One matrix for embedding and output.", numeric=True, group="model")
    rope_base: float = setting(10_000.0, "Base of the rotary angles.", numeric=True, group="model", gt=1,
                               allow_inf_nan=False)  # fmt: skip
    norm_epsilon: float = setting(
        1e-6, "Added under every norm's root.", numeric=True, group="model", gt=0, lt=1
    )

    residual_init: float = setting(
        1.0,
        "First size of what blocks and n-grams add to the residual stream, as a part of the usual. "
        "0: they start silent.",
        numeric=True, group="model", ge=0, le=1,
    )  # fmt: skip

    ngrams: int = setting(
        1,
        "Tokens, up to 16, of the longest group that a second table looks up as one. "
        "1: no such table, as an export wants.",
        numeric=True, group="model", ge=1, le=16,
    )  # fmt: skip
    ngram_rows: int = setting(
        8192, "Rows of that table for the groups of each length; groups that hash alike share one.",
        numeric=True, group="model", ge=1, le=2**24,
    )  # fmt: skip

    grow_from: int = setting(
        0,
        "Blocks that train from the first step; the others add nothing, and cost nothing, until --grow-at. 0: all.",
        numeric=True, group="model", ge=0, le=1024,
    )  # fmt: skip
    grow_at: float = setting(
        0.8, "Part of the steps after which the blocks that waited join, for the last step at the latest.", numeric=True, group="model", ge=0, le=1,
    )  # fmt: skip

    batch_size: int = setting(
        16, "Sequences per step, over all processes.", numeric=True, group="batch", ge=1, le=WIDEST
    )
    micro_batch_size: int = setting(
        0, "Sequences per forward pass; must divide the batch size. 0: all at once.",
        numeric=True, group="batch", ge=0, le=WIDEST,
    )  # fmt: skip

    sampled_softmax: int = setting(
        1,
        "The loss of a training step runs over the batch's own tokens and one in so many of the others. 1: over all.",
        numeric=True, group="batch", ge=1, le=WIDEST,
    )  # fmt: skip

    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "adamw, or muon for the matrices of the blocks and adamw for the rest.",
        numeric=True, group="optimizer",
    )  # fmt: skip
    learning_rate: float = setting(3e-3, "Peak learning rate.", numeric=True, group="optimizer", gt=0, le=10)
    schedule: Literal["cosine", "wsd"] = setting(
        "cosine", "cosine, or wsd: warm-up, stable, decay.", numeric=True, group="optimizer"
    )
    warmup_fraction: float = setting(
        0.05, "Part of the steps in which the rate rises.", numeric=True, group="optimizer", ge=0, le=1
    )
    decay_fraction: float = setting(
        0.3, "Part of the steps in which wsd's rate falls.", numeric=True, group="optimizer", ge=0, le=1
    )
    final_rate: float = setting(
        0.1, "Last learning rate as a fraction of the peak.", numeric=True, group="optimizer", ge=0, le=1
    )
    beta1: float = setting(0.9, "Decay of AdamW's first moment.", numeric=True, group="optimizer", ge=0, lt=1)
    beta2: float = setting(
        0.95, "Decay of AdamW's second moment.", numeric=True, group="optimizer", ge=0, lt=1
    )
    epsilon: float = setting(1e-8, "AdamW's epsilon.", numeric=True, group="optimizer", gt=0, lt=1)
    momentum: float = setting(0.95, "Muon's momentum.", numeric=True, group="optimizer", ge=0, lt=1)
    weight_decay: float = setting(0.1, "Decay of the matrices.", numeric=True, group="optimizer", ge=0, le=10)
    clip: float = setting(1.0, "Largest gradient norm. 0: no clipping.", numeric=True, group="optimizer", ge=0,
                          allow_inf_nan=False)  # fmt: skip

    evaluate_every: int = setting(0, "Steps between evaluations. 0: a tenth of the run.", numeric=False,
                                  group="watching", ge=0, le=LARGEST)  # fmt: skip
    evaluation_tokens: int = setting(
        32_768, "Held-out tokens that an evaluation on the way reads. 0: all of them. The last one reads all.",
        numeric=False, group="watching", ge=0, le=LARGEST,
    )  # fmt: skip
    sample_every: int = setting(0, "Steps between samples. 0: with every evaluation.", numeric=False,
                                group="watching", ge=0, le=LARGEST)  # fmt: skip
    sample_tokens: int = setting(200, "Tokens of a sample on the way. 0: no samples.", numeric=False,
                                 group="watching", ge=0, le=LARGEST)  # fmt: skip
    prompt: str = setting(
        "",
        "What a sample on the way begins with. Left out: the start of the held-out text.",
        numeric=False,
        group="watching",
    )
    save_every: int = setting(0, "Steps between checkpoints. 0: with every evaluation.", numeric=False,
                              group="watching", ge=0, le=LARGEST)  # fmt: skip
    tensorboard: bool = setting(
        False, "Write event files for TensorBoard too, into RUN/tensorboard.", numeric=False, group="watching"
    )
    keep: int = setting(
        2, "Newest checkpoints to keep, besides the best.", numeric=False, group="watching", ge=1, le=LARGEST
    )

    non_finite: Literal["stop", "skip"] = setting(
        "stop", "A loss or gradient that is no finite number: stop (exit 5), or skip that step's update and go on.",
        numeric=False, group="watching",
    )  # fmt: skip
    step_timeout: Timeout = setting(
        "auto", "A step that takes longer (90s, 5m) hangs, and the process ends (exit 8). auto: 50 times the slowest "
        "so far, 10 minutes at least. 0: never.", numeric=False, group="watching",
    )  # fmt: skip

    trace: bool = setting(
        False, "Write fingerprints of the probe steps and their rounding floor, for ambidex compare.",
        numeric=False, group="comparing",
    )  # fmt: skip
    trace_states: bool = setting(
        False, "With --trace: keep the states at two probe steps, which --from-trace reads. Large.",
        numeric=False, group="comparing",
    )  # fmt: skip
    trace_band: int = setting(
        32, "With --trace: steps that are trained twice more with other roundings, for the band around the loss curve.",
        numeric=False, group="comparing", ge=0, le=LARGEST,
    )  # fmt: skip
    from_trace: str = setting(
        "", "With --trace: also take steps from the states of this run, which had --trace-states.",
        numeric=False, group="comparing",
    )  # fmt: skip

    device: DeviceName = setting("auto", "auto, cpu, cuda, cuda:N or mps.", numeric=False, group="machine")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "auto: bf16 where the chip has it, else fp32.", numeric=True, group="machine"
    )
    compile: bool = setting(False, "Compile the model with torch.compile.", numeric=True, group="machine")
    fused: bool = setting(
        True, "On a CPU, compile the passes between products, where gcc is.", numeric=True, group="machine"
    )
    replay: bool = setting(
        True,
        "On an NVIDIA GPU, record a step once and replay it as a CUDA graph.",
        numeric=False,
        group="machine",
    )
    threads: int = setting(0, "CPU threads of each process. 0: the cores that it may use.", numeric=False,
                           group="machine", ge=0, le=4096)  # fmt: skip
    collective_timeout: Seconds = setting(
        300.0, "Under torchrun: how long a process waits for the others within a step before it gives up.",
        numeric=False, group="machine", ge=1, le=86_400, allow_inf_nan=False,
    )  # fmt: skip

    def numeric(self) -> dict[str, Any]:
        """The settings that decide a run's numbers: what "the same configuration" compares."""
        grows = 0 < self.grow_from < self.layers
        without_effect = {"ngram_rows"} if self.ngrams == 1 else set()
        without_effect |= set() if grows else {"grow_at"}
        found = {
            name: getattr(self, name)
            for name, info in fields().items()
            if is_numeric(info) and name not in without_effect
        }
        return {**found, "grow_from": self.grow_from if grows else 0}


def fields() -> dict[str, FieldInfo]:
    return Settings.model_fields


def is_numeric(info: FieldInfo) -> bool:
    return bool(_extra(info)["numeric"])


def group(info: FieldInfo) -> str:
    return str(_extra(info)["group"])


def _extra(info: FieldInfo) -> dict[str, Any]:
    assert isinstance(info.json_schema_extra, dict)
    return info.json_schema_extra


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    return PREFIX + name.upper()
