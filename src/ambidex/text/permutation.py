"""A keyed shuffle of 0 .. size-1 that needs no memory: a small Feistel network with cycle walking.

Every number here is made of 64-bit integer addition, multiplication, shift and exclusive or, so the order is
the same under every numpy, every torch, every processor and every operating system (law 7). Nothing is drawn
from a generator whose stream a library may change.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: the step of Steele, Lea and Flood's splitmix64
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WORD = (1 << 64) - 1
_ROUNDS = (
    8  # 4 are enough for large domains; small ones (a corpus of ten sequences) need more to look shuffled
)


def mix(*numbers: int) -> int:
    """Hash integers to 64 bits: splitmix64's finaliser, applied once a number.

    The order of the numbers matters.
    """
    state = 0
    for number in numbers:
        state = (state + number + _GOLDEN) & _WORD
        state = ((state ^ (state >> 30)) * _FIRST) & _WORD
        state = ((state ^ (state >> 27)) * _SECOND) & _WORD
        state ^= state >> 31
    return state


class Permutation:
    """A bijection of ``0 .. size-1``, chosen by ``key``; each value is computed alone, in any order.

    The network permutes the next power of two, which is less than twice ``size``; a result that falls outside
    is sent through again until it falls inside (cycle walking), which keeps it a bijection.
    """

    def __init__(self, size: int, key: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation of {size} numbers")
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << (bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        self._keys = [np.uint64(mix(key, number)) for number in range(_ROUNDS)]

    def __call__(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """``index``: any shape, values in ``0 .. size-1``. Returns the same shape."""
        value = self._network(index.astype(np.uint64))
        outside = value >= np.uint64(self.size)
        while outside.any():
            value[outside] = self._network(value[outside])
            outside = value >= np.uint64(self.size)
        return value.astype(np.int64)

    def _network(self, value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        low = value & self._low_mask
        high = value >> self._low_bits
        for number, key in enumerate(self._keys):
            # Each round changes one half by a hash of the other, so each round can be undone: a bijection.
            if number % 2:
                high ^= _mix_array(low + key) & self._high_mask
            else:
                low ^= _mix_array(high + key) & self._low_mask
        return (high << self._low_bits) | low


def _mix_array(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`mix` of one number, over an array; unsigned arrays wrap around, which is what the hash wants."""
    state = state + np.uint64(_GOLDEN)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    return state ^ (state >> np.uint64(31))
