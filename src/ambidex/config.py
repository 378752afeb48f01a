"""One typed model of every setting: a field is at once a flag, a TOML key, an environment variable and a docs row.

A later source wins: preset, TOML file, environment, flags. pydantic does the types and the bounds; what is here is the
merging, because we want three things that ready-made command-line layers (pydantic-settings, tyro, jsonargparse) do
not give together: all errors of all sources at once, each value's origin, and paths with commas or spaces in a list.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from ambidex.errors import Exit, Problem, Problems, did_you_mean

PREFIX = "AMBIDEX_"
PRESETS = Path(__file__).parent / "presets"
LARGEST = 1_000_000_000  # of any count: far beyond a run, and within every integer type on the way
WIDEST = 1_048_576  # of any length of a tensor
NOT_SETTINGS = ("AMBIDEX_RUNS", "AMBIDEX_CACHE")  # where things lie, not what a run is
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?")


def _seconds(value: object) -> object:
    """``"1h30m"``, ``"90s"`` or ``90`` to seconds."""
    if not isinstance(value, str):
        return value
    found = DURATION.fullmatch(value.strip().lower())
    if not found or not value.strip():
        raise ValueError("wanted a duration such as 90s, 5m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def _device(value: object) -> object:
    if not isinstance(value, str) or not DEVICE.fullmatch(value):
        raise ValueError("wanted auto, cpu, cuda, cuda:N or mps")
    return value


def _sources(value: object) -> object:
    """One path, or a list of them; an environment variable separates several as PATH does."""
    return value.split(os.pathsep) if isinstance(value, str) else value


def setting(default: Any, help: str, *, numeric: bool, group: str, **bounds: Any) -> Any:  # noqa: A002
    """A field. ``numeric`` says that it can change a run's numbers: two runs that differ in one are not the same run."""
    return Field(default, description=help, json_schema_extra={"numeric": numeric, "group": group}, **bounds)


