"""Of a long log, the places where a known error may stand, so that it is read in a second wherever that is.

Plain words are searched for first, tens of times faster than the patterns of `fingerprints`; only what stands
around them is read closely. A text of ordinary length is kept whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_WHOLE_BYTES = 256 << 10
_AROUND_BYTES = 1500
_TIMES = 4  # the first and the last so many of each word
# Colours and other commands to a terminal, also where a log or a paste has spelled the escape character out.
_ESCAPE = r"\x1b(?:\[[0-?]{0,30}[ -/]{0,3}[@-~]|\][^\x07\x1b\n]{0,200}(?:\x07|\x1b\\)|[()][A-Z0-9])"
_SPELLED = r"(?:\\u001b|\\x1b|\\033|\^\[)\[[\d;]{0,20}[mK]"

# CUDA itself speaks English alone; these are from programs and forums that translate what it said.
_KERNEL_IMAGE = (
    *("内核映像", "内核镜像", "内核图像", "核心映像", "カーネル イメージ", "カーネルイメージ", "커널 이미지"),
    *("образ ядра", "kernel-image", "kernelimage", "imagen de kernel", "imagen del kernel", "image noyau"),
    *("image de noyau", "image du noyau", "imagem de kernel", "imagem do kernel", "immagine del kernel"),
)

# In lower case. At least one stands in whatever a fingerprint matches: a test holds the two together.
WORDS: tuple[bytes, ...] = (
    *(b"could not select device driver", b"requirement already satisfied: torch", b"would make no changes"),
    *(b"no matching distribution", b"could not find a version", b"compiled using numpy", b"iji"),
    *(b"nvjitlink", b"libcuda", b"nvcuda.dll", b"-lcuda", b"oserror: lib", b"importerror: lib", b"winerror"),
    *(b"cannot open shared object", b"dll load failed", b"no module named", b"forward compatibility"),
    *(b"error 80", b"error 999", b"cudaerror", b"cuda_error", b"display driver /", b"version mismatch"),
    *(b"not yet initialized", b"too old", b"driver version is insufficient", b"toolchain", b"compiler newer"),
    *(b"not compatible with the current", b"cuda capabilit", b"arch_mismatch", b"but was built for"),
    *(b"is not defined for option", b"unsupported gpu architecture", b"no kernel image", b"hiperrornobinary"),
    *(b"kernel image is invalid", b"invalid device", b"not compiled with cuda", b"compiled without cuda"),
    *(b"deserialize object", b"no nvidia driver", b"nvidia-smi has failed", b"no cuda-capable"),
    *(b"no cuda gpus",),
    *(b"no nvidia gpu", b"unknown error", b"out of memory", b"outofmemory", b"alloc_failed", b"device-side"),
    *(b"illegal memory access", b"the cpu is forced"),
    *(b"unsatisfied condition", b"nvidia-container-cli", b"unresolvable cdi", b"runtime name: nvidia"),
    *(b"glibc", b"cxxabi"),
    *(b"module 'torch'", b"torchvision::", b"different cuda", b"no version of torch", b"no wheels"),
    *(b"distribution `torch",),
    *(b"not a supported wheel", b"installation candidates", b"unable to load any", b"libnvrtc-builtins"),
    *(b"tensile",),
    *(b"nvrtc: error", b"triton gpu compiler", b"only supports ampere", b"bfloat16 is only", b"bf16/gpu"),
    *(b"forked subprocess",),
    *(b"bus error", b"shared memory", b"defaultcpuallocator", b"fallen off", b"gpu is lost", b"xid ("),
    *(b"busy or unavailable",),
    *(b"uncorrectable ecc", b" 209", b"driver not loaded", b"you might not have", b"libnvidia-ml"),
    *(b"nvidia-smi", b"no devices were"),
    *(b"xformers was built", b"binary not found at", b"setup failed despite", b"cuda_home"),
    *(b"mismatches the version",),
    *(b"legacy drivers", b"capability sm_", b"runtime specified"),
    *(word.encode() for word in (*_KERNEL_IMAGE, "symbol", "符号", "符號", "символ", "símbolo", "シンボル")),
    # What tells of the machine.
    *(b"sm_", b"compute_", b"pytorch version", b"torch==", b"torch-2", b"+cu1", b"driver version"),
    *(b"compute capability", b"geforce rtx", b"geforce gtx", b"python3.", b"python version"),
)


def without_escapes(text: str) -> str:
    """The text without the colours that stand between its words."""
    return re.sub(f"{_ESCAPE}|{_SPELLED}", "", text, flags=re.IGNORECASE)


def excerpt(text: bytes) -> bytes:
    """The text itself, or of a long one what stands around the words."""
    if len(text) <= _WHOLE_BYTES:
        return text
    text = re.sub(_ESCAPE.encode(), b"", text)
    small = text.lower()
    kept: list[tuple[int, int]] = []
    for at in sorted({at for word in WORDS for at in _places(small, word)}):
        start, end = max(0, at - _AROUND_BYTES), at + _AROUND_BYTES
        if kept and start <= kept[-1][1]:
            kept[-1] = (kept[-1][0], end)
        else:
            kept.append((start, end))
    return b"\n\n".join(text[start:end] for start, end in kept) or text[-_AROUND_BYTES:]


def _places(text: bytes, word: bytes) -> Iterator[int]:
    """The first few and the last few."""
    at, left = text.find(word), _TIMES
    while at >= 0 and left:
        yield at
        at, left = text.find(word, at + 1), left - 1
    at, left = text.rfind(word), _TIMES
    while at >= 0 and left:
        yield at
        at, left = text.rfind(word, 0, at), left - 1
