"""Write docs/reference.md from the settings themselves, so that page and program cannot drift.

python tools/reference.py [--check]
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from ambidex import config

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
HEAD = """# Settings

Each setting is at once a flag, a TOML key and an environment variable: `--micro-batch-size` is `micro_batch_size` in
TOML and `AMBIDEX_MICRO_BATCH_SIZE` in the environment. A later source wins: preset, TOML file,
environment, flags. An empty variable counts as unset. "Numeric" settings can change a run's numbers: two runs that
differ in one are not the same run, and a run is only continued with the same ones.

A default with a star is the preset `nano`'s; every preset sets these, as the end of this page shows.

This page is written by `tox run -e reference`; a test holds it to the program.
"""

EXIT_CODES = """## Exit codes

| code | means |
|---|---|
| 0 | done |
| 1 | `compare`: the runs differ |
| 2 | usage or configuration; runs that cannot be compared |
| 3 | input data or checkpoint unusable |
| 4 | cannot write: disk full, permission |
| 5 | loss or gradient not finite |
| 6 | out of memory |
| 7 | the run is in use by another process |
| 8 | a step hung (`--step-timeout`), or under torchrun another process of the run is lost, silent or has other weights; the last checkpoint remains |
| 129, 130, 143 | stopped by a terminal that hung up, Ctrl-C (on Windows Ctrl-Break too) or SIGTERM, after a checkpoint |

`ambidex doctor` has codes of its own (`docs/doctor.md`); `train --device cuda` that cannot have its GPU ends in the
doctor's. Two places are set by variables alone: `AMBIDEX_RUNS`, where runs without `--out` go (`runs`), and
`AMBIDEX_CACHE`, where prepared tokens lie (the user's cache folder). What gcc compiles for this machine lies in the user's own
cache folder in any case, since it is executed; `CC` names another compiler.
"""


def page() -> str:
    groups: dict[str, list[str]] = {}
    defaults = config.defaults()
    preset = tomllib.loads(config.preset_text(defaults["preset"]))
    for name, info in config.fields().items():
        value = defaults[name]
        default = " ".join(value) if isinstance(value, tuple) else value
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else ""
        numeric = "yes" if config.is_numeric(info) else ""
        row = f"| `{config.flag(name)}` | {shown}{'*' * (name in preset)} | {numeric} | {info.description} |"
        groups.setdefault(config.group(info), []).append(row)
    lines = [HEAD]
    for group, rows in groups.items():
        lines += [f"## {group.capitalize()}", "", "| flag | default | numeric | what |", "|---|---|---|---|", *rows, ""]  # fmt: skip
    lines += ["## Presets", ""]
    for name in config.preset_names():
        lines += [f"`{name}`", "", "```toml", config.preset_text(name).rstrip(), "```", ""]
    lines += [EXIT_CODES]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if "--check" in arguments:
        if PAGE.read_text("utf-8") == page():
            return 0
        print(
            "error: docs/reference.md is not what the settings say\n  do: tox run -e reference",
            file=sys.stderr,
        )
        return 1
    PAGE.write_text(page(), "utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
