"""The words by which a device is asked for, where such a word can come from, and that it is one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ambidex.errors import Problem, Problems, did_you_mean

CHOICES = ("auto", "cpu", "cuda", "cuda:N", "mps")


def understood(requested: str, origin: str) -> str:
    """The device in its one spelling. Raises `Problems` (exit 2) for a word that is none."""
    texts(device=requested)
    wanted = requested.strip().lower()
    if wanted in ("auto", "cpu", "cuda", "mps") or re.fullmatch(r"cuda:\d{1,4}", wanted):
        return wanted if ":" not in wanted else f"cuda:{int(wanted[5:])}"
    near = "did you mean 'cuda'?" if wanted in ("gpu", "nvidia") else did_you_mean(wanted, CHOICES)
    raise Problems(
        Problem(
            f"{requested!r} is no device",
            found=f"{requested!r}, from {origin_words(origin)}",
            wanted=", ".join(CHOICES),
            fix=near or "leave it out: auto takes a GPU where one works, else the CPU",
        )
    )


def texts(problems: Sequence[Problem] = (), **arguments: object) -> None:
    """Raises `Problems` for the arguments of a call that are no text, after those that were found already."""
    found = [
        Problem(f"{name}={value!r} is no text.", type(value).__name__, "a str, as the command line has it")
        for name, value in arguments.items()
        if not isinstance(value, str)
    ]
    if found:
        raise Problems([*problems, *found])


def origin_words(origin: str) -> str:
    return {
        "flag": "the flag --device",
        "argument": "the argument device=",
        "toml": "device in the TOML file",
        "environment": "AMBIDEX_DEVICE",
    }.get(origin, "the default")
