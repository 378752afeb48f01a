"""The recorded machines through the doctor, torch's own checks and env-doctor 0.3.5: cases right.

    python benchmarks/doctor_rivals.py --env-doctor RIVALS/bin/python [--write docs/doctor-rivals.md]

Needs a torch (any build; its checks run with the GPU mocked) and, in an environment of its own,
`pip install env-doctor==0.3.5`. Only cases that all of them can answer are counted: a GPU, and a build whose
list of code is known. Right is who says "runs" where a kernel starts, and "does not run" where none does.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "device")]

from recorded_machines import ROWS, machine_of  # noqa: E402

from ambidex.device import builds, rules  # noqa: E402
from ambidex.device.machine import Machine  # noqa: E402

RUNS, NOT, DIES = "runs", "does not run", "dies of an error"
ENV_DOCTOR = """
import json, sys
from env_doctor.detectors.compute_capability import get_sm_for_compute_capability, is_sm_in_arch_list
asked = json.load(sys.stdin)
print(json.dumps([is_sm_in_arch_list(get_sm_for_compute_capability(cc), archs) for cc, archs in asked]))
"""
PREFACE = """# The doctor and its rivals

Run on {today}, with the table of {table}. Repeat it with:

```
python -m venv rivals && rivals/bin/python -m pip install env-doctor==0.3.5
python benchmarks/doctor_rivals.py --env-doctor rivals/bin/python --write docs/doctor-rivals.md
```

{count} cases: every recorded machine of `tests/device/machines.toml` that has a GPU and a build whose list of
code is known, one case a GPU. The truth is written there from its source, not from the program. Right is who
says "runs" where a kernel starts and "does not run" where none does. torch's checks ran with the GPU and the
list mocked; a warning counts as "does not run". The other recorded machines (driver, container, environment,
missing torch) are left out: these functions are not asked about them. No GPU was used.

The machines were chosen to cover the classes on which the rivals were known to be wrong, so the counts say
who handles those classes. They are no estimate of how often each is wrong on machines at large.

"""


@dataclass(frozen=True)
class Case:
    says: str
    source: str
    machine: Machine
    gpu: int
    truth: str

    @property
    def cc(self) -> tuple[int, int]:
        found = self.machine.gpus[self.gpu].cc
        assert found
        return found

    @property
    def archs(self) -> list[str]:
        return [str(arch) for arch in self.machine.build.archs or ()]


def cases() -> list[Case]:
    found = []
    for row in ROWS:
        machine = machine_of(row)
        about_code = row["cause"] in ("OK", "ARCH_NONE", "EXTENSION_ARCH") and "probe" not in row
        if not about_code or not machine.build.archs or machine.build.hip:
            continue
        verdicts = row.get("each") or [row["verdict"]] * len(machine.gpus)
        for gpu, verdict in enumerate(verdicts):
            name = f" (GPU {gpu})" if len(verdicts) > 1 else ""
            truth = NOT if verdict == "none" else RUNS
            found.append(Case(row["says"] + name, row["source"], machine, gpu, truth))
    return found


def doctor(case: Case) -> str:
    machine = case.machine
    said = rules.verdict(
        machine.build, machine.gpus[case.gpu], machine.driver, machine.python, machine.os, machine.machine
    )
    return RUNS if said.runs else NOT


def torch_check(name: str, case: Case) -> str:
    """`torch.cuda._check_capability` or `_check_cubins`, with this GPU and this list in place of the real."""
    import torch

    as_if: dict[str, Any] = {
        "get_arch_list": lambda: case.archs,
        "device_count": lambda: 1,
        "get_device_capability": lambda _=None: case.cc,
        "get_device_name": lambda _=None: "the GPU",
    }
    with (
        mock.patch.multiple(torch.cuda, **as_if),
        mock.patch.object(torch.version, "cuda", case.machine.build.cuda),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        try:
            getattr(torch.cuda, name)()
        except KeyError:
            return DIES
    about_the_gpu = [one for one in caught if "unknown compute capability" not in str(one.message)]
    return NOT if about_the_gpu else RUNS


def env_doctor(python: str, asked: Sequence[Case]) -> list[str]:
    questions = json.dumps([[f"{case.cc[0]}.{case.cc[1]}", case.archs] for case in asked])
    done = subprocess.run(
        [python, "-c", ENV_DOCTOR], input=questions, capture_output=True, text=True, check=True
    )
    return [RUNS if said else NOT for said in json.loads(done.stdout.splitlines()[-1])]


def table(asked: Sequence[Case], answers: dict[str, list[str]]) -> list[str]:
    """Markdown: the counts first, then every case that any of them has wrong."""
    lines = ["| who | right | of | says 'does not run' of what runs | says 'runs' of what does not | dies |"]
    lines.append("|---|---|---|---|---|---|")
    for who, said in answers.items():
        pairs = list(zip(said, (case.truth for case in asked), strict=True))
        alarms = sum(found == NOT and truth == RUNS for found, truth in pairs)
        missed = sum(found == RUNS and truth == NOT for found, truth in pairs)
        dies = sum(found == DIES for found, _ in pairs)
        right = sum(found == truth for found, truth in pairs)
        lines.append(f"| {who} | {right} | {len(pairs)} | {alarms} | {missed} | {dies} |")
    lines += ["", "Every case that any of them has wrong:", ""]
    lines.append("| case | GPU | code in the build | truth | " + " | ".join(answers) + " |")
    lines.append("|---" * (4 + len(answers)) + "|")
    for number, case in enumerate(asked):
        said = [found[number] for found in answers.values()]
        if any(found != case.truth for found in said):
            marks = ["right" if found == case.truth else f"**{found}**" for found in said]
            archs = " ".join(case.archs)
            cc = f"{case.cc[0]}.{case.cc[1]}"
            lines.append(f"| {case.says} | {cc} | {archs} | {case.truth} | " + " | ".join(marks) + " |")
    return lines


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    asked.add_argument("--env-doctor", metavar="PYTHON", help="the Python that has env-doctor 0.3.5")
    asked.add_argument("--write", metavar="FILE", type=Path)
    given = asked.parse_args()
    import torch

    found = cases()
    answers = {
        "ambidex doctor": [doctor(case) for case in found],
        f"torch {torch.__version__} `_check_capability`": [
            torch_check("_check_capability", c) for c in found
        ],
        f"torch {torch.__version__} `_check_cubins`": [torch_check("_check_cubins", c) for c in found],
    }
    if given.env_doctor:
        answers["env-doctor 0.3.5 `is_sm_in_arch_list`"] = env_doctor(given.env_doctor, found)
    lines = table(found, answers)
    print("\n".join(lines))
    if given.write:
        preface = PREFACE.format(today=datetime.date.today(), table=builds.date(), count=len(found))
        given.write.write_text(preface + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