Seconds = Annotated[float, BeforeValidator(_seconds)]
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

    batch_size: int = setting(
        16, "Sequences per step, over all processes.", numeric=True, group="batch", ge=1, le=WIDEST
    )
    micro_batch_size: int = setting(
        0, "Sequences per forward pass; must divide the batch size. 0: all at once.",
        numeric=True, group="batch", ge=0, le=WIDEST,
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
        131_072, "Held-out tokens that an evaluation on the way reads. 0: all of them. The last one reads all.",
        numeric=False, group="watching", ge=0, le=LARGEST,
    )  # fmt: skip
    sample_every: int = setting(0, "Steps between samples. 0: with every evaluation.", numeric=False,
                                group="watching", ge=0, le=LARGEST)  # fmt: skip
    sample_tokens: int = setting(200, "Tokens of a sample on the way. 0: no samples.", numeric=False,
                                 group="watching", ge=0, le=LARGEST)  # fmt: skip
    prompt: str = setting("def ", "What a sample on the way begins with.", numeric=False, group="watching")
    save_every: int = setting(0, "Steps between checkpoints. 0: with every evaluation.", numeric=False,
                              group="watching", ge=0, le=LARGEST)  # fmt: skip
    tensorboard: bool = setting(
        False, "Write event files for TensorBoard too, into RUN/tensorboard.", numeric=False, group="watching"
    )
    keep: int = setting(
        2, "Newest checkpoints to keep, besides the best.", numeric=False, group="watching", ge=1, le=LARGEST
    )

    trace: bool = setting(
        False, "Write fingerprints of the probe steps and their rounding floor, for ambidex compare.",
        numeric=False, group="comparing",
    )  # fmt: skip
    trace_states: bool = setting(
        False, "With --trace: keep the states at two probe steps, which --from-trace reads. Large.",
        numeric=False, group="comparing",
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
    threads: int = setting(0, "CPU threads. 0: the cores that this process may use.", numeric=False,
                           group="machine", ge=0, le=4096)  # fmt: skip

    def numeric(self) -> dict[str, Any]:
        """The settings that decide a run's numbers: what "the same configuration" compares."""
        return {name: getattr(self, name) for name, info in fields().items() if is_numeric(info)}


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


@dataclass(frozen=True)
class Resolved:
    """The settings of a run, and for each where its value came from, as a person would name the place."""

    settings: Settings
    origins: dict[str, str]
    asked_devices: dict[str, str]  # what each kind of origin asked for, the overruled ones too

    def kind(self, name: str) -> str:
        """ "flag", "argument", "environment", "toml", "preset" or "default"."""
        return _KINDS.get(self.origins[name].split(" ")[0], "toml")

    def given(self) -> dict[str, Any]:
        """The settings that somebody set for this run, rather than a preset or a default."""
        names = [name for name in self.origins if self.kind(name) not in ("preset", "default")]
        return {name: getattr(self.settings, name) for name in names}


_KINDS = {
    "flag": "flag",
    "argument": "argument",
    "variable": "environment",
    "preset": "preset",
    "default": "default",
}


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def resolve(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    unknown_flags: Sequence[str] = (),
    called_from: Literal["flag", "argument"] = "flag",
) -> Resolved:
    """Merge preset, TOML file, environment and flags into one checked model. Raises Problems with all that is wrong."""
    problems: list[Problem] = [_unknown_flag(word) for word in unknown_flags]
    layers: list[tuple[dict[str, Any], str]] = []
    if file is not None:
        layers.append((_read_toml(file, problems), str(file)))
    layers.append(
        (_read_environment(os.environ if environment is None else environment), "variable {variable}")
    )
    layers.append((dict(flags), "flag {flag}" if called_from == "flag" else "argument {name}="))

    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer, origin in [(_preset(layers, problems), "preset {preset}"), *layers]:
        for name, value in layer.items():
            if name not in fields():
                problems.append(_unknown_key(name, "this call" if "{" in origin else origin))
                continue
            values[name] = value
            origins[name] = origin.format(
                variable=variable(name), flag=flag(name), name=name, preset=values.get("preset", "nano")
            )
    settings = _checked(values, origins, problems)
    if problems or settings is None:
        raise Problems(problems, Exit.USAGE)
    kinds = ("toml", "environment", called_from)
    asked = {
        kind: str(layer["device"])
        for kind, (layer, _) in zip(kinds[-len(layers) :], layers)
        if "device" in layer
    }
    return Resolved(settings, {name: origins.get(name, "default") for name in fields()}, asked)


def _preset(layers: Sequence[tuple[dict[str, Any], str]], problems: list[Problem]) -> dict[str, Any]:
    name = "nano"
    for layer, _ in layers:
        name = str(layer.get("preset", name))
    path = PRESETS / f"{name}.toml"
    if name in preset_names():
        return {**tomllib.loads(path.read_text("utf-8")), "preset": name}
    hint = did_you_mean(name, preset_names())
    problems.append(
        Problem("There is no such preset.", found=f"--preset {name}", wanted=", ".join(preset_names()),
                fix=hint or "copy one with `ambidex presets NAME > mine.toml`, change it, `ambidex train mine.toml`")
    )  # fmt: skip
    return {}


def _read_toml(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        problems.append(Problem("The configuration file is not there.", found=str(path),
                                fix="ambidex presets nano > mine.toml writes one to start from"))  # fmt: skip
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem("The configuration file cannot be read.", found=f"{path}: {error}",
                                wanted="a TOML file in UTF-8"))  # fmt: skip
    except (
        ValueError,
        RecursionError,
    ) as error:  # a number of 5,000 digits, or 1,000 brackets, is no TOMLDecodeError
        problems.append(Problem("The configuration file is not TOML.", found=f"{path}: {error}",
                                wanted='lines such as: steps = 500  or  data = ["book.txt"]'))  # fmt: skip
    return {}


def _read_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An empty variable counts as unset, as compose files and shells leave them."""
    found = {name: environment.get(variable(name), "") for name in fields()}
    return {name: value for name, value in found.items() if value}


def _unknown_flag(word: str) -> Problem:
    known = [flag(name) for name in fields()]
    return Problem(
        f"There is no flag {word}.",
        fix=did_you_mean(word.split("=", maxsplit=1)[0], known) or "ambidex train --help",
    )


def _unknown_key(name: str, place: str) -> Problem:
    return Problem(f"There is no setting {name!r}.", found=f"in {place}",
                   fix=did_you_mean(name, list(fields())) or "docs/reference.md lists them all")  # fmt: skip


def _checked(values: dict[str, Any], origins: dict[str, str], problems: list[Problem]) -> Settings | None:
    """The model of ``values``, with every wrong value and every impossible combination put into ``problems``."""
    wrong: set[str] = set()
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            name = str(detail["loc"][0])
            if name in wrong:
                continue
            wrong.add(name)
            problems.append(_wrong_value(name, detail, origins))
        try:
            settings = Settings.model_validate({k: v for k, v in values.items() if k not in wrong})
        except ValidationError:
            return None
    for names, problem in impossible(settings):
        if not wrong.intersection(names):
            problems.append(problem)
    return settings


def _wrong_value(name: str, detail: Mapping[str, Any], origins: Mapping[str, str]) -> Problem:
    info = fields()[name]
    value = detail["input"]
    found = "nothing" if value is None else repr(value)
    choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    hint = did_you_mean(str(value), [str(choice) for choice in choices]) if choices else ""
    return Problem(
        f"{flag(name)} has a value that it cannot have.",
        found=f"{found} ({origins.get(name, 'default')})",
        wanted=_wanted(detail),
        fix=hint,
    )


_KINDS_OF_VALUE = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text"}
_BOUNDS = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}


def _wanted(detail: Mapping[str, Any]) -> str:
    """What pydantic wanted, in our words where they are shorter."""
    limits = {key: limit for key, limit in detail.get("ctx", {}).items() if key in _BOUNDS}
    bounds = [_BOUNDS[key].format(f"{n:,}" if isinstance(n, int) else f"{n:g}") for key, n in limits.items()]
    kind = _KINDS_OF_VALUE.get(str(detail["type"]).split("_", maxsplit=1)[0])
    words = str(detail["msg"]).removeprefix("Value error, ").removeprefix("wanted ")
    return bounds[0] if bounds else kind or words.removeprefix("Input should be ")


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


def preset_text(name: str) -> str:
    """The TOML of a preset, to print, copy and change."""
    if name not in preset_names():
        raise Problems(Problem(f"There is no preset {name!r}.", wanted=", ".join(preset_names()),
                               fix=did_you_mean(name, preset_names())))  # fmt: skip
    return (PRESETS / f"{name}.toml").read_text("utf-8")
