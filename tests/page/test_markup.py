"""Whatever a name holds, it becomes text; a page is whole or not there; it says that it may load nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import elements, is_harmless, name, words

from ambidex.errors import Exit, Problems
from ambidex.escaping import printable
from ambidex.page.markup import document, el, folded, preformatted, section, short, table, write

EVIL = st.one_of(
    st.text(),
    st.text(alphabet="<>&\"'`=/!-[]\x00\x1b\u202e\ud800\ufeff; \n\r\tscriptonload"),
    st.sampled_from(
        [
            "</style><script>alert(1)</script>",
            "</title><img src=x onerror=alert(1)>",
            "]]><!--",
            "&lt;b&gt;",
            "<svg onload=x>",
        ]
    ),
)


@settings(deadline=None)  # a page is parsed strictly, and the machine may be busy
@given(EVIL, EVIL, EVIL)
def test_a_name_becomes_text_and_nothing_else(a: str, b: str, c: str) -> None:
    body = section(
        a, table(b, [a, b], [[c, a], [b, c]]), folded(c, el("p", a)), preformatted(b, c), name="one"
    )
    found = is_harmless(document(a, [el("h1", b)], [body], c))
    assert [name(e) for e in elements(found)].count("td") == 2
    assert "".join(next(e for e in elements(found) if name(e) == "pre").itertext()) == printable(b)


@settings(deadline=None)  # a page is parsed strictly, and the machine may be busy
@given(EVIL)
def test_what_a_reader_cannot_see_is_shown_as_its_number(text: str) -> None:
    assert all(c in "\n\t" or c.isprintable() for c in printable(text))


@settings(deadline=None)  # a page is parsed strictly, and the machine may be busy
@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))  # fmt: skip
def test_any_value_of_a_card_is_one_short_line(value: object) -> None:
    assert len(short(value, 50)) <= 50


def test_the_policy_allows_this_style_and_nothing_else() -> None:
    text = document("t", [], [el("p", "x")], "f")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in text
    assert "<" not in style[1]
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_a_page_has_one_title_one_main_and_its_language() -> None:
    found = is_harmless(document("the title", [el("h1", "x")], [el("p", "y")], "f"))
    tags = [name(e) for e in elements(found)]
    assert [tags.count(tag) for tag in ("title", "main", "header", "footer", "h1")] == [1] * 5
    assert found.get("lang") == "en"
    assert "the title" in words(found)


@pytest.mark.parametrize("where", ["no/folder/page.html", "file/page.html", "folder"])
def test_a_page_that_cannot_be_written_is_said_in_words_and_leaves_nothing(
    tmp_path: Path, where: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Problems) as found:
        write(tmp_path / where, "page")
    assert found.value.exit_code == Exit.CANNOT_WRITE
    assert "The page cannot be written" in str(found.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_page_takes_the_place_of_the_old_one_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    write(page, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ambidex.files.os.fsync", full)
    with pytest.raises(Problems):
        write(page, "new")
    assert page.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
