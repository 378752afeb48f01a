"""The first five minutes: the script that wrote the page is run again, on a tiny model, and the page is what it types."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tiny import TINY

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "tools" / "first_minutes.py"))
PAGE = ROOT / "docs" / "first-minutes.md"


def test_the_page_shows_what_the_script_types_and_nothing_else():
    typed = re.findall(r"^\$ (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert typed == [command for _, command in SCRIPT["TYPED"]]


def test_the_page_is_not_older_than_the_commands_and_the_settings():
    from ambidex import config, parsers

    alone, planned = (PAGE.read_text("utf-8").split(f"$ {typed}\n")[1].split("```")[0]
                      for typed in ("ambidex", "ambidex train --dry-run --steps 100"))  # fmt: skip
    assert re.findall(r"^  ambidex (\w+) {2,}", alone.split("next:")[0], re.MULTILINE) == list(
        parsers.COMMANDS
    )
    settings = planned.split("settings, and where each came from\n")[1]
    assert re.findall(r"^  (\w+)", settings, re.MULTILINE) == list(config.fields())
    shown = dict(re.findall(r"^  (\w+) +(\S+) +preset nano$", settings, re.MULTILINE))
    nano = config.defaults()
    assert shown == {name: str(nano[name]) for name in shown}
    assert len(shown) > 10


def test_everything_that_is_typed_works_and_prints_the_same_kind_of_lines(tmp_path, story):
    pytest.importorskip("torch")
    environment = {
        f"AMBIDEX_{name.upper()}": str(value)
        for name, value in TINY.items()
        if name not in ("steps", "device")
    }
    shown = SCRIPT["type_all"](tmp_path, {**environment, "AMBIDEX_DATA": str(story)})
    assert len(shown) == len(SCRIPT["TYPED"])
    page = SCRIPT["page"](shown, 1.0)
    words = re.compile(r"^(device|text|model|done|exported|next) ", re.MULTILINE)
    assert set(words.findall(page)) <= set(words.findall(PAGE.read_text("utf-8")))
    assert "--resume" not in shown[-1][2]  # the run is finished, and the last words say what to do with it
    assert "ambidex sample" in shown[-1][2]
