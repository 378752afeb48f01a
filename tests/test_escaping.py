import pytest

from ambidex.errors import Problem
from ambidex.escaping import markdown, one_line, printable


@pytest.mark.parametrize("evil", ["\x1b[2J", "\u202e", "\x07", "\x9b1m", "\u200f", "\r"])
def test_what_a_terminal_would_obey_is_shown_as_a_number(evil):
    for shown in (
        printable("a" + evil),
        one_line("a" + evil),
        markdown("a" + evil),
        str(Problem("a", found=evil)),
    ):
        assert evil not in shown


def test_ordinary_text_in_any_language_stays():
    assert printable("naïve 漢字\n\ttab") == "naïve 漢字\n\ttab"


def test_markdown_in_a_name_is_no_markup():
    assert markdown("a|b # c <img> `x`") == "a\\|b \\# c \\<img\\> \\`x\\`"
