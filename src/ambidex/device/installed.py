"""The build: which torch lies in an environment, read from its files without importing it.

`torch/version.py` names version and CUDA; the list of GPU architectures is one literal inside
libtorch_python, found with `mmap` (seen on the Linux wheels 2.6.0+cu124 and 2.15.0+cu132; by inference on
Windows). So a torch that cannot be imported, or belongs to another Python, is judged like any other.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from ambidex.device import fatbin
from ambidex.device.environment import Environment, records
from ambidex.device.machine import Arch, Build
from ambidex.device.paths import is_file, is_folder, is_there

_ENTRY = rb"(?:sm|compute)_[1-9]\d{1,2}[af]?"
_LITERAL = re.compile(rb"(?<![\w ])" + _ENTRY + rb"(?: " + _ENTRY + rb")*(?=\0)")
_LIBRARIES = ("libtorch_python.so", "torch_python.dll", "libtorch_python.dylib")
# Lines of RECORD: the files without which `import torch` cannot work.
_NEEDED = re.compile(r"(torch/(?:lib/[^/,\n]+\.(?:so|dll|dylib)\b[^/,\n]*|_C\.[^/,\n]*|__init__\.py)),")
_NEEDED_BEGIN = (b"torch/lib/", b"torch/_C.", b"torch/__init__.py,")
_KNOWN_KINDS = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf")
# Where a torch that came from conda keeps them, seen from its site-packages folder.
_CONDA_FOLDERS = ("../..", "../../../Library/bin", "../../Library/bin")


def find(environment: Environment) -> Path | None:
    """The folder of the torch that this environment would import, None where there is none.

    A folder without `__init__.py`, such as an uninstall leaves behind, loses to any later package, as it does
    in Python; where it is the only one, it is the broken torch to speak of.
    """
    folders = [place / "torch" for place in environment.places]
    left_behind = None
    for folder in folders:
        if is_file(folder / "__init__.py"):
            return folder
        if left_behind is None and (is_file(folder / "version.py") or is_folder(folder / "lib")):
            left_behind = folder
    if left_behind is not None:
        return left_behind
    if environment.own:  # an editable install is found by an import hook alone
        try:
            spec = importlib.util.find_spec("torch")
        except (ImportError, ValueError, AttributeError):
            return None
        if spec is not None and spec.origin:
            return Path(spec.origin).parent
    return None


def read(environment: Environment) -> Build:
    """The build as its files tell it. Never raises; ``missing`` and ``broken`` say in words what is wrong."""
    folder = find(environment)
    if folder is None:
        recorded = _record_without_package(environment)
        missing = "" if recorded else _no_torch(environment)
        return Build(python=environment.python, missing=missing, broken=recorded)
    version, cuda, hip, trouble = _version(folder)
    shadow = _shadow(environment, folder)
    if shadow:
        trouble = f"{shadow} is imported in torch's place, since it comes first on Python's path"
    trouble = trouble or _damage(folder)
    archs: tuple[Arch, ...] | None = None
    if cuda is not None:
        archs, unreadable = _archs(folder)
        trouble = trouble or unreadable
    elif hip is None and version is not None:
        archs = ()  # a CPU build
    return Build(
        version=version,
        cuda=cuda,
        hip=hip,
        archs=archs,
        source="unknown" if archs is None else "scanned",
        path=str(folder),
        python=environment.python,
        broken=trouble,
        shadow=shadow,
    )


def _shadow(environment: Environment, folder: Path) -> str:
    """A file torch.py in a place that is searched before torch's own, such as the folder one works in."""
    for place in environment.places:
        if place == folder.parent:
            break
        if is_file(place / "torch.py"):
            return str(place / "torch.py")
    return ""


def _record_without_package(environment: Environment) -> str:
    """pip takes such a torch for installed, so that an install without an uninstall would change nothing."""
    for place in environment.places:
        for info in sorted(place.glob("torch-*.dist-info")):
            return f"{info} says that torch is installed, and its package is not there"
    return ""


