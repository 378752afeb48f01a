"""Random numbers that are the same bytes on every machine and every torch version.

Torch's own generators are not: ``trunc_normal_``, ``dropout`` and ``multinomial`` differ entirely between torch 2.6
and 2.13, and ``randn`` differs in its last bits without AVX. Here a counter-based generator (Philox 4x64, Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", 2011) gives raw 64-bit words, and everything made of them is one
exact multiplication. numpy keeps the raw words of its bit generators fixed between versions (NEP 19); it does not
promise that of its distributions, so none is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def uniform(seed: int, name: str, count: int) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1), multiples of 2^-53, decided by ``seed`` and ``name`` alone."""
    return _fractions(_words(seed, name).random_raw(count))


def stream(seed: int, name: str, at_once: int = 4096) -> Iterator[float]:
    """The numbers of `uniform`, one after the other without an end, in the memory of ``at_once`` of them."""
    source = _words(seed, name)
    while True:
        yield from _fractions(source.random_raw(at_once)).tolist()


def _words(seed: int, name: str) -> np.random.Philox:
    return np.random.Philox(
        key=int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "little")
    )


def _fractions(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def symmetric(seed: int, name: str, count: int, deviation: float) -> NDArray[np.float32]:
    """``count`` numbers around 0 with the given standard deviation.

    Uniform rather than normal: it needs no logarithm, whose last bit depends on the C library.
    """
    half_width = 3.0**0.5 * deviation
    numbers: NDArray[np.float32] = ((uniform(seed, name, count) * 2.0 - 1.0) * half_width).astype(np.float32)
    return numbers
