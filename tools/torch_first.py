"""tox's installer: torch in a step of its own, in the build that the environment names, then everything else.

    python tools/torch_first.py --for ENVIRONMENT [pip options] packages...

Asked for together with other packages, an unpinned torch pulls gigabytes of CUDA from the default index, and an extra
index that cannot be reached costs seconds for every package. So torch goes first: from the wheels that pip already
knows (find-links), else from the index of its row in src/ambidex/device/variants.toml.

The environment's name says which row: `py312-nightly-cu130` is the row nightly-cu130, `py311-bare` has no torch, and
any other environment (`types`, `train`) takes AMBIDEX_VARIANT, or the CPU's row.

    AMBIDEX_VARIANT       the row for environments that name none; "none" leaves torch out
    AMBIDEX_TORCH_INDEX   another index instead of the row's; empty: pip's default index
    AMBIDEX_NIGHTLY       pinned: the build of pins/VARIANT.json and no other; floating: the newest; unset: pinned where
                          there is a pin
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VARIANTS = ROOT / "src" / "ambidex" / "device" / "variants.toml"
PINS = ROOT / "pins"
NAMED_OTHERWISE = {"bare": "none", "torch251": "cu121"}
DEFAULT = "pip's default index"


def main(arguments: list[str]) -> int:
    environment, arguments = named(arguments)
    wants_torch = [word for word in arguments if re.fullmatch(r"torch\b.*", word)]
    try:
        variant = variant_of(environment)
        if wants_torch and variant == "none":
            arguments = [word for word in arguments if word not in wants_torch]
        elif wants_torch and (code := install_torch(variant)):
            return code
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return pip(*arguments) if any(not word.startswith("-") for word in arguments) else 0


def named(arguments: list[str]) -> tuple[str, list[str]]:
    """The environment after --for, and the words for pip."""
    return (arguments[1], arguments[2:]) if arguments[:1] == ["--for"] else ("", arguments)


def variant_of(environment: str) -> str:
    """`py312-nightly-cu130` -> `nightly-cu130`. ValueError where a name with a Python in it ends in no variant."""
    named_for_a_python = re.fullmatch(r"py3\d+-(.+)", environment)
    if not named_for_a_python:
        return os.environ.get("AMBIDEX_VARIANT") or "cpu"
    variant = NAMED_OTHERWISE.get(named_for_a_python[1], named_for_a_python[1])
    if variant != "none":
        row_of(variant)
    return variant


def row_of(variant: str) -> dict[str, Any]:
    """The variant's row. ValueError with the names that there are, if it has none."""
    rows: dict[str, dict[str, Any]] = tomllib.loads(VARIANTS.read_text("utf-8"))
    rows.pop("meta", None)
    if variant not in rows:
        raise ValueError(f"there is no variant {variant!r}\n  wanted: one of {', '.join(rows)}")
    return rows[variant]


def pin_of(variant: str) -> dict[str, str]:
    """The nightly that a job fetched, hashed and wrote down; empty where none did, or where the newest is wanted."""
    wanted = os.environ.get("AMBIDEX_NIGHTLY") or "pinned where there is one"
    path = PINS / f"{variant}.json"
    if wanted == "floating" or (wanted != "pinned" and not path.exists()):
        return {}
    if not path.exists():
        raise ValueError(
            f"there is no pin for {variant}\n"
            f"  wanted: {path.relative_to(ROOT).as_posix()}, which only a job writes that has fetched the wheel\n"
            f"  do: python tools/nightly.py pin {variant}"
        )
    return dict(json.loads(path.read_text("utf-8")))


def install_torch(variant: str) -> int:
    """Install the variant's torch unless it is there. Returns pip's exit code."""
    row = row_of(variant)
    if row["channel"] == "nightly":
        return install_nightly(variant, row)
    tag = "" if sys.platform == "darwin" else f"+{row['local']}"  # macOS has one build, without a tag
    pinned = row["torch"]
    wanted = f"torch=={pinned}{tag}"
    untagged_too = [pinned] if row["local"] != "cpu" else []  # the default index's own builds are CUDA's
    if installed() in [pinned + tag, *untagged_too]:
        return 0
    if pip("--no-deps", "--no-index", "--quiet", wanted, quiet=True) == 0:
        return 0
    index = os.environ.get("AMBIDEX_TORCH_INDEX", "" if sys.platform == "darwin" else row["index"])
    if row["local"] == "cpu":
        # The CPU build keeps its tag on the default index too, so that it can only be found or missed, never swapped
        # for gigabytes of CUDA.
        return install(["--no-deps", *from_index(index), wanted], index)
    # There a CUDA build bears no tag. Three equals signs want the version letter by letter: to two of them, a wheel of
    # the CPU build in pip's find-links (2.13.0+cpu) would be a fine and even a newer 2.13.0.
    return install([*from_index(index), wanted if index else f"torch==={pinned}"], index)


def install_nightly(variant: str, row: dict[str, Any]) -> int:
    """The pinned nightly, its bytes verified, else the row's, else the newest. It brings what it needs from its index."""
    pin = pin_of(variant)
    pinned = pin.get("version") or (row.get("torch") and f"{row['torch']}+{row['local']}")
    if pinned and installed() == pinned:
        return 0
    index = os.environ.get("AMBIDEX_TORCH_INDEX") or row["index"]
    words = ["--pre", *from_index(index)]
    if not pin:
        # --upgrade: tomorrow's nightly into yesterday's environment.
        return install([*words, f"torch=={pinned}" if pinned else "torch", "--upgrade"], index)
    with tempfile.TemporaryDirectory() as folder:
        asked = ["--no-deps", "--dest", folder, *words, f"torch=={pinned}"]
        if code := failed(pip(*asked, command="download"), f"torch=={pinned}", index):
            return code
        (wheel,) = Path(folder).glob("torch-*.whl")
        if (found := sha256(wheel)) != pin["sha256"]:
            raise ValueError(
                f"{wheel.name} is not the file that was pinned\n  found: sha256 {found}\n  wanted: {pin['sha256']}\n"
                f"  do: python tools/nightly.py pin {variant}, and look at what it says has changed"
            )
        return install([*words, str(wheel)], index)


def from_index(index: str) -> list[str]:
    return ["--index-url", index] if index else []


def install(words: list[str], index: str) -> int:
    return failed(pip(*words), words[-1], index)


def failed(code: int, wanted: str, index: str) -> int:
    """pip's exit code; where it is not 0, with a sentence."""
    if code:
        print(
            f"error: {wanted} could not be installed\n"
            f"  found: no wheel of it for this Python ({sys.version.split()[0]}) in pip's find-links or on "
            f"{index or DEFAULT}\n"
            f"  do: set AMBIDEX_TORCH_INDEX to an index that has it, or PIP_FIND_LINKS to a folder with its wheel",
            file=sys.stderr,
        )
    return code


def installed() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pip(*arguments: str, command: str = "install", quiet: bool = False) -> int:
    words = [sys.executable, "-I", "-m", "pip", command, "--disable-pip-version-check", *arguments]
    return subprocess.run(words, check=False, stdout=subprocess.DEVNULL if quiet else None,
                          stderr=subprocess.DEVNULL if quiet else None).returncode  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
