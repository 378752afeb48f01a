"""What one image is made of: its row of the variants table and its pinned requirements, cut out of the rest.

Usage: pin.py VARIANT TABLE REQUIREMENTS OUT

The dependency layer of an image sees what this writes into OUT and nothing else. So an edit of another variant's row,
or of a comment, leaves that layer (several gigabytes with CUDA) as it is.

    OUT/row.json           the row, with its name
    OUT/requirements.txt   REQUIREMENTS/common.txt, and REQUIREMENTS/VARIANT.txt where there is one
    OUT/test.txt           REQUIREMENTS/test.txt, the tools that only the test image holds
"""

import difflib
import json
import sys
import tomllib
from pathlib import Path


def read_row(table: Path, variant: str) -> dict:
    """The row called `variant`, or SystemExit with the sentence that mends a wrong name."""
    rows = tomllib.loads(table.read_text("utf-8"))
    rows.pop("meta", None)
    if variant not in rows:
        near = (difflib.get_close_matches(variant, rows, n=1, cutoff=0.4) or ["nightly-cu130"])[0]
        typed = f"GPU_VARIANT={near} docker compose build train-gpu-nightly"
        raise SystemExit(
            f"error: there is no variant {variant!r} in src/ambidex/device/variants.toml, which has {', '.join(rows)}; "
            f"type: {typed if 'cuda' in rows[near] else 'docker compose build train-cpu'}"
        )
    return {"name": variant, **rows[variant]}


def read_requirements(folder: Path, *names: str) -> str:
    """The pins of these files, one a line, sorted, without comments: a reworded comment changes no layer."""
    lines: set[str] = set()
    for name in names:
        path = folder / f"{name}.txt"
        if path.exists():
            lines |= {line.split("#")[0].strip() for line in path.read_text("utf-8").splitlines()}
    return "".join(f"{line}\n" for line in sorted(lines - {""}))


def main(variant: str, table: str, requirements: str, out: str) -> None:
    row = read_row(Path(table), variant)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "row.json").write_text(json.dumps(row, indent=2, sort_keys=True) + "\n", "utf-8")
    (folder / "requirements.txt").write_text(
        read_requirements(Path(requirements), "common", variant), "utf-8"
    )
    (folder / "test.txt").write_text(read_requirements(Path(requirements), "test"), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
