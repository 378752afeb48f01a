"""`ambidex train` as torchrun starts it, with one thing that happens at one step of one rank, the first time.

ACT is "RANK:STEP:WHAT", WHAT a signal's name or "sleep". DATA_OF_1 is another text for rank 1, FLAGS_OF_1 flags of its own, CC_OF_1 its compiler.
"""

import os
import signal
import sys
import time
from pathlib import Path

from ambidex import cli
from ambidex.trainer import Trainer

RANK = os.environ["RANK"]
rank, step, what = os.environ.get("ACT", "-:0:").split(":")
update = Trainer.update


def act(self: Trainer):
    done = Path(os.environ["DONE"])
    if self.step + 1 == int(step) and not done.exists():
        done.touch()
        if what == "sleep":
            time.sleep(8)
        else:
            os.kill(os.getpid(), getattr(signal, what))
    return update(self)


if rank == RANK:
    Trainer.update = act
if RANK == "1":
    sys.argv += os.environ.get("FLAGS_OF_1", "").split()
    os.environ["CC"] = os.environ.get("CC_OF_1", os.environ.get("CC", ""))
leave = os._exit


def told(code: int) -> None:
    Path(f"{os.environ['DONE']}.exit-{RANK}").write_text(str(int(code)))
    leave(code)


os._exit = told
cli.entry()
