"""A machine from what was typed: `--torch 2.5.1+cu121 --gpu "RTX 5060" --driver 576.02`. (Signature first.)"""

from __future__ import annotations

from ambidex.device.machine import Machine


def machine_from(
    *,
    torch: str | None = None,
    gpu: str | None = None,
    driver: str | None = None,
    python: str | None = None,
    os: str | None = None,
    machine: str | None = None,
    here: Machine | None = None,
) -> Machine:
    """The supposed machine. What is not given is linux, x86_64, this Python and a driver new enough.

    torch and GPUs that are not given are taken from `here` where it is given, else there are none.
    Raises Problems (exit 2) with everything that could not be understood.
    """
    raise NotImplementedError