def _no_torch(environment: Environment) -> str:
    where = environment.executable if environment.own else f"{environment.prefix}"
    leftover = next((place / "torch" for place in environment.places if is_folder(place / "torch")), None)
    rest = f"; {leftover} is what an uninstall left behind" if leftover else ""
    return f"No torch is installed for {where} (Python {environment.python}){rest}"


def _version(folder: Path) -> tuple[str | None, str | None, str | None, str]:
    """Version, CUDA, HIP, and in words what is wrong with the version file."""
    path = folder / "version.py"
    try:
        with path.open("rb") as file:
            text = file.read(1 << 16).decode("utf-8", "replace")
    except OSError as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        version = _version_by_metadata(folder)
        return version, _cuda_of_tag(version), None, f"{path} {why}, so `import torch` cannot work"
    version = _assigned(text, "__version__")
    if version is None:
        version = _version_by_metadata(folder)
        return version, _cuda_of_tag(version), None, f"{path} names no version: it is damaged"
    cuda, hip = _assigned(text, "cuda"), _assigned(text, "hip")
    return version, cuda if cuda or hip else _cuda_of_tag(version), hip, ""


def _assigned(text: str, name: str) -> str | None:
    """The string that ``name`` is set to, None where it is None, not there, or not a plain string."""
    found = re.search(
        rf"^{name}\s*(?::[^=\n]+)?=\s*(?P<quote>['\"])(?P<value>[^'\"\n]{{1,200}})(?P=quote)", text, re.M
    )
    return found["value"].strip() or None if found else None


def _cuda_of_tag(version: str | None) -> str | None:
    """``2.6.0+cu124`` -> ``12.4``."""
    found = re.search(r"\+.*?\bcu(\d{2})(\d)\b", version or "")
    return f"{found[1]}.{found[2]}" if found else None


def _version_by_metadata(folder: Path) -> str | None:
    for info in sorted(folder.parent.glob("torch-*.dist-info")):
        found = re.fullmatch(r"torch-(\d[\w.+!]*)\.dist-info", info.name)
        if found:
            return found[1]
    return None


def _archs(folder: Path) -> tuple[tuple[Arch, ...] | None, str]:
    """The build's list, and in words why there is none."""
    library = _library(folder)
    if library is None:
        return None, f"{folder / 'lib'} holds no libtorch_python"
    try:
        literal = literal_in(library)
    except OSError as error:
        return None, f"{library} cannot be read ({error.strerror})"
    if literal:
        return _parsed(literal), ""
    held = _by_code(library.parent)
    if held:
        return held, ""
    trouble = (
        "" if is_whole(library) else f"{library} is damaged: it is no library and holds no list of GPU code"
    )
    return None, trouble


def _by_code(folder: Path) -> tuple[Arch, ...]:
    """Where the literal is not found, the headers of the GPU code itself."""
    for name in ("libtorch_cuda.so", "torch_cuda.dll"):
        try:
            return fatbin.archs_in(folder / name)
        except (OSError, ValueError):
            continue
    return ()


def literal_in(library: Path) -> str:
    """The longest list of architectures among the library's strings, '' where there is none."""
    with library.open("rb") as file:
        if not library.stat().st_size:
            return ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            found = {hit.group() for hit in _hits(view)}
    lists = [text for text in found if b" " in text]
    if lists:
        return max(lists, key=len).decode()
    # A build for one GPU has a list of one; where several single entries stand about, none can be told for
    # the list.
    return found.pop().decode() if len(found) == 1 else ""


def _hits(view: mmap.mmap) -> Iterable[re.Match[bytes]]:
    """Matches of the literal. `find` goes first: it is tens of times faster than the expression alone."""
    end = 0
    starts = sorted(_every(view, b"sm_") + _every(view, b"compute_"))
    for start in starts:
        if start < end:
            continue
        hit = _LITERAL.match(view, start)
        if hit and (start == 0 or view[start - 1 : start] == b"\0"):
            end = hit.end()
            yield hit


