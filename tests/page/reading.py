"""A page as a strict reader sees it: html5lib with errors on, and what no name on it may have become."""

from __future__ import annotations

from typing import Any

import pytest

FORBIDDEN = frozenset(
    {
        "script",
        "iframe",
        "object",
        "embed",
        "img",
        "image",
        "link",
        "base",
        "form",
        "a",
        "foreignObject",
        "use",
    }
)
ADDRESSES = frozenset({"href", "src", "srcset", "xlink:href", "action", "data", "style", "background"})


def parse(text: str) -> Any:
    """The document. Fails on anything that the standard calls a parse error."""
    html5lib = pytest.importorskip("html5lib")
    parser = html5lib.HTMLParser(
        tree=html5lib.getTreeBuilder("etree"), strict=True, namespaceHTMLElements=False
    )
    return parser.parse(text)


def elements(document: Any) -> list[Any]:
    return [one for one in document.iter() if isinstance(one.tag, str)]


def name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def is_harmless(text: str) -> Any:
    """Well-formed, and holds nothing that could load or run something. Returns the document."""
    document = parse(text)
    for element in elements(document):
        assert name(element) not in FORBIDDEN, name(element)
        for attribute in element.attrib:
            plain = str(attribute).rpartition("}")[2]
            assert plain not in ADDRESSES, (name(element), plain)
            assert not plain.startswith("on"), (name(element), plain)
    assert [name(e) for e in elements(document)].count("style") == 1
    ids = [element.get("id") for element in elements(document) if element.get("id")]
    assert len(ids) == len(set(ids))
    return document


def words(document: Any) -> str:
    return " ".join("".join(document.itertext()).split())
