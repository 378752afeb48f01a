"""How GPUs are called in a sentence: by name, by number where there are several, equal ones together."""

from __future__ import annotations

from collections.abc import Sequence

from ambidex.device.covers import sm
from ambidex.device.machine import Gpu


def numbered(gpus: Sequence[Gpu]) -> str:
    """``"GPU 0 and 1 NVIDIA GeForce RTX 5090 and GPU 2 Tesla V100"``."""
    return joined([f"GPU {_numbers(same)} {same[0].name}" for same in _grouped(gpus)])


def named(gpus: Sequence[Gpu]) -> str:
    """The name alone of one GPU, else with the numbers."""
    return gpus[0].name if len(gpus) == 1 else numbered(gpus)


def are(gpus: Sequence[Gpu]) -> str:
    """``"NVIDIA GeForce RTX 5060 is sm_120"``."""
    return joined(
        [f"{_who(same, len(gpus))} {_verb(same)} {sm(same[0].cc or (0, 0))}" for same in _grouped(gpus)]
    )


def are_present(gpus: Sequence[Gpu]) -> str:
    return f"{named(gpus)} {_verb(gpus)} present"


def capabilities(gpus: Sequence[Gpu]) -> str:
    """``"sm_70 and sm_120"``, each once."""
    return joined(list(dict.fromkeys(sm(gpu.cc) for gpu in gpus if gpu.cc)))


def joined(words: Sequence[str]) -> str:
    """``"a, b and c"``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _grouped(gpus: Sequence[Gpu]) -> list[list[Gpu]]:
    groups: dict[tuple[str, tuple[int, int] | None], list[Gpu]] = {}
    for gpu in gpus:
        groups.setdefault((gpu.name, gpu.cc), []).append(gpu)
    return list(groups.values())


def _who(same: Sequence[Gpu], of: int) -> str:
    return same[0].name if of == 1 else numbered(same)


def _numbers(gpus: Sequence[Gpu]) -> str:
    return joined([str(gpu.index) for gpu in gpus])


def _verb(gpus: Sequence[Gpu]) -> str:
    return "is" if len(gpus) == 1 else "are"
