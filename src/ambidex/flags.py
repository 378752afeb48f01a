"""The flags of `ambidex train`: one for each setting."""

from __future__ import annotations

import argparse
from itertools import pairwise
from typing import Any

from ambidex import config
from ambidex.parsers import Parser, Wide


def train_flags(arguments: list[str]) -> tuple[dict[str, Any], str | None, list[str]]:
    """The flags as they were typed, the configuration file, and words that are neither. Types are config's business."""
    parser = Parser(
        prog="ambidex train", allow_abbrev=False, argument_default=argparse.SUPPRESS,
        usage="ambidex train [CONFIG.toml] [--SETTING VALUE ...]", formatter_class=Wide,
        description="Train a model. A later source wins: preset, TOML file, environment (AMBIDEX_...), flags. "
                    "In brackets stands what holds where none of them says anything.",
    )  # fmt: skip
    parser.add_argument("config", nargs="?", default=None, metavar="CONFIG.toml", help="a file of settings")
    groups: dict[str, Any] = {}
    defaults = config.defaults()
    for name, info in config.fields().items():
        group = groups.setdefault(config.group(info), parser.add_argument_group(config.group(info)))
        text = f"{info.description}" + (
            "" if defaults[name] == "" or defaults[name] is False else f" [{_shown(defaults[name])}]"
        )
        if info.annotation is bool:
            group.add_argument(config.flag(name), dest=name, action=argparse.BooleanOptionalAction, help=text)
        elif name == "data":
            group.add_argument(
                config.flag(name), dest=name, nargs="*", action="extend", metavar="PATH", help=text
            )
        else:  # "?" so that a missing value is reported with everything else that is wrong
            words = (
                "{" + ",".join(found) + "}" if (found := config.choices(name)) else _value_word(name, info)
            )
            group.add_argument(config.flag(name), dest=name, nargs="?", const=None, metavar=words, help=text)
    found, unknown = parser.parse_known_args(arguments)
    flags = vars(found)
    file = flags.pop("config")
    if file is not None and (
        not file or file[0] in config.DASHES[1:]
    ):  # pasted, with dashes made long; or empty
        file, unknown = None, [file, *unknown]
    unknown = _take_values(flags, arguments, unknown)
    # What was typed behind a flag that there is not is that flag's value: neither a second mistake nor a file.
    values = {
        word for flag, word in pairwise(arguments)
        if flag in unknown and flag[:1] in config.DASHES and "=" not in flag and word[:1] not in config.DASHES
    }  # fmt: skip
    return flags, None if file in values else file, [word for word in unknown if word not in values]


def _take_values(flags: dict[str, Any], arguments: list[str], unknown: list[str]) -> list[str]:
    """Give a flag without a value the word behind it where that begins with one dash and is no flag, such as -5s.

    Returns the words that are still unknown.
    """
    left = list(unknown)
    for flag, word in pairwise(arguments):
        name = flag.removeprefix("--").replace("-", "_")
        if flag == config.flag(name) and flags.get(name, "") is None and word in left and word[:2] != "--":
            flags[name] = word
            left.remove(word)
    return left


def _value_word(name: str, info: Any) -> str:
    """What stands for the value of a setting in its help."""
    if name in ("time", "step_timeout", "collective_timeout"):
        return "TIME"
    short = {int: "N", float: "X"}
    return short.get(info.annotation) or {"out": "DIR", "from_trace": "RUN", "prompt": "TEXT"}.get(
        name, name.upper()
    )


def _shown(value: Any) -> str:
    return (
        " ".join(value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
