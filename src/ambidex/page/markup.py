"""Elements instead of strings: a name from a file that somebody sent can become text on a page and nothing else.

The tree and its escaping are the standard library's (xml.etree, method "html"). What no reader should meet, control
characters, lone surrogates and characters that turn the direction of writing, is shown as its number.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import printable
from ambidex.files import replace_synced

Element = ElementTree.Element
Child = Element | str | None
LONGEST = 300  # characters of one name or value
STYLE = Path(__file__).with_name("page.css")


def el(tag: str, *children: Child | Iterable[Child], **attributes: object) -> Element:
    """An element. ``class_="a"`` is the attribute class, ``aria_label`` is aria-label; None leaves one out."""
    made = Element(tag, {
        name.rstrip("_").replace("_", "-"): printable(str(value)) for name, value in attributes.items() if value is not None
    })  # fmt: skip
    for child in children:
        for one in [child] if child is None or isinstance(child, str | Element) else child:
            _append(made, one)
    return made


def _append(parent: Element, child: Child) -> None:
    if isinstance(child, Element):
        parent.append(child)
    elif child is not None:
        text = printable(child)
        if len(parent):
            parent[-1].tail = (parent[-1].tail or "") + text
        else:
            parent.text = (parent.text or "") + text


def short(value: object, longest: int = LONGEST) -> str:
    """Any value of a card as one line of text, cut where it is longer than a line should be."""
    if isinstance(value, list | tuple):
        value = ", ".join(short(one, 60) for one in value[:20]) + (", ..." if len(value) > 20 else "")
    text = "none" if value is None else "yes" if value is True else "no" if value is False else str(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def preformatted(text: str, label: str) -> Element:
    """Text as it is, that may be scrolled sideways with the keyboard too. HTML drops the first line's end."""
    return el("pre", "\n" + text, tabindex=0, role="group", aria_label=label)


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Child]], *, numbers: Sequence[int] = (),
          first_is_name: bool = True) -> Element:  # fmt: skip
    """A table with a caption, in a box that scrolls where the window is narrower. ``numbers``: columns of figures."""
    body = el("tbody")
    for row in rows:
        cells = [el("th" if n == 0 and first_is_name else "td", breakable(cell) if n == 0 else cell, scope="row" if n == 0 and first_is_name else None,
                    class_="number" if n in numbers else None)
                 for n, cell in enumerate(row)]  # fmt: skip
        body.append(el("tr", cells))
    top = el("tr", [el("th", name, scope="col", class_="number" if n in numbers else None)
                    for n, name in enumerate(head)])  # fmt: skip
    made = el("table", el("caption", caption), el("thead", top), body)
    return el("div", made, class_="scroll", tabindex=0, role="group", aria_label=caption)


def breakable(name: Child) -> Iterable[Child]:
    """A name that a narrow window may break behind a point or an underscore, before it pushes the last column out."""
    parts = re.split(r"(?<=[._])(?=\w)", name) if isinstance(name, str) else [name]
    for number, part in enumerate(parts):
        if number:
            yield el("wbr")
        yield part


def folded(summary: str, *children: Child) -> Element:
    return el("details", el("summary", summary), *children)


def section(
    title: str, *children: Child | Iterable[Child], name: str, level: int = 2, class_: str | None = None
) -> Element:
    """A part of a page with its heading. ``name`` is ours and unique on the page."""
    heading = el(f"h{level}", title, id=name)
    return el("section", heading, *children, aria_labelledby=name, class_=class_)


def document(title: str, header: Iterable[Child], main: Iterable[Child], footer: str) -> str:
    """The whole file. The browser is told to load nothing and to run nothing: only this very style is allowed."""
    style = STYLE.read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = el(
        "head", el("meta", charset="utf-8"), el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"), el("meta", name="referrer", content="no-referrer"),
        el("title", title),
    )  # fmt: skip
    sheet = Element("style")
    sheet.text = style
    head.append(sheet)
    body = el("body", el("header", header), el("main", main), el("footer", el("p", footer)))
    text = ElementTree.tostring(el("html", head, body, lang="en"), encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n"


def write(path: Path, text: str) -> None:
    """Put the page in place at once. Raises Problems (exit 4) where it cannot be written.

    Through a link, and to what is no plain file (/dev/stdout, a pipe), it is written as it comes: a new file put into
    their place would take them away.
    """
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(text.encode("utf-8"))
        else:
            replace_synced(path, text.encode("utf-8"))
    except (OSError, ValueError) as error:
        said = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise Problems(
            Problem("The page cannot be written.", found=f"{path}: {said}",
                    wanted="the name of a file in a folder that this user may write to", fix="--html with another file"),
            Exit.CANNOT_WRITE,
        ) from None  # fmt: skip