def _every(view: mmap.mmap, word: bytes) -> list[int]:
    places, at = [], view.find(word)
    while at >= 0:
        places.append(at)
        at = view.find(word, at + 1)
    return places


def _parsed(literal: str) -> tuple[Arch, ...]:
    return tuple(dict.fromkeys(Arch.parse(entry) for entry in literal.split()))


def _library(folder: Path) -> Path | None:
    places = [folder / "lib", *((folder.parent / up) for up in _CONDA_FOLDERS)]
    for place in places:
        for name in _LIBRARIES:
            if is_file(place / name):
                return place / name
    return None


def _damage(folder: Path) -> str:
    """The first of torch's libraries that its own record lists and that is gone, or that was cut short."""
    for name in _recorded(folder):
        if not is_there(folder.parent / name):
            return f"{folder.parent / name} is missing, though torch was installed with it"
    for library in sorted((folder / "lib").glob("*")):
        if (
            re.search(r"\.(so|dll|dylib)(\.\d+)*$", library.name)
            and is_file(library)
            and not is_whole(library)
        ):
            if not os.access(library, os.R_OK):
                return f"{library} cannot be read (Permission denied)"
            return f"{library} is cut short or damaged ({library.stat().st_size:,} bytes)"
    return ""


def _recorded(folder: Path) -> Sequence[str]:
    """What the record of this very torch lists: an older one that was left behind speaks of other files."""
    for info in records(folder):
        try:
            lines = (info / "RECORD").read_bytes().splitlines()
        except (OSError, ValueError):
            continue
        # Some ten thousand lines, of which a handful matter: what they begin with is the fastest to ask.
        few = (line.decode("utf-8", "replace") for line in lines if line.startswith(_NEEDED_BEGIN))
        return [found[1] for line in few if (found := _NEEDED.match(line))]
    return ()


def is_whole(library: Path) -> bool:
    """Whether a shared library reaches as far as its own header says.

    A file of a kind that no loader knows is whole only where the list of architectures stands in it all the
    same.
    """
    try:
        size = library.stat().st_size
        with library.open("rb") as file:
            head = file.read(4096)
        if not head.startswith(_KNOWN_KINDS):
            return bool(literal_in(library))
    except OSError:
        return False
    if head[:4] == b"\x7fELF":
        return _elf_end(head) <= size
    if head[:2] == b"MZ":
        return _pe_end(head) <= size
    return True  # Mach-O: its magic is all that is looked at


def _elf_end(head: bytes) -> int:
    """Where the section headers, or without them the segments, of a 64-bit ELF file end."""
    endless = 1 << 62
    try:
        segments, sections = struct.unpack_from("<QQ", head, 32)
        segment_size, segment_count, section_size, section_count = struct.unpack_from("<HHHH", head, 54)
        end = int(sections + section_size * section_count)
        for number in range(segment_count):
            offset, in_file = segments + number * segment_size, 0
            if offset + 40 <= len(head):
                start = struct.unpack_from("<Q", head, offset + 8)[0]
                in_file = struct.unpack_from("<Q", head, offset + 32)[0]
                end = max(end, start + in_file)
    except struct.error:
        return endless
    return end


def _pe_end(head: bytes) -> int:
    """Where the last section's bytes of a Windows library end."""
    try:
        start = struct.unpack_from("<I", head, 60)[0]
        count, optional = (
            struct.unpack_from("<H", head, start + 6)[0],
            struct.unpack_from("<H", head, start + 20)[0],
        )
        table = start + 24 + optional
        ends = [0]
        for number in range(count):
            size, offset = struct.unpack_from("<II", head, table + 40 * number + 16)
            ends.append(size + offset)
    except struct.error:
        return 1 << 62
    return max(ends)
