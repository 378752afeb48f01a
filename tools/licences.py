"""Write docs/licences.md: the licence of everything that `ambidex[train]` brings, as the installed packages state it.

python tools/licences.py
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "licences.md"
ROOTS = (
    "torch",
    "numpy",
    "pydantic",
    "safetensors",
    "tokenizers",
    "matplotlib",
    "tqdm",
    "filelock",
    "packaging",
)
HEAD = """# Licences

Ambidex itself is under the MIT licence (`LICENSE`). Below is what `ambidex[train]` brings, with the licence that each
installed package states. Written by `python tools/licences.py`, on Linux with the CPU build of torch; a CUDA build
brings NVIDIA's libraries besides, under NVIDIA's own terms.

| package | version | licence |
|---|---|---|
"""


def main() -> int:
    found: dict[str, Distribution] = {}
    waiting = list(ROOTS)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        for wanted in found[name].requires or []:
            if "extra ==" not in wanted:
                waiting.append(re.split(r"[^\w.-]", wanted, maxsplit=1)[0])
    rows = [f"| {name} | {one.version} | {licence(one)} |" for name, one in sorted(found.items())]
    PAGE.write_text(HEAD + "\n".join(rows) + "\n", "utf-8", newline="\n")
    return 0


def licence(package: Distribution) -> str:
    about = package.metadata
    stated = about.get("License-Expression") or ""
    kinds = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    first = (about.get("License") or "").strip().splitlines()
    return stated or ", ".join(kinds) or (first[0][:80] if first else "not stated")


if __name__ == "__main__":
    sys.exit(main())
