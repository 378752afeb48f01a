"""`ambidex doctor explain`: read a pasted error or log, name the cause and what to do.

Needs no GPU and no torch. What the text itself tells (the GPU, the build's list, its version, the driver) is
judged by the same rules as a machine; everything else goes by `fingerprints`. A text that holds nothing known
is told so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ambidex.device import fingerprints, gpus, rules
from ambidex.device.commands import in_a_terminal
from ambidex.device.covers import is_integrated
from ambidex.device.diagnosis import Diagnosis
from ambidex.device.excerpt import without_escapes
from ambidex.device.facts import this_machine
from ambidex.device.gpus import Known
from ambidex.device.layout import laid_out
from ambidex.device.machine import Arch, Build, Driver, Gpu, Machine
from ambidex.errors import Problems

_UNNAMED = "?"
# Sentences long enough to be told where a line breaks in them: torch breaks its warning's, a terminal everybody's.
_MAY_BE_TORN = frozenset(
    {
        "not_compatible",
        "no_kernel_image",
        "not_compiled",
        "driver_old",
        "driver_insufficient",
        "no_driver",
        "no_device",
    }
    | {"forward_compat", "driver_mismatch", "deserialize", "container_toolkit", "ptx_toolchain", "forked"}
)
_WORDS_OF_A_SENTENCE = 4
UNKNOWN = 30  # exit code where nothing was recognised
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
class Explained:
    """What a text tells. ``cause`` is a fingerprint's id, ``OK`` for a false alarm, '' where nothing is
    known.
    """

    cause: str = ""
    text: str = ""
    why: str = ""
    fix: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()  # what was read out of the text
    also: tuple[str, ...] = ()
    betrays: tuple[str, ...] = ()  # which kind of wheel the list of architectures points to

    @property
    def exit_code(self) -> int:
        return 0 if self.cause else UNKNOWN

    def json(self) -> str:
        """As the doctor's own JSON has it, where it has the same."""
        import json

        data = {
            "schema": 1,
            "exit_code": self.exit_code,
            "cause": {"id": self.cause, "text": self.text},
            "why": self.why,
            "fixes": [{"commands": [], "installs": [], "requires": {}, "why": line} for line in self.fix],
            "read": list(self.seen),
            "wheel": list(self.betrays),
            "also": list(self.also),
        }
        return json.dumps(data, indent=2)

    def __str__(self) -> str:
        if not self.cause and not self.seen:
            return self.text
        rows = [("Cause", self.text), ("Why", self.why)]
        rows += [("Fix" if number == 0 else "Or", line) for number, line in enumerate(self.fix)]
        rows += [("Read", "; ".join(self.seen))]
        rows += [("Wheel", line) for line in self.betrays]
        rows += [("Also", line) for line in self.also]
        return laid_out(rows)


@dataclass(frozen=True)
class _Read:
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


def explain(text: str) -> Explained:
    """The cause in the text and the way out of it, or the plain statement that nothing in it is known."""
    text = without_escapes(text)
    lines = _without_prefixes(text)
    running = " ".join(lines.split())
    hits = _without_doubles(_hits(text, running))
    facts, judged = _judged_worst(_read(lines, running), hits)
    betrays = betrayed(facts.archs) if facts.listed else ()
    if judged is not None and (not hits or _is_for_the_rules(hits[0][0], judged)):
        return _by_rules(facts, judged, hits, betrays)
    if not hits and betrays:
        said = "No known error is in this text; below is what its list of architectures tells."
        return Explained("arch_list", said, seen=facts.words(), betrays=betrays)
    if not hits:
        return Explained(text=_nothing(text, facts), seen=facts.words(), betrays=betrays)
    first, match = hits[0]
    runs = judged is not None and judged.cause.id == "OK" and first.doctor != "ARCH_NONE"
    fix = (first.fix, *_commands(None if runs else judged, facts.os))
    return Explained(
        cause=first.id,
        text=_filled(first.cause, first, match),
        why=_three_cudas(first),
        fix=fix,
        seen=facts.words(),
        also=(*(_filled(other.cause, other, hit) for other, hit in hits[1:]), *_dead(judged, first)),
        betrays=betrays,
    )


def _is_for_the_rules(known: fingerprints.Fingerprint, judged: Diagnosis) -> bool:
    """Whether the error is about code for the GPU, which the rules judge by what the text tells. A build that
    runs by old PTX alone is what its own error says.
    """
    by_ptx = judged.verdict == "jit" and known.id == "fmha_arch"
    return known.doctor == "ARCH_NONE" and not by_ptx


