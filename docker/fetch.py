#!/usr/bin/env python3
"""Fill docker/wheels, so that an image can be built without any network.

    python3 docker/fetch.py cpu                    the wheels of one variant, and of the test tools
    python3 docker/fetch.py cpu --python 3.12      for a base image with another Python than 3.11

pip's own settings hold (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT and so on); TORCH_INDEX takes the place of the row's
index. Needs Python 3.11 and pip, and works on any machine: what is fetched is for Linux on x86_64.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pin import main as cut_out

HERE = Path(__file__).resolve().parent
TABLE = HERE.parent / "src/ambidex/device/variants.toml"
# From the newest glibc on down; pip takes the first that a wheel names.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
             "manylinux_2_12_x86_64", "manylinux2010_x86_64", "manylinux_2_5_x86_64", "manylinux1_x86_64",
             "linux_x86_64")  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("variant", help="a row of src/ambidex/device/variants.toml")
    arguments.add_argument("--python", default="3.11", help="the Python of the base image (3.11)")
    arguments.add_argument("--to", type=Path, default=HERE / "wheels", help="docker/wheels")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as pin:
        cut_out(asked.variant, str(TABLE), str(HERE / "requirements"), pin)
        row = json.loads(Path(pin, "row.json").read_text("utf-8"))
        limits = ["--constraint", f"{pin}/requirements.txt"]
        fetch(asked, [*torch_words(row), *limits], what=f"torch for {row['name']}")
        fetch(asked, ["--requirement", f"{pin}/requirements.txt"], what="the pinned requirements")
        fetch(asked, ["--requirement", f"{pin}/test.txt"], what="the test tools")
    total = sum(wheel.stat().st_size for wheel in asked.to.glob("*.whl"))
    print(f"{asked.to} holds {len(list(asked.to.glob('*.whl')))} wheels, {total / 1e6:.0f} MB")


def torch_words(row: dict) -> list[str]:
    """What to ask pip for, and where. A CPU build needs nothing besides the pins; a CUDA build brings NVIDIA's."""
    index = os.environ.get("TORCH_INDEX", row["index"])
    words = ["--index-url", index] if index else []
    words += ["--no-deps"] if "cuda" not in row else []
    if "torch" not in row:
        return [*words, "--pre", "torch"]
    local = f"+{row['local']}" if index == row["index"] else ""  # the default index has no such names
    return [*words, f"torch=={row['torch']}{local}"]


def fetch(asked: argparse.Namespace, words: list[str], *, what: str) -> None:
    """What is here already (or where PIP_FIND_LINKS points) is taken from there, and only then is an index asked."""
    if pip_download(asked, ["--no-index", "--find-links", str(asked.to), *words], stderr=subprocess.DEVNULL):
        return
    if not pip_download(asked, words):
        raise SystemExit(
            f"error: pip could not fetch {what} (its reason stands above); if this machine reaches only a mirror, name it: "
            f"PIP_INDEX_URL=... TORCH_INDEX=... python3 docker/fetch.py {asked.variant}"
        )


def pip_download(asked: argparse.Namespace, words: list[str], **how: int) -> bool:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    command += ["--dest", str(asked.to), "--implementation", "cp", "--python-version", asked.python]
    command += [*platforms, *words]
    return subprocess.run(command, check=False, **how).returncode == 0


if __name__ == "__main__":
    main()
