"""docs/compare-proof.md, written from the results of `suites.py`, and from earlier ones of another machine.

python tests/compare/proof.py benchmarks/results/2026-11-2{6,2}-compare-results.jsonl.gz > docs/compare-proof.md
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HEAD = Path(__file__).with_name("proof_head.md")
STAGES = ("data", "weights", "forward", "stale", "loss", "backward", "accumulation", "clip", "moments", "update",
          "schedule")  # fmt: skip


def table(head: list[str], rows: Iterable[list[Any]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(map(str, row)) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def grouped(rows: Iterable[Row], *keys: str) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]].append(row)
    return found


def share(some: list[Row], of: list[Row]) -> str:
    return f"{len(some)} of {len(of)}"


def ratio(row: Row) -> float:
    return float(row["first"]["ratio"]) if row["first"] else 0.0


def faults(rows: list[Row]) -> str:
    parts = []
    for (config, group), some in grouped(rows, "config", "group").items():
        real = [r for r in some if r["differs"]]
        found, right = [r for r in real if r["found"]], [r for r in real if r["right"]]
        measured = [r for r in right if 0 < ratio(r) < 1e9]
        weakest = min(measured, key=ratio, default=None)
        words = f"{weakest['case']}: {ratio(weakest):.1f}" if weakest else ""
        parts.append(
            [
                config,
                group,
                len(some) - len(real),
                share(found, real),
                share(right, real),
                f"{len(right) / max(1, len(real)):.1%}",
                words,
            ]
        )
    return table(["configuration", "written", "change no bit", "found", "named right", "", "weakest"], parts)


def by_stage(rows: list[Row]) -> str:
    lines = []
    for stage in STAGES:
        some = [r for r in rows if r["stage"] == stage and r["differs"]]
        if some:
            lines.append([stage, len({r["case"] for r in some}), share([r for r in some if r["found"]], some),
                          share([r for r in some if r["right"]], some)])  # fmt: skip
    return table(["stage", "faults", "found", "named right"], lines)


def exceptions(rows: list[Row]) -> str:
    wrong = [r for r in rows if r["differs"] and not r["right"]]
    lines = [
        [r["config"], r["group"], r["case"], f"{r['stage']} {r['module']}",
         f"{r['first']['stage']} {r['first']['module']} ({r['first']['ratio']:.3g})" if r["first"] else r.get("refused", "the same")]
        for r in wrong
    ]  # fmt: skip
    return table(["configuration", "written", "fault", "is", "called"], lines) if lines else "None."


def silent(rows: list[Row]) -> str:
    lines = [[case, ", ".join(dict.fromkeys(r["config"] for r in some))]
             for case, some in grouped((r for r in rows if not r["differs"]), "case").items()]  # fmt: skip
    return table(["fault", "changes no bit in"], lines) if lines else "None."


def ladder(rows: list[Row]) -> str:
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        kinds[row["case"].partition(" x (1 + ")[0].partition(", the ")[0]].append(row)
    configs = list(grouped(rows, "config"))
    lines = []
    for kind, some in kinds.items():
        cells = []
        for config in configs:
            mine = [r for r in some if r["config"] == config]
            cells.append("; ".join(f"{_size(r)}: {ratio(r):.3g}{'' if r['right'] else ' (misnamed)'}" if r["found"] else f"{_size(r)}: missed"
                                   for r in mine if r["differs"]) or "no bit")  # fmt: skip
        lines.append([kind, *cells])
    return table(["fault", *configs], lines)


def _size(row: Row) -> str:
    return str(
        row["case"].rpartition("(1 + ")[2].rstrip(")")
        if "(1 + " in row["case"]
        else row["case"].rpartition("the ")[2]
    )


def benign(rows: list[Row]) -> str:
    lines = []
    for config, some in grouped(rows, "config").items():
        differing = [r for r in some if r["differs"]]
        worst = max(some, key=lambda r: r["worst"]["ratio"])
        near = sum(r["near"] for r in some)
        lines.append([config, len(grouped(some, "case")), len(grouped(some, "seed")), len(some), len(differing),
                      f"**{sum(r['found'] for r in some)}**", f"{worst['worst']['ratio']:.2f} ({worst['case']}, {worst['worst']['tensor']})",
                      f"{near:,} of {sum(r['judged'] for r in some):,}"])  # fmt: skip
    return table(
        [
            "configuration",
            "legs",
            "seeds",
            "runs",
            "differ in bits",
            "alarms",
            "largest ratio",
            "tensors above 3",
        ],
        lines,
    )


def legs(rows: list[Row]) -> str:
    configs = list(grouped(rows, "config"))
    lines = []
    for case, some in grouped(rows, "case").items():
        by = grouped(some, "config")
        cells = [f"{max(r['worst']['ratio'] for r in by[c]):.2f}" if c in by and any(r["differs"] for r in by[c]) else
                 "equal" if c in by else "" for c in configs]  # fmt: skip
        lines.append([case, *cells])
    return table(["honest variation", *configs], lines)


def rivals(rows: list[Row]) -> str:
    """Ours on the cases of the rivals' configurations, then theirs, each over the cases in which anything differs that it can see."""
    lines = []
    for config, some in grouped((r for r in rows if r["suite"] == "rivals"), "config").items():
        cases = {r["case"] for r in some}
        ours = [r for r in rows if r["config"] == config and r["seed"] == 0 and r["case"] in cases]
        bad = [r for r in ours if r["suite"] == "faults" and r["differs"]]
        good = [r for r in ours if r["suite"] == "benign"]
        lines.append([config, "ambidex compare", share([r for r in bad if r["found"]], bad),
                      share([r for r in bad if r["right"]], bad), share([r for r in good if r["found"]], good)])  # fmt: skip
        bad, good = (
            [r for r in some if r["of"] == "faults" and r["differs"]],
            [r for r in some if r["of"] == "benign"],
        )
        for name in ("loss 1e-3", "loss 5 %"):
            lines.append(
                [
                    config,
                    name,
                    share([r for r in bad if r[name]], bad),
                    "names none",
                    share([r for r in good if r[name]], good),
                ]
            )
        alarms = [r for r in bad if r["assert_close"]]
        lines.append([config, "assert_close", share(alarms, bad), share([r for r in alarms if _named(r, r["assert_close"])], bad),
                      share([r for r in good if r["assert_close"]], good)])  # fmt: skip
    return (
        table(["configuration", "by", "faults found", "named right", "false alarms"], lines)
        if lines
        else "Not run."
    )