def _dead(judged: Diagnosis | None, first: fingerprints.Fingerprint) -> tuple[str, ...]:
    """What stands in the way after the error of the text: a build without code for the GPU that it names."""
    dead = judged is not None and judged.cause.id == "ARCH_NONE" and first.doctor != "ARCH_NONE"
    return (judged.cause.text.replace(f"torch {_UNNAMED}", "This torch"),) if dead and judged else ()


def _without_prefixes(text: str) -> str:
    """The text without the words that another program put before its lines."""
    return "\n".join(map(_without_prefix, text.splitlines()))


def _without_prefix(line: str) -> str:
    at = 0
    while found := _PREFIX.match(line, at):
        at = found.end()
    return line[at:].strip()


def _hits(text: str, running: str) -> list[tuple[fingerprints.Fingerprint, re.Match[str]]]:
    """What is known in the text as it stands, or where its lines are joined; the root first.

    Across lines only whole sentences: a few words that come to stand side by side are no finding.
    """
    found = {
        known.id: (known, match)
        for known, match in fingerprints.matches(running)
        if known.id in _MAY_BE_TORN and len(match[0].split()) >= _WORDS_OF_A_SENTENCE
    }
    found |= {known.id: (known, match) for known, match in fingerprints.matches(text)}
    return [found[known.id] for known in fingerprints.KNOWN if known.id in found]


def _without_doubles(
    hits: Sequence[tuple[fingerprints.Fingerprint, re.Match[str]]],
) -> list[tuple[fingerprints.Fingerprint, re.Match[str]]]:
    """One word on one missing symbol: the most exact, which comes first."""
    kept: list[tuple[fingerprints.Fingerprint, re.Match[str]]] = []
    for known, match in hits:
        if not (known.id == "symbol" and any(other.id.startswith("symbol_") for other, _ in kept)):
            kept.append((known, match))
    return kept


def betrayed(archs: Sequence[Arch]) -> tuple[str, ...]:
    """Which kind of wheel a list points to. Fingerprints, not proof: whoever builds torch may list what he
    likes.
    """
    if len(set(archs)) < 2:
        return ()
    # sm_100a and sm_100f are of the same CUDA as sm_100; PTX with a suffix is in no wheel that is known here.
    entries = {str(replace(arch, suffix="") if arch.kind == "sm" else arch) for arch in archs}
    blackwell = any(arch.major >= 10 for arch in archs)
    found = []
    if "compute_37" in entries:
        found.append("compute_37: a Windows wheel for CUDA 11.8")
    elif "sm_37" in entries:
        found.append("sm_37 without PTX: a Linux wheel for CUDA 11.8")
    if "sm_61" in entries:
        found.append("sm_61: a Windows wheel (no release wheel for Linux lists it)")
    if "compute_90" in entries:
        found.append(
            "compute_90: a Linux nightly of July to November 2024, or an image of NVIDIA's own (NGC)"
        )
    if "sm_110" in entries:
        found.append("sm_110: a Linux wheel for aarch64, CUDA 13.0 or newer")
    if "compute_120" in entries:
        found.append(
            "compute_120: a Linux wheel, 2.7 for CUDA 12.8, or a nightly or a CUDA 12.9/13.0 build since then"
        )
    if not blackwell and "compute_90" not in entries:
        found.append(
            "neither sm_100 nor sm_120: built with CUDA 12.6 or older, or for CUDA 12 without Blackwell"
        )
    return tuple(found)


