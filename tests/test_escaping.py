import shlex
from types import SimpleNamespace

import pytest

from ambidex import escaping
from ambidex.errors import Problem
from ambidex.escaping import markdown, one_line, printable, typed


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


def test_a_byte_of_a_name_that_is_no_utf8_is_shown_as_that_byte():
    assert one_line(b"caf\xe9".decode("utf-8", "surrogateescape")) == "caf\\xe9"
    assert one_line("\U000e0001") == "\\U000e0001"


def test_a_command_to_type_is_one_that_this_systems_shell_takes_apart_again(monkeypatch):
    words = ["ambidex", "sample", "my run", 'a"b', "$HOME", "it's"]
    assert shlex.split(typed(words)) == words
    monkeypatch.setattr(escaping, "os", SimpleNamespace(name="nt"))
    assert typed([r"C:\my runs\one"]) == r'"C:\my runs\one"'
