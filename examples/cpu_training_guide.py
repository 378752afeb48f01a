"""Lesson 3: four ways to keep a program on the CPU, what each stops, and what goes past it.

    python cpu_training_guide.py

Each way runs in a child process of its own, since the first decides something that a process can decide only once.
In every child the same five questions are asked of torch. Needs torch; with ambidex installed, a last part shows its
guard and the line in which `train` says all of this.

Where there is no GPU, a stand-in answers, and the heading says so. It is put where torch's road to the GPU begins, so
what is shown, that is which requests *reach* CUDA, is torch's own doing; it computes nothing.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap

PRELUDE = """
import os, sys, torch
REAL = os.environ["GUIDE_GPU"] == "real"

class Reached(Exception):
    pass

if not REAL:  # the stand-in: a machine with one GPU, unless the variable hides it, as the CUDA driver would have it
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    torch.cuda.is_available = lambda: not hidden
    def reached():
        if hidden:
            raise RuntimeError("No CUDA GPUs are available")
        raise Reached
    torch.cuda._lazy_init = reached
"""

QUESTIONS = """
def ask(words, question):
    try:
        answer = question()
        where = getattr(answer, "device", None)
        text = f"on {where}" if where is not None else str(answer)
    except Reached:
        text = "REACHED THE GPU"
    except Exception as error:
        text = "stopped: " + " ".join(str(error).split())[:120]
    print(f"  {words:<44}{text.replace('on cuda:0', 'REACHED THE GPU')}")

device = torch.device(os.environ.get("GUIDE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu"))
ask("torch.cuda.is_available()", lambda: torch.cuda.is_available())
ask("torch.zeros(1), no device named", lambda: torch.zeros(1))
ask("torch.zeros(1).to(device): code that asks", lambda: torch.zeros(1).to(device))
ask("torch.zeros(1).cuda(): code that does not", lambda: torch.zeros(1).cuda())
ask('torch.zeros(1, device="cuda"): the same', lambda: torch.zeros(1, device="cuda"))
"""

WAYS = (
    (
        "0. Nothing forced: how it is without",
        {},
        "",
        "Code that asks and code that does not: both reach the GPU.",
    ),
    (
        "1. CUDA_VISIBLE_DEVICES=-1 before the process starts",
        {"CUDA_VISIBLE_DEVICES": "-1"},
        "",
        "Stops everything. Set it before Python starts: once CUDA has started in a process it is read no more. "
        'On Windows an empty value counts as unset, so "-1" is the form that works everywhere.',
    ),
    (
        "2. torch.cuda.is_available overridden in code",
        {},
        "torch.cuda.is_available = lambda: False",
        "Stops code that asks first. .cuda() never asks, and goes past it.",
    ),
    (
        "3. The explicit device: --device cpu, or device= in Python",
        {"GUIDE_DEVICE": "cpu"},
        "",
        "Decides for the code that takes it, and for nothing else.",
    ),
    (
        '4. The configuration: device = "cpu" in a TOML file, or AMBIDEX_DEVICE=cpu',
        {"AMBIDEX_DEVICE": "cpu"},
        'import tomllib\nos.environ["GUIDE_DEVICE"] = tomllib.loads(\'device = "cpu"\')["device"]',
        "The same as 3, written down once instead of typed each time.",
    ),
)

GUARDED = """
from ambidex.guard import cpu_guard
guard = cpu_guard(['device="cpu"'])
guard.__enter__()
"""

ALL_FOUR = """
import pathlib, sys, tempfile
torch.cuda.is_available = lambda: False
from ambidex.cli import main
os.chdir(tempfile.mkdtemp())
pathlib.Path("cpu.toml").write_text('device = "cpu"')
pathlib.Path("book.txt").write_text("to be or not to be " * 200)
sys.exit(main(["train", "cpu.toml", "--device", "cpu", "--data", "book.txt", "--dry-run"]))
"""


def child(code: str, variables: dict[str, str]) -> str:
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("CUDA_VISIBLE_DEVICES", "AMBIDEX_DEVICE", "GUIDE_DEVICE")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + "".join(f"  {line}\n" for line in done.stderr.splitlines()[-3:] if done.returncode)


def has_gpu() -> bool:
    return (
        child(
            "import torch\ntry: torch.zeros(1).cuda(); print('yes')\nexcept Exception: print('no')", {}
        ).strip()
        == "yes"
    )


def main() -> None:
    gpu = has_gpu()
    kind = {"GUIDE_GPU": "real" if gpu else "stand-in"}
    print("The GPU below is this machine's own." if gpu else
          "This machine has no GPU that torch can use: the GPU below is a STAND-IN. It shows what reaches CUDA.")  # fmt: skip
    for title, variables, code, lesson in WAYS:
        print(f"\n{title}")
        print(child(PRELUDE + code + QUESTIONS, {**variables, **kind}), end="")
        print(textwrap.indent(textwrap.fill(lesson, 100), "  => "))
    if importlib.util.find_spec("ambidex") is None:
        print("\nWith ambidex installed there is a fifth part: its guard.")
        return
    print("\nThe guard that ambidex puts around a training whose CPU is forced, here around way 3")
    print(child(PRELUDE + GUARDED + QUESTIONS, {"GUIDE_DEVICE": "cpu", **kind}), end="")
    print("  => What went past is stopped, and told which line asked.")
    print("\nAll four at once: the first line of `ambidex train`")
    both = {"CUDA_VISIBLE_DEVICES": "-1", "AMBIDEX_DEVICE": "cpu", **kind}
    print("  " + child("import os, torch\n" + ALL_FOUR, both).split("\n", maxsplit=1)[0])


if __name__ == "__main__":
    main()
