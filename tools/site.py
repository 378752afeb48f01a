"""What the site does with the pages besides MkDocs: the picture of the rooms, and links that leave `docs/`.

MkDocs calls the functions that begin with ``on_``. A chain of boxes in a Mermaid fence, which GitHub draws by itself,
is drawn here as SVG, so that a page loads no script from elsewhere.
"""

from __future__ import annotations

import html
import re
from typing import Any

FENCE = re.compile(r"^```mermaid\nflowchart TD\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")
_NODE = re.compile(r'(\w+)\["([^"]*)"\]')
_ARROW = re.compile(r"^\s*(\w+)(?:\[[^\]]*\])? --> (\w+)(?:\[[^\]]*\])?\s*$")
_CODE = re.compile(r"<pre\b.*?</pre>|<code>([^<]*-[^<]*)</code>", re.DOTALL)
LONGEST_WORD = 32  # letters that surely fit one line of a phone
WIDTH, GAP, LETTERS = 400, 22, 50  # narrow, so that its words can be read on a phone


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called for each page. A link to a file of the project that is no page becomes the file's name."""
    markdown = OUTSIDE.sub(
        lambda found: found[1] if found[1].startswith("`") else f"{found[1]} (`{found[2]}`)", markdown
    )
    return FENCE.sub(lambda found: drawn(found[1]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Called for each page's HTML. The corner of a table that is empty is no heading, and a flag breaks at no hyphen."""
    content = re.sub(r"<th([^>]*)></th>", r"<td\1></td>", content)
    return _CODE.sub(lambda found: f"<code>{_unbroken(found[1])}</code>" if found[1] else found[0], content)


def on_post_page(output: str, **_: Any) -> str:
    """Called for each page as a whole. The theme's search dialogue has no name that a screen reader could say."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)


def drawn(source: str) -> str:
    """The chain as inline SVG, in the page's own colours. Raises ValueError for anything but a chain."""
    labels = dict(_NODE.findall(source))
    arrows = [
        found.groups() for line in source.splitlines() if line.strip() and (found := _ARROW.match(line))
    ]
    chain = [arrows[0][0], *(below for _, below in arrows)]
    if [above for above, _ in arrows] != chain[:-1] or set(chain) - labels.keys():
        raise ValueError("only a chain of labelled boxes can be drawn: A --> B, then B --> C")
    parts, top = [], 4
    for number, name in enumerate(chain):
        title, _, words = labels[name].partition("<br>")
        heads, lines = _broken(title), _broken(words)
        height = 11 + 19 * (len(heads) + len(lines))
        parts.append(
            f'<rect x="8" y="{top}" width="{WIDTH - 16}" height="{height}" rx="8" fill="none" stroke="currentColor"/>'
        )
        parts += [f'<text x="{WIDTH // 2}" y="{top + 21 + 19 * row}" text-anchor="middle"{bold}>{html.escape(line)}</text>'
                  for row, (line, bold) in enumerate([*((head, ' font-weight="bold"') for head in heads), *((line, "") for line in lines)])]  # fmt: skip
        top += height
        if number + 1 < len(chain):
            middle = WIDTH // 2
            parts.append(
                f'<path d="M{middle} {top}v{GAP - 4}m-5 -7l5 7l5 -7" fill="none" stroke="currentColor"/>'
            )
            top += GAP
    words = "; ".join(labels[name].replace("<br>", ": ") for name in chain)
    return (f'<svg class="rooms" role="img" aria-label="The rooms, from top to bottom: {html.escape(words, quote=True)}" '
            f'viewBox="0 0 {WIDTH} {top + 4}" fill="currentColor" font-size="15" font-family="inherit">{"".join(parts)}</svg>')  # fmt: skip


def _unbroken(code: str) -> str:
    """Code within a sentence, in which a browser would end a line at any hyphen: `--` here, `compile` there."""
    words = (
        f'<span class="word">{word}</span>' if "-" in word and len(word) <= LONGEST_WORD else word
        for word in code.split(" ")
    )
    return " ".join(words)


def _broken(words: str) -> list[str]:
    lines: list[str] = []
    for word in words.split():
        if lines and len(lines[-1]) + len(word) < LETTERS:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
