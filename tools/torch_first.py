"""tox's installer: torch in a step of its own, in the variant that the environment names, then everything else.

    python tools/torch_first.py [pip options] packages...

Asked for together with other packages, an unpinned torch pulls gigabytes of CUDA from the default index, and an extra
index that cannot be reached costs seconds for every package. So torch goes first: from the wheels that pip already
knows (find-links), else from the index of its row in src/ambidex/device/variants.toml.

    AMBIDEX_VARIANT       the row, "cpu" if unset; "none" leaves torch out
    AMBIDEX_TORCH_INDEX   another index instead of the row's; empty: pip's default index
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VARIANTS = Path(__file__).parents[1] / "src" / "ambidex" / "device" / "variants.toml"


def main(arguments: list[str]) -> int:
    wants_torch = [word for word in arguments if re.fullmatch(r"torch\b.*", word)]
    variant = os.environ.get("AMBIDEX_VARIANT") or "cpu"
    if wants_torch and variant == "none":
        arguments = [word for word in arguments if word not in wants_torch]
    elif wants_torch and (code := install_torch(variant)):
        return code
    return pip(*arguments) if any(not word.startswith("-") for word in arguments) else 0


def install_torch(variant: str) -> int:
    """Install the variant's torch unless it is there. Returns pip's exit code."""
    rows = tomllib.loads(VARIANTS.read_text("utf-8"))
    rows.pop("meta", None)
    if variant not in rows:
        print(f"error: there is no variant {variant!r}\n  wanted: one of {', '.join(rows)}", file=sys.stderr)
        return 2
    row = rows[variant]
    pinned = row.get("torch")
    tag = "" if sys.platform == "darwin" else f"+{row['local']}"  # macOS has one build, without a tag
    wanted = f"torch=={pinned}{tag}" if pinned else "torch"
    untagged_too = [pinned] if row["local"] != "cpu" else []  # the default index's own builds are CUDA's
    if pinned and installed() in [pinned + tag, *untagged_too]:
        return 0
    pre = ["--pre"] if row["channel"] == "nightly" else []
    if pinned and pip("--no-deps", "--no-index", "--quiet", wanted, quiet=True) == 0:
        return 0
    index = os.environ.get("AMBIDEX_TORCH_INDEX", "" if sys.platform == "darwin" else row["index"])
    from_index = ["--index-url", index] if index else []
    # On the default index a CUDA build bears no tag, and brings its CUDA libraries as packages of their own. The CPU
    # build keeps its tag there, so that it can only be found or missed, never swapped for gigabytes of CUDA.
    cuda_by_default = not index and row["local"] != "cpu"
    wanted = f"torch=={pinned}" if cuda_by_default and pinned else wanted
    code = pip(*([] if cuda_by_default else ["--no-deps"]), *pre, *from_index, wanted)
    if code:
        place = index or "pip's default index"
        print(
            f"error: {wanted} could not be installed\n"
            f"  found: no wheel of it for this Python ({sys.version.split()[0]}) in pip's find-links or on {place}\n"
            f"  do: set AMBIDEX_TORCH_INDEX to an index that has it, or PIP_FIND_LINKS to a folder with its wheel",
            file=sys.stderr,
        )
    return code


def installed() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def pip(*arguments: str, quiet: bool = False) -> int:
    command = [sys.executable, "-I", "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL if quiet else None,
                          stderr=subprocess.DEVNULL if quiet else None).returncode  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