def _read(lines: str, running: str) -> _Read:
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
    return _Read(
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


def _judged_worst(
    facts: _Read, hits: Sequence[tuple[fingerprints.Fingerprint, re.Match[str]]]
) -> tuple[_Read, Diagnosis | None]:
    """The facts with the GPU that matters, and the rules' word on it: of several the first that cannot run."""
    each = [replace(facts, gpu=gpu) for gpu in (facts.gpu, *facts.others)]
    judged = [(one, _judged(one)) for one in each]
    chosen, said = next(
        (both for both in judged if both[1] is not None and both[1].verdict == "none"), judged[0]
    )
    has_code = any(known.doctor == "ARCH_NONE" for known, _ in hits)
    if said is not None and said.cause.id == "CPU_BUILD" and has_code and "+" not in (facts.version or "+"):
        return chosen, None  # no CPU build has such an error: the version came without its tag
    return chosen, said


def _judged(facts: _Read) -> Diagnosis | None:
    """The rules' word, where the text names a GPU and a build with its list or its version."""
    if facts.gpu is None or facts.gpu.cc is None or not (facts.archs or facts.version):
        return None
    cuda = re.search(r"\+cu(\d{2})(\d)", facts.version or "")
    build = Build(
        version=facts.version or _UNNAMED,
        cuda=f"{cuda[1]}.{cuda[2]}" if cuda else ("12" if facts.archs else None),
        archs=facts.archs or None,
        source="scanned" if facts.archs else "unknown",
    )
    machine = Machine(
        os=facts.os,
        machine=facts.machine,
        python=facts.python or f"{sys.version_info[0]}.{sys.version_info[1]}",
        build=build,
        gpus=(facts.gpu,),
        driver=facts.driver,
    )
    return rules.judge(machine)


def _by_rules(
    facts: _Read,
    judged: Diagnosis,
    hits: Sequence[tuple[fingerprints.Fingerprint, re.Match[str]]],
    betrays: tuple[str, ...],
) -> Explained:
    ids = [known.id for known, _ in hits]
    also = tuple(_filled(known.cause, known, match) for known, match in hits if known.doctor != "ARCH_NONE")
    runs = bool(judged.gpus) and judged.gpus[0].verdict.runs
    if runs and ids and ids[0] == "not_compatible" and "no_kernel_image" not in ids:
        return Explained(
            "false_alarm",
            f"torch's warning is a false alarm: {judged.gpus[0].verdict.reason}",
            fix=("nothing: train, and look here again only if a kernel fails",),
            seen=facts.words(),
            also=also,
            betrays=betrays,
        )
    if runs and hits:
        return Explained(
            "extension",
            f"torch itself has code for this GPU ({judged.gpus[0].verdict.reason}), so a library beside it "
            f"is what failed",
            fix=(
                "`ambidex doctor`, run there, names the library; reinstall it for this GPU, or build it "
                "from source",
            ),
            seen=facts.words(),
            also=also,
            betrays=betrays,
        )
    text, why = judged.cause.text, judged.cause.why
    if facts.version is None:  # the CUDA it was built with is not known either
        text = text.replace(f". torch {_UNNAMED}", ". This torch")
        why = why.split("; ", 1)[-1]
    if facts.archs and not facts.listed:  # in capabilities a warning does not tell of PTX
        text = text.replace(" and no PTX", "")
    return Explained(
        ids[0] if ids else judged.cause.id,
        text,
        why,
        _commands(judged, facts.os) or (() if runs else ("train on the CPU: --device cpu",)),
        facts.words(),
        also,
        betrays,
    )


def _commands(judged: Diagnosis | None, os: str) -> tuple[str, ...]:
    if judged is None:
        return ()
    typed = ((in_a_terminal(fix.commands, os), fix.why) for fix in judged.fixes[:2])
    return tuple(f"{command}\n{why}" if command else why for command, why in typed if command or why)


def _filled(sentence: str, known: fingerprints.Fingerprint, match: re.Match[str]) -> str:
    """The sentence with what the pattern caught."""
    caught = [group or "" for group in match.groups()] or [match[0]]
    if known.id == "driver_old":
        number = int(caught[0][:6]) if caught[0] else 0
        caught = [f": it speaks CUDA {number // 1000}.{number % 1000 // 10} ({number})" if number else ""]
    elif not caught[0]:
        caught = [next((group for group in caught if group), match[0]), *caught[1:]]
    return sentence.format(*(word[:120] for word in caught), "", "", "")


def _three_cudas(known: fingerprints.Fingerprint) -> str:
    if known.id == "driver_old":
        return "a driver that speaks CUDA 12 runs builds for any CUDA 12.x and none for CUDA 13, and so on"
    if known.id not in ("driver_insufficient", "not_compatible", "no_kernel_image", "not_compiled"):
        return ""
    return (
        "the CUDA that counts is the wheel's (torch.version.cuda); nvidia-smi shows the newest that the "
        "driver speaks, "
        "and a toolkit (nvcc) or an image's CUDA changes neither"
    )


def _nothing(text: str, facts: _Read) -> str:
    if not text.strip():
        return "There is nothing to read: paste the error, or name a file that holds it."
    start = "Nothing in this text is an error that is known here, and a guess would not help."
    if facts.words():
        return start
    more = "Run `ambidex doctor` where it happened, or paste the whole output with the lines above the error."
    return f"{start} {more}"
