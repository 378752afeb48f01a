"""GPU names: from what people type, or what the driver prints, to a compute capability.

"RTX 5060" is not "RTX 5060 Ti", "A100" is not "RTX A1000", and "6000" alone is three GPUs: a name is compared
word by word, and words that change nothing (NVIDIA, Laptop, 80GB) are dropped first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ambidex.errors import Problem, Problems

# Words that change nothing about which chip it is.
_NOISE = frozenset(
    {
        "nvidia",
        "geforce",
        "tesla",
        "grid",
        "graphics",
        "gpu",
        "laptop",
        "mobile",
        "notebook",
        "desktop",
        "with",
    }
    | {"design", "generation", "edition", "server", "workstation", "founders", "oc", "hgx", "series", "card"}
    | {"developer", "kit", "lite", "hash", "rate", "lhr", "ceo", "v2", "ac", "dgxs"}
    | {
        "accelerator",
        "superchip",
        "nvgpu",
        "pcie",
        "nvl",
        "nvl72",
        "sxm",
        "sxm2",
        "sxm3",
        "sxm4",
        "sxm5",
        "sxm6",
    }
)
_SIZE = re.compile(r"\d+(g|gb|gib)|hbm\d?\w?|gddr\d\w?|ddr\d")
# Words that people leave out, which is well where no other GPU bears the number. "Ti", "SUPER" and "D" are
# not among them: they name other GPUs.
_FAMILY = frozenset(
    {"rtx", "gtx", "gt", "quadro", "titan", "jetson", "agx", "dgx", "pro", "x"}
    | {"blackwell", "ada", "pascal", "maxwell"}
)
_PREFIX = r"(?:cuda |compute )?capability|sm|compute|cc"
# Words of other makers, and NVIDIA's for a generation, which is no GPU.
_OTHERS = re.compile(r"\b(amd|radeon|rx|instinct|mi\d{2,3}\w?|intel|arc|iris|uhd|apple|m[1-5]|adreno|mali)\b")
_GENERATION = re.compile(r"kepler|maxwell|pascal|volta|turing|ampere|ada|lovelace|hopper|blackwell|rubin")
_EXAMPLES = 'a name ("RTX 5060 Ti"), an architecture ("sm_120") or a compute capability ("12.0")'


@dataclass(frozen=True)
class Known:
    """A GPU of the table. ``machine`` is "aarch64" where it exists in such computers only, else empty."""

    name: str
    cc: tuple[int, int]
    generation: str = ""
    machine: str = ""


@cache
def known() -> tuple[Known, ...]:
    """Every GPU of `gpus.toml`, newest capability first."""
    import tomllib  # only where a GPU is asked for by its name

    text = Path(__file__).with_name("gpus.toml").read_text(encoding="utf-8")
    rows = {key: row for key, row in tomllib.loads(text).items() if isinstance(row, dict)}
    return tuple(
        Known(name, _capability(cc), row["generation"], row.get("machine", ""))
        for cc, row in rows.items()
        for name in row["names"]
    )


def find(text: str) -> Known:
    """``"rtx5060ti"``, ``"sm_120"`` or ``"12.0"`` -> the GPU. Raises Problems (exit 2) with near names."""
    numeric = re.fullmatch(rf"(?:{_PREFIX})?[_ :-]*(\d{{1,2}})[._]?(\d)[af]?", text.strip().lower())
    if numeric and (re.match(rf"\s*(?:{_PREFIX})", text.lower()) or "." in text):
        return _by_capability((int(numeric[1]), int(numeric[2])), text)
    return _by_name(text)


def named(text: str) -> Known | None:
    """The GPU that begins the text, by as many of its words as a name of the table has; None where none does."""
    words = text.split()[:8]
    for count in range(len(words), 0, -1):
        asked = _words(" ".join(words[:count]))
        found = _match(asked) if any(not word.isdigit() for word in asked) else None
        if found:
            return found
    return None


def generation(cc: tuple[int, int]) -> str:
    """ "Blackwell" for 12.0; empty where the table has no such GPU."""
    return next((gpu.generation for gpu in known() if gpu.cc == cc), "")


def _by_capability(cc: tuple[int, int], text: str) -> Known:
    same = [gpu for gpu in known() if gpu.cc == cc]
    if same:
        machine = same[0].machine if len({gpu.machine for gpu in same}) == 1 else ""
        return Known(f"GPU of compute capability {cc[0]}.{cc[1]}", cc, same[0].generation, machine)
    capabilities = sorted({gpu.cc for gpu in known()} | {(10, 1)})
    # A GPU newer than the table is judged by the same rule as every other; one that never was is a slip.
    if cc == (10, 1) or capabilities[-1][0] < cc[0] < 20:
        machine = "aarch64" if cc == (10, 1) else ""  # Thor's first number
        return Known(f"GPU of compute capability {cc[0]}.{cc[1]}", cc, machine=machine)
    accepted = ", ".join(f"{major}.{minor}" for major, minor in capabilities)
    raise Problems(
        Problem(
            f"--gpu {text}: no GPU has compute capability {cc[0]}.{cc[1]}.",
            found=f"compute capability {cc[0]}.{cc[1]}",
            wanted=f"one of {accepted}, or a name",
        )
    )


def _by_name(text: str) -> Known:
    asked = _words(text)
    without = tuple(word for word in asked if word != "quadro")  # NVIDIA gave the word up, people did not
    return _match(asked) or _match(without) or _missed(text, asked)


def _match(asked: tuple[str, ...]) -> Known | None:
    exact = [gpu for gpu in known() if asked and _same(asked, _words(gpu.name))]
    if exact:
        return exact[0]
    several = _shortened(asked)
    if several and len({gpu.cc for gpu in several}) == 1:
        return min(several, key=lambda gpu: len(gpu.name))
    return None


def _missed(text: str, asked: tuple[str, ...]) -> Known:
    raise Problems(_miss(text, _shortened(asked)))


def _shortened(asked: tuple[str, ...]) -> list[Known]:
    return [gpu for gpu in known() if asked and _is_shortened(asked, _words(gpu.name))]


def _miss(text: str, several: list[Known]) -> Problem:
    if several:
        choices = ", ".join(f"{gpu.name} ({gpu.cc[0]}.{gpu.cc[1]})" for gpu in several)
        return Problem(f"--gpu {text!r} names several GPUs.", found=choices, wanted="one of them, in full")
    if _OTHERS.search(text.lower()):
        other = (
            "Only NVIDIA's GPUs are judged from their names; others are tried by the probe, where they are."
        )
        return Problem(f"--gpu {text!r} is no GPU of NVIDIA's.", found=other, wanted=_EXAMPLES)
    near = _near(text)
    return Problem(
        f"--gpu {text!r} is no GPU that the table has.",
        found=f"read as {' '.join(_words(text))!r}" if _words(text) else "no name",
        wanted=_EXAMPLES,
        fix=f"did you mean {' or '.join(near)}?" if near else "",
    )


def _near(text: str) -> list[str]:
    digits = text.strip()
    as_capability = f"{digits[:-1]}.{digits[-1:]}" if "." not in digits and len(digits) > 1 else f"{digits}.0"
    if digits.isascii() and digits.isdigit() and any(_dotted(gpu.cc) == as_capability for gpu in known()):
        return [f"sm_{as_capability.replace('.', '')}"]
    if _GENERATION.fullmatch(digits.lower()):
        return [gpu.name for gpu in known() if gpu.generation.lower() == digits.lower()][:3]
    by_words = {" ".join(_words(gpu.name)): gpu.name for gpu in known()}
    import difflib  # slow to load, and needed for a slip alone

    near = difflib.get_close_matches(" ".join(_words(text)), list(by_words), n=3, cutoff=0.5)
    return [by_words[words] for words in near]


def _same(asked: tuple[str, ...], full: tuple[str, ...]) -> bool:
    """Whether both are the same words in any order, or run together ("GB 10")."""
    return sorted(asked) == sorted(full) or "".join(asked) == "".join(full)


def _is_shortened(asked: tuple[str, ...], full: tuple[str, ...]) -> bool:
    """Whether `asked` is `full` with family words left out, and at least the model left in."""
    rest = list(full)
    for word in asked:
        if word not in rest:
            return False
        rest.remove(word)
    names_it = any(len(word) > 3 or not word.isalpha() for word in asked)  # "v" alone is no Titan V
    return names_it and set(rest) <= _FAMILY and not set(asked) <= _FAMILY - {"titan"}


@cache
def _words(name: str) -> tuple[str, ...]:
    """``"NVIDIA GeForce RTX5060Ti Laptop GPU"`` -> ``("rtx", "5060", "ti")``."""
    text = re.sub(r"\((r|tm)\)|[®™]", " ", name.lower())
    text = re.sub(r"\bmax[- ]?q\b|\bnot for resale\b", " ", text)
    text = re.sub(r"\bmig\b.*|-\d+[qcba]\b", " ", text)  # a slice, or a virtual machine's share
    text = re.sub(r"\b(rtx|gtx|gt|titan|quadro|geforce|nvidia|tesla)(?=\w*\d)", r"\1 ", text)
    text = re.sub(r"(\d|ti|super)(laptop|mobile|notebook)\b", r"\1 \2", text)
    text = re.sub(r"\b(\d{3,4})(ti|super|d)(super)?\b", r"\1 \2 \3", text)
    words = re.findall(r"[^\W_]+", text)
    return tuple(word for word in words if word not in _NOISE and not _SIZE.fullmatch(word))


def _dotted(cc: tuple[int, int]) -> str:
    return f"{cc[0]}.{cc[1]}"


def _capability(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)
