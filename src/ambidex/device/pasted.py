"""What a pasted text tells of a machine: its GPUs, the build and its list, the driver; and a log's lines without what stands before them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ambidex.device import gpus
from ambidex.device.covers import is_integrated
from ambidex.device.facts import this_machine
from ambidex.device.gpus import Known
from ambidex.device.machine import Arch, Driver, Gpu
from ambidex.errors import Problems

_ENTRY = r"(?:sm|compute)_\d{2,3}[af]?"
_LIST = re.compile(rf"{_ENTRY}(?:['\",\s]{{1,6}}{_ENTRY})*")
_SUPPORTS = re.compile(rf"supports CUDA capabilities ({_LIST.pattern})", re.IGNORECASE)
# torch's three warnings: by capability with the ends of the list (to 2.10) or with all of it (from 2.11), and by list.
_FOUND = re.compile(
    r"\bFound (?:GPU\d+ )?(?P<name>(?:(?!\bFound )[^\"']){1,80}?) which is of (?:cuda|compute) capability (?:\(CC\) )?"
    r"(?P<major>\d{1,2})\.(?P<minor>\d)\b",
    re.IGNORECASE,
)
_WITH_CAPABILITY = re.compile(r" with CUDA capability (?P<arch>sm_\d{2,3})\b", re.IGNORECASE)
_NAME = re.compile(r"(?:NVIDIA|Tesla|Quadro|GeForce)(?:(?!NVIDIA|[\"']).)*$", re.IGNORECASE)
_FROM_TO = re.compile(
    r"cuda capability supported by this (?:version of PyTorch|library) is \(?(\d{1,2})\.(\d)\b\)?(?: - \((\d{1,2})\.(\d)\))?",
    re.IGNORECASE,
)
_BUILT_FOR = re.compile(r"- (\d{1,2})\.(\d) which supports hardware CC\b", re.IGNORECASE)
_PYTHON = re.compile(
    r"\bpython(?:[ _]version:?\s*|[/\\ -]?)3\.(\d{1,2})\b|\bPython3(\d{1,2})\b|-cp3(\d{1,2})-|cpython-3(\d{1,2})\b",
    re.IGNORECASE,
)
_ARM = re.compile(r"\baarch64\b|\bGB10\b|\bJetson\b|\bGH200\b|\bGB200\b|\bDGX Spark\b")
_CC = re.compile(
    r"(?:compute|CUDA) capability:?\s+(?:is\s+)?(?P<major>\d{1,2})\.(?P<minor>\d)\b", re.IGNORECASE
)
_MAKER = re.compile(r"\b(?:NVIDIA|Tesla|Quadro|GeForce|TITAN) (?=\S)")
_MAKERS = 50  # so many are looked at
_NAMED = re.compile(
    r"\b(?:NVIDIA )?(?:GeForce )?(?:RTX (?:PRO )?\d{4}(?: ?Ti| SUPER| Ada| Blackwell)*(?: Laptop GPU)?|GTX "
    r"\d{3,4}(?: ?Ti| SUPER)*"
    r"|[AHBLTVP]\d{2,3}S?\b(?=[ -]?(?:PCIe|SXM|\d+GB))|GH200|GB10|GB200)"
)
_VERSION = re.compile(
    r"(?:\btorch(?: version)?\s*[=:\s-]=?\s*v?|torch\.__version__[\s:=)>'\"]{0,8}|PyTorch(?: "
    r"version)?:?\s+v?|PyTorch CUDA builds for release )(?P<version>\d+\.\d+(?:\.\d+)?(?:\.dev\d{8}|a0|rc\d+)?"
    r"(?:\+[\w.]+)?)",
    re.IGNORECASE,
)
# xformers tells first what it was built for, and then what is installed.
_HAVE = re.compile(r"PyTorch \S{1,40} with CUDA \S{1,9} \(you have (?P<version>\d+\.\d+[\w.+]{0,30})\)")
# What `print(torch.__version__)` leaves: no word of torch before it. torchvision's begins with a 0.
_BARE_VERSION = re.compile(
    r"(?<![\w.+-])(?P<version>[12]\.\d{1,2}\.\d(?:\.dev\d{8})?\+(?:cu\d{3}|cpu|rocm\d(?:\.\d)?))(?!\w|\.\w)"
)
_DRIVER = re.compile(r"Driver Version:\s*(?P<version>\d{3}\.\d{2,3}(?:\.\d{2})?)", re.IGNORECASE)
# What programs put before each line of a log: who speaks, when, how loud.
_PREFIX = re.compile(
    r"\s*(?:"
    r"\([^()\n]{0,60}\bpid=\d+[^()\n]{0,60}\):?"  # (APIServer pid=1), (Worker pid=369, ip=10.0.0.3)
    r"|\[(?:[a-z]{0,12}[ -]?\d{1,5}(?:,\d{1,5})?|[^\[\]\n]{0,20}\d\d:\d\d:\d\d[^\[\]\n]{0,60})\](?:<\w{1,8}>)?:?"
    r"|\[?(?:DEBUG|INFO|WARN|WARNING|ERROR)\]?:?(?=\s)"
    r"|(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):[\w.]{1,60}:"  # Python's logging
    r"|-(?:\s(?:[\w.]{1,60}\s-\s)?(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)(?:\s-\s[\w.]{1,60})?)\s-(?=\s)"
    r"|(?:(?:\d{4}[-/]\d\d[-/]\d\d|\d\d/\d\d/\d{4})[T ])?\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?:?(?=\s)"
    r"|std(?:out|err) [FP](?=\s)"  # Kubernetes
    r"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [\w.-]{1,64} [^\s:\[]{1,64}(?:\[\d{1,7}\])?:(?=\s)"  # syslog, journalctl
    r"|[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{1,9}\s{1,4}\d{1,9}\s[\w./\\-]{1,120}:\d{1,6}\]"  # glog, torchrun
    r"|##\[[a-z]{1,12}\]"  # GitHub Actions, Azure
    r"|E(?=\s{2,})"  # pytest
    r"|[\w.-]{1,60} {0,20}\|"  # vllm-1  |
    r"|\d{1,5}:(?=\s)"  # srun -l
    r"|#\d{1,4} \d{1,6}\.\d{1,4}(?=\s)"  # docker build
    r"|[>|](?=\s)"
    r")"
)
MOST_GPUS = 16  # that one text may tell of; each is judged
_WINDOWS = re.compile(r"[A-Za-z]:\\|\.dll\b|\bWindows\b|\bwin_amd64\b")


@dataclass(frozen=True)
class Pasted:
    """The facts in a text."""

    gpu: Gpu | None = None
    others: tuple[Gpu, ...] = ()  # more GPUs of which torch complains
    archs: tuple[Arch, ...] = ()
    version: str | None = None
    driver: Driver = field(default_factory=Driver)
    os: str = "linux"
    machine: str = "x86_64"
    python: str = ""  # '' where the text does not tell
    listed: bool = False  # whether the list is as the build has it: with its PTX, and not its ends alone

    def words(self) -> tuple[str, ...]:
        found = []
        if self.gpu is not None:
            cc = f" (sm_{self.gpu.cc[0]}{self.gpu.cc[1]})" if self.gpu.cc else ""
            found.append(f"GPU {self.gpu.name}{cc}")
        if self.version:
            found.append(f"torch {self.version}")
        if self.archs:
            found.append("code for " + " ".join(map(str, self.archs)))
        if self.driver.version:
            found.append(f"driver {self.driver.version}")
        if self.python:
            found.append(f"Python {self.python}")
        if self.driver.cuda:
            found.append(f"a driver for CUDA {self.driver.cuda[0]}.{self.driver.cuda[1]}")
        return tuple(found)


def without_prefixes(text: str) -> str:
    """The text without the words that another program put before its lines."""
    return "\n".join(map(_without_prefix, text.splitlines()))


def _without_prefix(line: str) -> str:
    at = 0
    while found := _PREFIX.match(line, at):
        at = found.end()
    return line[at:].strip()


def read(lines: str, running: str) -> Pasted:
    """The facts: by what a text says, however it breaks its lines. ``running`` is all of it on one line."""
    lists = [re.findall(_ENTRY, hit) for hit in _LIST.findall(running)]
    # One entry alone is a list only where a sentence says so.
    told = [re.findall(_ENTRY, hit) for hit in _SUPPORTS.findall(running)]
    lists = told or [entries for entries in lists if len(entries) > 1]
    archs: tuple[Arch, ...] = ()
    if lists:
        archs = tuple(dict.fromkeys(Arch.parse(entry) for entry in max(lists, key=len)))
    version = _HAVE.search(running) or _VERSION.search(running) or _BARE_VERSION.search(running)
    python = _PYTHON.search(running)
    driver, cuda = _DRIVER.search(running), re.search(r"found version (\d{4,5})\b", running)
    # torch writes the driver's CUDA as 12080 for 12.8.
    spoken = (int(cuda[1]) // 1000, int(cuda[1]) % 1000 // 10) if cuda else None
    windows = bool(_WINDOWS.search(running)) or any(str(arch) == "sm_61" for arch in archs)
    gpu, *others = _gpus(lines, running) or [None]
    return Pasted(
        gpu=gpu,
        others=tuple(other for other in others if other is not None),
        archs=archs or _by_numbers(running),
        version=version["version"] if version else None,
        driver=Driver(driver["version"] if driver else None, spoken),
        os="windows" if windows else "linux",
        machine=_machine(running, windows, gpu),
        python=f"3.{next(filter(None, python.groups()))}" if python else "",
        listed=bool(archs),
    )


def _machine(text: str, windows: bool, gpu: Gpu | None) -> str:
    if windows or "x86_64" in text:
        return "x86_64"
    on_arm = _ARM.search(text) or (gpu is not None and is_integrated(gpu.cc))
    return "aarch64" if on_arm else this_machine()


def _by_numbers(text: str) -> tuple[Arch, ...]:
    """The list where a warning tells it in capabilities: all of it, which may be PTX too, or only its ends."""
    every = _BUILT_FOR.findall(text)
    if every:
        return tuple(dict.fromkeys(Arch("sm", int(major), int(minor)) for major, minor in every))
    told = _FROM_TO.search(text)
    numbers = [int(number) for number in told.groups() if number] if told else []
    return tuple(Arch("sm", numbers[at], numbers[at + 1]) for at in range(0, len(numbers), 2))


def _gpus(lines: str, running: str) -> list[Gpu | None]:
    """The GPUs of which torch's warnings tell, each once; without a warning the first that is named at all."""
    warned = [Gpu(found["name"], _pair(found)) for found in _FOUND.finditer(running)]
    for told in _WITH_CAPABILITY.finditer(running):
        arch = Arch.parse(told["arch"].lower())
        warned.append(
            Gpu(
                _name_before(running[max(0, told.start() - 80) : told.start()], lines),
                (arch.major, arch.minor),
            )
        )
    if warned:
        found: list[Gpu | None] = [*dict.fromkeys(warned)]
        return found[:MOST_GPUS]
    named, cc = _NAMED.search(running), _CC.search(running)
    pair = _pair(cc) if cc else None
    if named:
        return [Gpu(named[0].strip(), pair or _known_cc(named[0]))]
    by_maker = _by_maker(lines)
    if by_maker:
        return [Gpu(by_maker.name, pair or by_maker.cc)]
    return [Gpu("the GPU", pair)] if pair else []


def _by_maker(lines: str) -> Known | None:
    """The first name of the table that stands behind its maker's or its family's."""
    for at, maker in enumerate(_MAKER.finditer(lines)):
        found = gpus.named(lines[maker.start() : maker.end() + 80].partition("\n")[0])
        if found or at == _MAKERS:
            return found
    return None


def _pair(found: re.Match[str]) -> tuple[int, int]:
    return int(found["major"]), int(found["minor"])


def _name_before(words: str, lines: str) -> str:
    """The name that ends the words: from its maker's or its family's on, else what its own line begins with."""
    maker = _NAME.search(words)
    if maker:
        return maker[0]
    told = _WITH_CAPABILITY.search(lines)
    line = lines[: told.start()].rpartition("\n")[2] if told else ""
    name = line.rpartition(": ")[2].strip()
    return name if 0 < len(name) <= 40 else "the GPU"


def _known_cc(name: str) -> tuple[int, int] | None:
    try:
        return gpus.find(name).cc
    except Problems:
        return None
