"""`ambidex doctor explain`: read a pasted error or log, name the cause and what to do.

Needs no GPU and no torch. What the text itself tells (the GPU, the build's list, its version, the driver) is
judged by the same rules as a machine; everything else goes by `fingerprints`. A text that holds nothing known
is told so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ambidex.device import fingerprints, rules
from ambidex.device.commands import in_a_terminal
from ambidex.device.diagnosis import Diagnosis, Fix
from ambidex.device.excerpt import without_escapes
from ambidex.device.layout import laid_out
from ambidex.device.machine import Arch, Build, Machine
from ambidex.device.pasted import Pasted, read, without_prefixes

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


@dataclass(frozen=True)
class Explained:
    """What a text tells. ``cause`` is a fingerprint's id, ``OK`` for a false alarm, '' where nothing is
    known.
    """

    cause: str = ""
    text: str = ""
    why: str = ""
    fixes: tuple[Fix, ...] = ()
    seen: tuple[str, ...] = ()  # what was read out of the text
    also: tuple[str, ...] = ()
    betrays: tuple[str, ...] = ()  # which kind of wheel the list of architectures points to
    os: str = "linux"  # whose shell the commands are for

    @property
    def exit_code(self) -> int:
        return 0 if self.cause else UNKNOWN

    @property
    def fix(self) -> tuple[str, ...]:
        """Each fix as it is read: the command, and below it the reason."""
        typed = ((in_a_terminal(one.commands, self.os), one.why) for one in self.fixes)
        return tuple(f"{command}\n{why}" if command else why for command, why in typed)

    def json(self) -> str:
        """As the doctor's own JSON has it, where it has the same."""
        import json

        data = {
            "schema": 1,
            "exit_code": self.exit_code,
            "cause": {"id": self.cause, "text": self.text},
            "why": self.why,
            "fixes": [one.data() for one in self.fixes],
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


def explain(text: str) -> Explained:
    """The cause in the text and the way out of it, or the plain statement that nothing in it is known."""
    text = without_escapes(text)
    lines = without_prefixes(text)
    running = " ".join(lines.split())
    hits = _without_doubles(_hits(text, running))
    facts, judged = _judged_worst(read(lines, running), hits)
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
    fixes = (Fix(why=first.fix), *_ways(None if runs else judged))
    return Explained(
        cause=first.id,
        text=_filled(first.cause, first, match),
        why=_three_cudas(first),
        fixes=fixes,
        seen=facts.words(),
        also=(*(_filled(other.cause, other, hit) for other, hit in hits[1:]), *_dead(judged, first)),
        betrays=betrays,
        os=facts.os,
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


def _judged_worst(
    facts: Pasted, hits: Sequence[tuple[fingerprints.Fingerprint, re.Match[str]]]
) -> tuple[Pasted, Diagnosis | None]:
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


def _judged(facts: Pasted) -> Diagnosis | None:
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
    facts: Pasted,
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
            fixes=(Fix(why="nothing: train, and look here again only if a kernel fails"),),
            seen=facts.words(),
            also=also,
            betrays=betrays,
            os=facts.os,
        )
    if runs and hits:
        return Explained(
            "extension",
            f"torch itself has code for this GPU ({judged.gpus[0].verdict.reason}), so a library beside it "
            f"is what failed",
            fixes=(
                Fix(
                    why="`ambidex doctor`, run there, names the library; reinstall it for this GPU, or build it "
                    "from source"
                ),
            ),
            seen=facts.words(),
            also=also,
            betrays=betrays,
            os=facts.os,
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
        _ways(judged) or (() if runs else (Fix(why="train on the CPU: --device cpu"),)),
        facts.words(),
        also,
        betrays,
        facts.os,
    )


def _ways(judged: Diagnosis | None) -> tuple[Fix, ...]:
    return tuple(fix for fix in judged.fixes[:2] if fix.commands or fix.why) if judged else ()


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


def _nothing(text: str, facts: Pasted) -> str:
    if not text.strip():
        return "There is nothing to read: paste the error, or name a file that holds it."
    start = "Nothing in this text is an error that is known here, and a guess would not help."
    if facts.words():
        return start
    more = "Run `ambidex doctor` where it happened, or paste the whole output with the lines above the error."
    return f"{start} {more}"