def _named(row: Row, called: list[str] | None) -> bool:
    return called is not None and called[0] == row["stage"] and row["module"] in ("", called[1])


def msprobe(rows: list[Row]) -> str:
    """Its own answer is the first row of its table that does not say `pass`."""
    bad, good = [r for r in rows if r["suite"] == "faults"], [r for r in rows if r["suite"] == "benign"]
    alarms = [r for r in bad if r["found"]]
    part = {"forward": ".forward.", "stale": ".forward.", "loss": ".forward.", "backward": ".backward."}
    named = [
        r
        for r in alarms
        if part.get(r["stage"], "\0") in r["called"][0] and r["module"] in ("", *_modules(r["called"][0]))
    ]
    head = ["by", "configuration", "faults found", "named right", "false alarms"]
    row = ["msprobe 26.2, statistics, level mix", rows[0]["config"], share(alarms, bad), share(named, bad),
           share([r for r in good if r["found"]], good)]  # fmt: skip
    words = (
        "msprobe dumps largest, smallest, mean and norm of what modules and functions take and give, forward and backward, and of parameters'\n"
        "gradients; it looks at no optimizer and at no weight. `tests/compare/msprobe_rival.py` trained two steps under it for each case and took the\n"
        "first row of its table that does not say `pass`; a fault is named right where that row is a module's or function's, of the right direction, within the\n"
        "module that is at fault.\n\n"
    )
    return words + table(head, [row])


def _modules(name: str) -> list[str]:
    """The modules that a row such as ``Module.model.layers.0.mlp.FeedForward.forward.0.output.0`` can stand for."""
    parts = name.split(".")
    if parts[0] not in ("Module", "Cell"):
        return []
    inner = parts[
        1 : next(
            (n for n, p in enumerate(parts) if p in ("forward", "backward", "parameters_grad")), len(parts)
        )
        - 1
    ]
    return [".".join(inner)]


def document(rows: list[Row], other: list[Row], before: list[Row]) -> str:
    by, earlier = grouped(rows, "suite"), grouped(before, "suite")
    bad, good = by.get("faults", []), by.get("benign", [])
    filled = {
        "FAULTS": faults(bad), "STAGES": by_stage(bad), "EXCEPTIONS": exceptions(bad), "SILENT": silent(bad),
        "LADDER": ladder(by.get("ladder", [])) if "ladder" in by else "Not run.", "BENIGN": benign(good), "LEGS": legs(good),
        "RIVALS": rivals(rows), "RUNS": f"{len(rows):,}", "MINUTES": f"{sum(r['seconds'] for r in rows) / 60:.0f}",
        "EARLIER FAULTS": faults(earlier.get("faults", [])), "EARLIER LADDER": ladder(earlier.get("ladder", [])),
        "EARLIER BENIGN": benign(earlier.get("benign", [])), "EARLIER LEGS": legs(earlier.get("benign", [])),
        "EARLIER RUNS": f"{len(before):,}",
    }  # fmt: skip
    filled["MSPROBE"] = msprobe(other) if other else "msprobe: not run."
    text = HEAD.read_text("utf-8")
    for name, value in filled.items():
        text = text.replace(f"<!-- {name} -->", value)
    return text


def read(path: Path) -> list[Row]:
    """Rows of a file of JSON lines, packed or not; of a case that was run twice, the last."""
    if not path.exists():
        return []
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    latest = {}
    for line in text.splitlines():
        row = json.loads(line)
        latest[row["suite"], row["config"], row["seed"], row["case"]] = row
    return list(latest.values())


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    given, earlier = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path("/nowhere")
    sys.stdout.write(
        document(read(given), read(given.with_name(given.name.replace("results", "msprobe"))), read(earlier))
    )
