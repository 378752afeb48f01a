"""Write docs/gpu-does-not-work.md from the doctor's own table, so that page and program cannot drift.

    python tools/gpu_errors.py [--check]

Each entry is a message that programs really print (`tests/device/printed.py`) and what `ambidex doctor explain` says to it.
"""

from __future__ import annotations

import html
import re
import runpy
import sys
from pathlib import Path

from ambidex.device.explain import Explained, explain
from ambidex.device.fingerprints import KNOWN

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gpu-does-not-work.md"
CONTEXT = (
    "Python 3.11.9\n"  # a warning that names a GPU is judged by the rules, which ask which Python it was
)
MORE = {
    "cudnn_arch": "CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH",
    "guard": "train.py:3 tried to start CUDA, but the CPU is forced",
}
HEAD = """# My GPU does not work

Ask first: `ambidex doctor` looks at this machine and prints what to type. Where the error happened elsewhere, paste it:

```
ambidex doctor explain error.txt
```

Or find the message below. The same table answers in both places: this page is written from it by
`python tools/gpu_errors.py`, and a test holds it to the program. While you mend it, training goes on with
`ambidex train --device cpu`.

| the message holds | short |
|---|---|
"""


def page() -> str:
    printed = runpy.run_path(str(ROOT / "tests" / "device" / "printed.py"))
    messages: dict[str, list[str]] = {known.id: [] for known in KNOWN}
    for text, cause in printed["PRINTED"].items():
        messages[cause].append(text)
    messages["not_compatible"] = [printed["WARNING"].strip()]
    for cause, text in MORE.items():
        messages[cause].append(text)
    # What begins with "no kernel image" is what most people come with.
    order = sorted(
        KNOWN, key=lambda known: known.id not in ("no_kernel_image", "not_compatible", "not_compiled")
    )
    rows = [
        f"| [{_cell(messages[known.id][0])}](#{known.id.replace('_', '-')}) | {_short(messages[known.id][0])} |"
        for known in order
    ]
    return (
        HEAD
        + "\n".join(rows)
        + "\n\n"
        + "\n".join(map(_entry, order, (messages[known.id] for known in order)))
    )


def _entry(known: object, texts: list[str]) -> str:
    found = explain(CONTEXT + texts[0])
    name = str(getattr(known, "id"))  # noqa: B009
    shown = "\n".join(texts)
    anchor = name.replace("_", "-")
    return f"## {_title(texts[0])} {{ #{anchor} }}\n\n```text\n{shown}\n```\n\n{_answer(found)}\n"


def _answer(found: Explained) -> str:
    lines = [f"**Cause.** {_prose(found.text)}"]
    if found.why:
        lines.append(f"**Why.** {_prose(found.why)}")
    for number, fix in enumerate(found.fix):
        word = "Do" if number == 0 else "Or"
        if fix.startswith("$ "):
            command, _, why = fix[2:].partition("\n")
            lines.append(f"**{word}.** {_prose(why)}\n\n```text\n{command}\n```")
        else:
            lines.append(f"**{word}.** {_prose(fix)}")
    return "\n\n".join(lines)


def _title(text: str) -> str:
    line = " ".join(text.split())
    line = line if len(line) <= 90 else line[:87].rsplit(" ", 1)[0] + " ..."
    return (
        html.escape(line, quote=False)
        .replace("_", r"\_")
        .replace("*", r"\*")
        .replace("`", "'")
        .replace("[", r"\[")
    )


def _cell(text: str) -> str:
    return _title(text).replace("|", r"\|").replace("]", r"\]")


def _short(text: str) -> str:
    """The first sentence of what the doctor says."""
    said = explain(CONTEXT + text).text
    return _prose(
        re.split(r"(?<=[.:;]) ", said)[-1 if said.startswith("Error ") else 0].rstrip(".;:")
    ).replace("|", r"\|")


def _prose(text: str) -> str:
    """As Markdown: letters that it would obey are words here; what stands in backticks stays."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([_*<\[])", r"\\\1", part) for part in parts)


def main(arguments: list[str]) -> int:
    if "--check" in arguments:
        if PAGE.read_text("utf-8") == page():
            return 0
        print(
            f"error: {PAGE.name} is not what the table says\n  do: python tools/gpu_errors.py",
            file=sys.stderr,
        )
        return 1
    PAGE.write_text(page(), "utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
