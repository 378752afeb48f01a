"""Read tox's result file and fail unless every required environment ran and passed.

    python tools/ran.py tox.json ENVIRONMENT...

tox calls a run green in which some environments were skipped; we do not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def complaints(result: dict[str, Any], required: list[str]) -> list[str]:
    """A sentence for each required environment that did not run and pass."""
    environments = result.get("testenvs", {})
    found = []
    for name in required:
        entry = environments.get(name)
        if entry is None:
            found.append(f"{name}: is not in the result file, so it never started")
        elif entry.get("result", {}).get("skipped") or entry.get("skipped"):
            found.append(f"{name}: was skipped")
        elif not entry.get("result", {}).get("success"):
            found.append(f"{name}: failed")
        elif not entry.get("test"):
            found.append(f"{name}: ran no command")
    return found


def main(arguments: list[str]) -> int:
    result = json.loads(Path(arguments[0]).read_text("utf-8"))
    required = arguments[1:]
    for name in required:
        entry = result.get("testenvs", {}).get(name, {})
        seconds = entry.get("result", {}).get("duration")
        print(
            f"{name:<14}{'ok' if entry.get('result', {}).get('success') else 'NOT OK':<8}{seconds or 0:>8.1f} s"
        )
    wrong = complaints(result, required)
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
