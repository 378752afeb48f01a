"""Which GPUs the environment leaves visible: CUDA_VISIBLE_DEVICES and its relatives, read as CUDA reads them.

The parsing follows what `torch.cuda._parse_visible_devices` was measured to do (torch 2.13.0): numbers are
read as `strtoul` reads them, a negative or unreadable entry ends the list, and a repeated one empties it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ambidex.device.machine import Gpu

# Every variable that hides a device, changes the numbering of devices, or changes how torch looks for them.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "CUDA_MODULE_LOADING",
    "CUDA_FORCE_PTX_JIT",
    "CUDA_DISABLE_PTX_JIT",
    "ACCELERATE_USE_CPU",
    "AMBIDEX_DEVICE",
)


# Of those before Blackwell: A100 and A30, H100 and its kin.
_SLICED = ((8, 0), (9, 0))


@dataclass(frozen=True)
class Mask:
    """What CUDA_VISIBLE_DEVICES says. ``entries`` is None where nothing is masked."""

    entries: tuple[int, ...] | tuple[str, ...] | None
    text: str | None = None

    @property
    def hides_all(self) -> bool:
        return self.entries is not None and not self.entries


def parse(value: str) -> tuple[int, ...] | tuple[str, ...]:
    """The devices that a value of CUDA_VISIBLE_DEVICES names: ordinals, or UUID prefixes.

    ``""``, ``"-1"`` and any word give none; ``"0,-1,1"`` gives 0; ``"0,0"`` gives none; ``"1gpu2"`` gives 1.
    """
    for prefix in ("GPU-", "MIG-"):
        if value.startswith(prefix):
            return _named(value, prefix)
    ordinals: list[int] = []
    for entry in value.split(","):
        number = _leading_number(entry.strip())
        if number in ordinals:
            return ()
        if number < 0:
            break
        ordinals.append(number)
    return tuple(ordinals)


def cuda_mask(environ: Mapping[str, str], os_name: str = "linux") -> Mask:
    """The mask in force. On Windows an empty value counts as unset: the C runtime removes such a variable."""
    value = environ.get("CUDA_VISIBLE_DEVICES")
    if value is None or (os_name == "windows" and value == ""):
        return Mask(None, value)
    return Mask(parse(value), value)


def relevant(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `VARIABLES` that are set."""
    return {name: environ[name] for name in VARIABLES if name in environ}


def mark(gpus: Sequence[Gpu], environ: Mapping[str, str], os_name: str = "linux") -> tuple[Gpu, ...]:
    """The GPUs with ``visible`` set as the mask leaves them."""
    mask = cuda_mask(environ, os_name)
    if mask.entries is None:
        return tuple(gpus)
    if any(isinstance(entry, str) and entry.startswith("MIG-") for entry in mask.entries):
        return _mark_slices(gpus, mask)
    seen = {gpu.index for gpu in _chosen(mask.entries, in_cuda_order(gpus, environ))}
    return tuple(replace(gpu, visible=gpu.index in seen) for gpu in gpus)


def hides(gpus: Sequence[Gpu], environ: Mapping[str, str], os_name: str = "linux") -> bool:
    """Whether the mask leaves out any of these GPUs, or may: whether a slice that it names is there is not
    known.
    """
    entries = cuda_mask(environ, os_name).entries or ()
    slices = any(str(entry).startswith("MIG-") for entry in entries)
    everything = tuple(replace(gpu, visible=True) for gpu in gpus)
    return slices or not all(gpu.visible for gpu in mark(everything, environ, os_name))


def numbered(gpus: Sequence[Gpu], environ: Mapping[str, str], os_name: str = "linux") -> tuple[Gpu, ...]:
    """The visible GPUs as the process numbers them: cuda:0 is the first that the mask names."""
    in_order = in_cuda_order(gpus, environ)
    visible = tuple(gpu for gpu in in_order if gpu.visible)
    chosen = _chosen(cuda_mask(environ, os_name).entries or (), in_order)
    # Where the mask tells nothing of whole GPUs (none is set, or it names slices), CUDA's own order stands.
    alike = {gpu.index for gpu in chosen} == {gpu.index for gpu in visible}
    return tuple(chosen) if alike else visible


def in_cuda_order(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs as CUDA numbers them: PCI order where CUDA_DEVICE_ORDER says so, else the fastest first.

    How fast CUDA thinks a GPU is cannot be known without it; the newest architecture is taken for the
    fastest. `order_is_certain` says whether that guess matters.
    """
    if environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return tuple(sorted(gpus, key=lambda gpu: gpu.index))
    return tuple(sorted(gpus, key=lambda gpu: (-(gpu.cc or (0, 0))[0], -(gpu.cc or (0, 0))[1], gpu.index)))


def order_is_certain(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> bool:
    """Whether a GPU's number means the same to CUDA and nvidia-smi: alike GPUs, or CUDA_DEVICE_ORDER set."""
    return environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({gpu.name for gpu in gpus}) <= 1


def _named(value: str, prefix: str) -> tuple[str, ...]:
    names: list[str] = []
    for entry in value.split(","):
        if entry in names:
            return ()
        if not entry.startswith(prefix):
            break
        names.append(entry)
    return tuple(names)


def _leading_number(text: str) -> int:
    """The whole number that the text starts with, -1 where it starts with none."""
    sign = -1 if text[:1] == "-" else 1
    digits = text[1:] if text[:1] in ("+", "-") else text
    count = 0
    while count < len(digits) and digits[count] in "0123456789":
        count += 1
    return sign * int(digits[:count][:18]) if count else -1


def _mark_slices(gpus: Sequence[Gpu], mask: Mask) -> tuple[Gpu, ...]:
    """MIG slices: ``MIG-GPU-<uuid>/1/0`` names its GPU; a slice's own UUID may lie on any GPU that can be sliced."""
    entries = [str(entry) for entry in mask.entries or ()]
    if not all(entry.startswith("MIG-GPU-") for entry in entries):
        if not any(gpu.cc in _SLICED for gpu in gpus):
            return tuple(gpus)
        return tuple(
            replace(gpu, visible=gpu.cc is None or gpu.cc in _SLICED or gpu.cc[0] >= 10) for gpu in gpus
        )
    parents = {entry.removeprefix("MIG-").split("/")[0] for entry in entries}
    return tuple(replace(gpu, visible=gpu.uuid in parents) for gpu in gpus)


def _chosen(entries: Sequence[int | str], numbered: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that the entries name, in the mask's order, of GPUs in CUDA's order."""
    chosen: list[Gpu] = []
    for entry in entries:
        hit = _find(entry, numbered)
        if hit is None:  # CUDA stops reading at the first entry that names no device
            break
        if hit in chosen:  # two prefixes of one UUID: as with a number given twice, torch sees none
            return []
        chosen.append(hit)
    return chosen


def _find(entry: int | str, numbered: Sequence[Gpu]) -> Gpu | None:
    if isinstance(entry, int):
        return numbered[entry] if entry < len(numbered) else None
    hits = [gpu for gpu in numbered if gpu.uuid.startswith(entry)]
    return hits[0] if len(hits) == 1 else None
