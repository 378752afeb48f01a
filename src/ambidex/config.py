"""Every source of settings merged into one checked model: preset, TOML file, environment, flags.

A later source wins: preset, TOML file, environment, flags. pydantic does the types and the bounds; what is here is the
merging, because we want three things that ready-made command-line layers (pydantic-settings, tyro, jsonargparse) do
not give together: all errors of all sources at once, each value's origin, and paths with commas or spaces in a list.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from ambidex.combinations import impossible
from ambidex.errors import Exit, Problem, Problems, did_you_mean
from ambidex.files import read_small
from ambidex.settings import Settings, fields, flag, group, is_numeric, variable

__all__ = [
    "Resolved",
    "Settings",
    "choices",
    "defaults",
    "fields",
    "flag",
    "group",
    "is_numeric",
    "preset_names",
    "preset_text",
    "resolve",
    "variable",
]

LARGEST_FILE = 1 << 20  # bytes of a configuration, which is a page: no device without an end is read for one
DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"  # what editors and web pages make of a dash
PRESETS = Path(__file__).parent / "presets"


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


def defaults() -> dict[str, Any]:
    """What holds where nothing is given: the default preset's values, and each setting's own where presets are silent."""
    return resolve({}, environment={}).settings.model_dump()


def choices(name: str) -> tuple[str, ...]:
    """The words that a setting may have, where they are few."""
    info = fields()[name]
    return get_args(info.annotation) if get_origin(info.annotation) is Literal else ()


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
        return {"preset": name, **tomllib.loads(path.read_text("utf-8"))}
    hint = did_you_mean(name, preset_names())
    problems.append(
        Problem("There is no such preset.", found=f"--preset {name}", wanted=", ".join(preset_names()),
                fix=hint or "copy one with `ambidex presets NAME > mine.toml`, change it, `ambidex train mine.toml`")
    )  # fmt: skip
    return {}


def _read_toml(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        text = read_small(path, LARGEST_FILE).decode("utf-8-sig")  # Windows' editors begin a file with a mark
    except FileNotFoundError:
        problems.append(Problem("The configuration file is not there.", found=str(path),
                                fix="ambidex presets nano > mine.toml writes one to start from"))  # fmt: skip
        return {}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        problems.append(Problem("The configuration file cannot be read.", found=f"{path}: {reason}",
                                wanted="a TOML file in UTF-8"))  # fmt: skip
        return {}
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of a number of 5,000 digits, of 1,000 brackets
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        problems.append(Problem("The configuration file is not TOML.", found=f"{path}: {reason}",
                                wanted='lines such as: steps = 500  or  data = ["book.txt"]',
                                fix="" if path.suffix == ".toml" else f"ambidex train --data {path}, if it is the text to learn from"))  # fmt: skip
    return {}


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """An empty variable counts as unset, as compose files and shells leave them."""
    found = {name: environment.get(variable(name), "") for name in fields()}
    given: dict[str, Any] = {name: value for name, value in found.items() if value}
    return given | ({"data": _split_as_path(given["data"])} if "data" in given else {})


def _split_as_path(places: str, separator: str = os.pathsep) -> list[str]:
    """Several places in one variable, as PATH has them; the colon of hf:NAME and of an address separates nothing."""
    found: list[str] = []
    for part in places.split(separator):
        if separator == ":" and found and (found[-1] == "hf" or part.startswith("//")):
            found[-1] += f":{part}"
        else:
            found.append(part)
    return found


def _unknown_flag(word: str) -> Problem:
    known = [flag(name) for name in fields()]
    if not word:
        return Problem("A word of the command is empty.", found=repr(word), wanted="a configuration file, and flags",
                       fix="leave it out; a variable of the shell may be empty")  # fmt: skip
    if word[:1] not in DASHES:
        return Problem(f"{word!r} is one word too many.", wanted="one configuration file, and flags",
                       fix="--data PATH, if it is a text to learn from")  # fmt: skip
    typed = word.split("=", maxsplit=1)[0]
    plain = "--" + typed.lstrip(DASHES).lower()
    return Problem(
        f"There is no flag {word}.",
        found="a dash that is none of the keyboard's" if word[:1] in DASHES[1:] else "",
        fix=(did_you_mean(plain, known) if len(plain) > 3 else "") or "ambidex train --help",
    )


def _unknown_key(name: str, place: str) -> Problem:
    return Problem(f"There is no setting {name!r}.", found=f"in {place}",
                   fix=did_you_mean(name, list(fields())) or "docs/reference.md lists them all")  # fmt: skip


def _checked(values: dict[str, Any], origins: dict[str, str], problems: list[Problem]) -> Settings | None:
    """The model of ``values``, with every wrong value and every impossible combination put into ``problems``."""
    # pydantic takes true for 1, and who writes steps = true has not meant one step.
    wrong = {
        name
        for name, value in values.items()
        if isinstance(value, bool) and fields()[name].annotation is not bool
    }
    problems += [_wrong_value(name, _no_bool(name, values[name]), origins) for name in sorted(wrong)]
    values = {name: value for name, value in values.items() if name not in wrong}
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


def _no_bool(name: str, value: object) -> dict[str, Any]:
    kind = {int: "int", float: "float", str: "string"}.get(fields()[name].annotation, "")  # type: ignore[arg-type]
    return {"input": value, "type": kind, "msg": "a value such as the help shows"}


def _wrong_value(name: str, detail: Mapping[str, Any], origins: Mapping[str, str]) -> Problem:
    value = detail["input"]
    found = "nothing" if value is None else repr(value)
    hint = did_you_mean(str(value), words) if (words := choices(name)) else ""
    return Problem(
        f"{flag(name)} has a value that it cannot have.",
        found=f"{found} ({origins.get(name, 'default')})",
        wanted="a finite number" if str(value).lower() == "nan" else _wanted(detail),
        fix=hint,
    )


_KINDS_OF_VALUE = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text"}
_WORDS = {"tuple_type": "a path, or a list of them"}
_BOUNDS = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}


def _wanted(detail: Mapping[str, Any]) -> str:
    """What pydantic wanted, in our words where they are shorter."""
    limits = {key: limit for key, limit in detail.get("ctx", {}).items() if key in _BOUNDS}
    bounds = [_BOUNDS[key].format(f"{n:,}" if isinstance(n, int) else f"{n:g}") for key, n in limits.items()]
    kind = _WORDS.get(str(detail["type"])) or _KINDS_OF_VALUE.get(
        str(detail["type"]).split("_", maxsplit=1)[0]
    )
    words = str(detail["msg"]).removeprefix("Value error, ").removeprefix("wanted ")
    return bounds[0] if bounds else kind or words.removeprefix("Input should be ")


def preset_text(name: str) -> str:
    """The TOML of a preset, to print, copy and change."""
    if name not in preset_names():
        raise Problems(Problem(f"There is no preset {name!r}.", wanted=", ".join(preset_names()),
                               fix=did_you_mean(name, preset_names())))  # fmt: skip
    return (PRESETS / f"{name}.toml").read_text("utf-8")
