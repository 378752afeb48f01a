"""The built-in corpus: the Python standard library's source and the language reference, as they lie on this
machine.

Several megabytes of real text, nothing to download and nothing copied into the project. It differs between
Python releases and distributions, so its hash goes on the card.
"""

from __future__ import annotations

import importlib
import os
import sysconfig
from pathlib import Path

from ambidex.errors import Exit, Problem, Problems
from ambidex.text.readers import Passage, Source, TextFile

# Tests repeat themselves and hold data for parsers; encodings and html/entities are tables of character
# codes, and _sysconfigdata and config-* tell how this very interpreter was compiled; site-packages is not the
# standard library's.
_LEFT_OUT_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "encodings",
}
_LEFT_OUT_FILES = ("pydoc_data/topics.py", "html/entities.py", "_sysconfigdata", "config-")


def builtin_sources() -> list[Source]:
    """A source for each module and each topic of the language reference.

    Raises Problems (exit 3) on a Python that carries no source, as some embedded ones do.
    """
    library = Path(sysconfig.get_path("stdlib"))
    sources: list[Source] = [*_modules(library), *_topics()]
    if not any(isinstance(source, TextFile) for source in sources):
        raise Problems(
            Problem(
                "this Python carries no source of its standard library, which is the built-in corpus",
                found=f"no .py files under {library}",
                fix="--data PATH, with text of your own",
            ),
            Exit.DATA,
        )
    return sources


def _modules(library: Path) -> list[TextFile]:
    modules = []
    for folder, inside, files in os.walk(library):
        inside[:] = [name for name in inside if name not in _LEFT_OUT_FOLDERS]  # prunes the walk
        for file in files:
            path = Path(folder, file)
            name = path.relative_to(library).as_posix()
            if (
                path.suffix == ".py"
                and not name.startswith(_LEFT_OUT_FILES)
                and (size := path.stat().st_size)
            ):
                modules.append(TextFile(name, path, size))
    return modules


def _topics() -> list[Passage]:
    """What `help("if")` prints: the language reference by topic. Some distributions leave it out."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    return [Passage(f"pydoc_data/topics/{name}", text.encode()) for name, text in topics.items()]
