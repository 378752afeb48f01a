"""A safetensors file, streamed: hashed while it is written, and while it is read; its header is judged before any
memory is taken for what it promises.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length, a JSON header that gives
each tensor's type, shape and place, then the numbers. The safetensors library reads and writes whole files in memory
at once; a checkpoint that is written beside training cannot afford that second copy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from io import FileIO
from math import prod
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ambidex.files import CHUNK

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in TYPES.items()}
LARGEST_HEADER = 1 << 24  # bytes; a thousand layers take under one million
MOST_DIMENSIONS = 8

Shapes = Mapping[str, tuple[int, ...]]


def header_of(tensors: Mapping[str, Tensor]) -> bytes:
    """Length and header of a file that holds ``tensors`` in the order of their names."""
    described, place = {}, 0
    for name in sorted(tensors):
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        described[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape),
                           "data_offsets": [place, place + size]}  # fmt: skip
        place += size
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    return len(text).to_bytes(8, "little") + text


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file."""
    return len(header_of(tensors)) + sum(t.numel() * t.element_size() for t in tensors.values())


def write(file: BinaryIO, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write ``tensors`` and return the size and the sha256 of what was meant to be written."""
    sha256, size = hashlib.sha256(), 0
    for part in (memoryview(header_of(tensors)), *(_bytes(tensors[name]) for name in sorted(tensors))):
        for start in range(0, len(part), CHUNK):
            some = part[start : start + CHUNK]
            sha256.update(some)
            file.write(some)
            size += len(some)
    return size, sha256.hexdigest()


def read(file: FileIO, sha256: Any, wanted: Shapes | None) -> dict[str, Tensor]:
    """The tensors of an open file, every byte of which goes through ``sha256``.

    Raises ValueError before memory is taken where the header is not what the file's size bears out, or, with
    ``wanted``, where names or shapes are others or a type is not fp32. What is read is believed only once the hash is
    compared: that is the caller's part.
    """
    places = read_header(file, sha256)
    if wanted is not None:
        check(places, wanted)
    tensors = {}
    for name, (dtype, shape) in places.items():
        try:
            tensor = torch.empty(shape, dtype=dtype)
        except (RuntimeError, MemoryError):  # a file with holes in it may promise more than there is
            raise ValueError(f"{name[:80]!r} takes more memory than there is") from None
        _fill(file, sha256, _bytes(tensor))
        tensors[name] = tensor
    return tensors


def read_header(file: FileIO, sha256: Any) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape by name, in the order in which they lie. Raises ValueError where the header cannot be true."""
    left = os.fstat(file.fileno()).st_size - 8
    length = int.from_bytes(_exactly(file, sha256, 8), "little")
    if length > min(left, LARGEST_HEADER):
        raise ValueError(f"cannot be understood: a header of {length:,} bytes")
    try:
        described = json.loads(_exactly(file, sha256, length))
        described.pop("__metadata__", None)
        rows = [_row(name, entry) for name, entry in described.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"cannot be understood: its header: {error or type(error).__name__}") from None
    place = 0
    for name, dtype, shape, begin, end in sorted(rows, key=lambda row: row[3:]):
        if begin != place or end - begin != prod(shape) * dtype.itemsize:
            raise ValueError(f"cannot be understood: the place of {name[:80]!r} is not as its shape is")
        place = end
    if place != left - length:
        raise ValueError(f"cannot be understood: it names {place:,} bytes and holds {left - length:,}")
    return {name: (dtype, shape) for name, dtype, shape, begin, end in sorted(rows, key=lambda row: row[3:])}


def check(found: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], wanted: Shapes) -> None:
    """Raise ValueError for the first tensor that is not fp32 of the wanted shape."""
    for name in sorted(found.keys() | wanted.keys()):
        if name not in wanted or name not in found:
            raise ValueError(f"is not of this model: {'no ' * (name not in found)}{name[:200]}")
        dtype, shape = found[name]
        if shape != tuple(wanted[name]) or dtype != torch.float32:
            raise ValueError(f"is not of this model: {name[:200]} is {_NAMES[dtype]} {list(shape)} instead of F32 "
                             f"{list(wanted[name])}")  # fmt: skip


def hash_rest(file: FileIO, sha256: Any) -> None:
    """Everything from here to the end of the file."""
    while some := file.read(CHUNK):
        sha256.update(some)


def _row(name: str, entry: dict[str, Any]) -> tuple[str, torch.dtype, tuple[int, ...], int, int]:
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{name[:80]!r} has no shape")
    for number in (*shape, begin, end):
        if type(number) is not int or not 0 <= number < 1 << 62:
            raise ValueError(f"{name[:80]!r} has {str(number)[:40]} for a number")
    if entry["dtype"] not in TYPES:
        raise ValueError(f"{name[:80]!r} is of type {str(entry['dtype'])[:40]!r}")
    return name, TYPES[entry["dtype"]], tuple(shape), begin, end


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a tensor that lies in one piece on the CPU."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _fill(file: FileIO, sha256: Any, memory: memoryview) -> None:
    filled = 0
    while filled < len(memory):
        count = file.readinto(memory[filled : filled + CHUNK])
        if not count:
            raise ValueError("cannot be understood: it ends too early")
        sha256.update(memory[filled : filled + count])
        filled += count


def _exactly(file: FileIO, sha256: Any, count: int) -> bytes:
    content = bytearray(count)
    _fill(file, sha256, memoryview(content))
    return bytes(content)
