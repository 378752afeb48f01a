"""Prove that an environment holds what its name says, before a single test runs in it.

    python tools/prove_build.py py311-cu124

Asked are the Python that runs this and the torch that it imports, not what was ordered: its version, its CUDA, the
architectures that it has code for. The question is the same as at the build of an image (docker/record.py). It prints
one line that begins with `proved`, which tools/ran.py repeats, or ends with all that is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docker"), str(ROOT / "tools")]

import record  # noqa: E402
import torch_first  # noqa: E402


def main(environment: str) -> int:
    variant = torch_first.variant_of(environment)
    wrong = [*wrong_python(environment, sys.version_info[:2]), *wrong_project()]
    if variant == "none":
        wrong += ["torch can be imported"] if importlib.util.find_spec("torch") else []
        said = "no torch"
    else:
        found = {"torch": record.look_at_torch(), "packages": record.look_at_packages()}
        wrong += wrong_version(environment, found) if "-torch" in environment else wrong_torch(variant, found)
        said = in_words(found["torch"])
    for sentence in wrong:
        print(f"error: {environment} is not what its name says: {sentence}", file=sys.stderr)
    if not wrong:
        print(f"proved {environment}: {said}, Python {sys.version.split()[0]}, {sys.platform}")
    return 1 if wrong else 0


def wrong_python(environment: str, running: tuple[int, int]) -> list[str]:
    named = re.match(r"py3(\d+)-", environment)
    if named and running != (3, int(named[1])):
        return [f"this is Python {running[0]}.{running[1]}"]
    return []


def wrong_project() -> list[str]:
    """The tests are to test what a user gets, which is the wheel and not the folder of the source."""
    found = importlib.util.find_spec("ambidex")
    if found is None or found.origin is None:
        return ["Ambidex is not installed"]
    return ["Ambidex comes from the source"] if Path(found.origin).is_relative_to(ROOT / "src") else []


def wrong_torch(variant: str, found: dict[str, Any]) -> list[str]:
    row = dict(torch_first.row_of(variant))
    if pin := torch_first.pin_of(variant) if row["channel"] == "nightly" else {}:
        row["torch"] = pin["version"].partition("+")[0]
    if sys.platform == "darwin":
        row["local"] = ""  # macOS has one build, without a tag
    wrong = record.differences(row, found, {})
    if pin and found["torch"]["git"] != pin["git"]:
        wrong.append(f"torch was built from {found['torch']['git']}, the pin says {pin['git']}")
    return wrong


def wrong_version(environment: str, found: dict[str, Any]) -> list[str]:
    """`py311-torch251` names a version of torch, of which any build will do: 2.5.1 is CUDA 12.4 on the default index."""
    named = environment.rsplit("-torch", 1)[1]
    version = found["torch"]["version"].partition("+")[0]
    return [] if version.replace(".", "") == named else [f"torch is {version}"]


def in_words(torch: dict[str, Any]) -> str:
    cuda = f"CUDA {torch['cuda']}, code for {' '.join(torch['archs'])}" if torch["cuda"] else "no CUDA"
    return f"torch {torch['version']} of commit {torch['git'][:10]}, {cuda}"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except (ValueError, json.JSONDecodeError) as error:
        sys.exit(f"error: {error}")
