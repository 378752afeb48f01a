"""``--data``: what is found, in which order, what is passed over, and a sentence for all that is wrong."""

from __future__ import annotations

import gzip
import io
import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ambidex.errors import Problems
from ambidex.text import Tokens
from ambidex.text.sources import find_sources, spelled

TokensOf = Callable[..., Tokens]
needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="makes links and named pipes")


def text_of(tokens: Tokens) -> bytes:
    return tokens.tokenizer.decode(tokens.train) + tokens.tokenizer.decode(tokens.validation)


def problems_of(*data: Path | str, tokens_of: TokensOf, **settings: Any) -> str:
    """What the user is told; the exit code is always that of unusable data."""
    with pytest.raises(Problems) as raised:
        tokens_of(*data, **settings)
    assert raised.value.exit_code == 3
    return str(raised.value)


def names(folder: Path) -> list[str]:
    return [source.name for source in find_sources([str(folder)], folder).sources]


def test_a_single_file_is_its_own_bytes(tmp_path: Path, tokens_of: TokensOf) -> None:
    text = bytes(range(32, 256)) * 40 + "wörld\r\n".encode()
    (tmp_path / "a.md").write_bytes(b"#" * 1000 + text)
    assert text_of(tokens_of(tmp_path / "a.md")) == b"#" * 1000 + text


def test_a_folder_is_read_in_an_order_that_depends_on_names_alone(tmp_path: Path) -> None:
    paths = [f"{letter}/{number}.txt" for letter in "abc" for number in range(20)]
    for copy in ("one", "two"):
        random.Random(copy).shuffle(paths)
        for path in paths:
            (tmp_path / copy / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / copy / path).write_text(path)
    order = names(tmp_path / "one")
    assert order == names(tmp_path / "two")
    assert sorted(order) == sorted(paths)
    assert {name[0] for name in order[-15:]} == {"a", "b", "c"}  # the tail resembles the whole


def test_documents_are_joined_by_one_nul(tmp_path: Path, tokens_of: TokensOf) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name * 5)
    tokens = tokens_of(tmp_path)
    assert sorted(text_of(tokens).split(b"\0")) == [b"aaaaa", b"bbbbb", b"ccccc"]
    assert tokens.summary.documents == 3
    assert tokens.tokenizer.end_of_document == 0


@needs_posix
def test_what_is_hidden_binary_empty_or_linked_twice_is_counted(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / ".hidden").write_text("text")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("text")
    (tmp_path / "picture").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "program").write_bytes(b"abc\0def")
    (tmp_path / "archive.tar.gz").write_bytes(gzip.compress(b"a.txt" + bytes(500)))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "again.txt").symlink_to("text.txt")
    (tmp_path / "nowhere.txt").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    found = find_sources([str(tmp_path)], tmp_path)
    assert len(found.sources) == 1
    assert found.skipped == {
        "hidden": 2, "binary": 3, "empty": 1, "seen before": 1, "broken links": 1, "not plain files": 1,
    }  # fmt: skip


@needs_posix
def test_circles_of_links_end(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "sub" / "a.txt").write_text("text")
    assert names(tmp_path) == ["sub/a.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such path")
def test_a_folder_deeper_than_the_call_stack_is_walked(tmp_path: Path) -> None:
    deepest = tmp_path
    for _ in range(sys.getrecursionlimit() + 50):
        deepest /= "d"
        deepest.mkdir()
    (deepest / "a.txt").write_text("text")
    assert names(tmp_path) == [(deepest / "a.txt").relative_to(tmp_path).as_posix()]
    (deepest / "a.txt").unlink()
    while deepest != tmp_path:  # pytest's own tidying would not get to the bottom
        deepest.rmdir()
        deepest = deepest.parent


@pytest.mark.parametrize(
    "name", ["with space", "new\nline", "quote'\"", "-", "wörld", "日本", "$(id)", "\x1b[31m"]
)
def test_odd_names_are_read_and_print(name: str, tmp_path: Path, tokens_of: TokensOf) -> None:
    (tmp_path / name).write_text("text " * 20)
    assert text_of(tokens_of(tmp_path / name)) == b"text " * 20
    assert str(tokens_of(tmp_path).summary).isprintable()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such name")
def test_a_name_that_is_no_utf8_is_read_and_prints(tmp_path: Path, tokens_of: TokensOf) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(path)).write_text("text " * 20)
    tokens = tokens_of(os.fsdecode(path))
    assert text_of(tokens) == b"text " * 20
    assert "caf\\xe9.txt" in str(tokens.summary)
    assert spelled(os.fsdecode(path)).endswith("caf\\xe9.txt")


def test_the_same_file_given_twice_counts_once(tmp_path: Path, tokens_of: TokensOf) -> None:
    (tmp_path / "a.txt").write_text("text " * 20)
    tokens = tokens_of(tmp_path / "a.txt", tmp_path / "a.txt", tmp_path)
    assert tokens.summary.documents == 1


def test_standard_input_is_text(tokens_of: TokensOf, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):  # the second time from the cache
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe " * 9)))
        assert text_of(tokens_of("-")) == b"from a pipe " * 9
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"something else")))
    assert text_of(tokens_of("-")) == b"something else"


@pytest.mark.parametrize("given", [b"", b"ab\0c"])
def test_standard_input_without_text_is_a_problem(
    given: bytes, tokens_of: TokensOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert "standard input is no text" in problems_of("-", tokens_of=tokens_of)


@needs_posix
def test_a_named_pipe_is_read_as_standard_input_is(tmp_path: Path, tokens_of: TokensOf) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b"through a pipe " * 9))
    writer.start()
    assert text_of(tokens_of(tmp_path / "pipe")) == b"through a pipe " * 9
    writer.join()


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path, tokens_of: TokensOf) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n")
    said = problems_of(
        *(tmp_path / name for name in ("missing.txt", "empty.txt", "bare", "picture.png")),
        "hf:",
        tokens_of=tokens_of,
    )
    for expected in (
        "5 errors",
        "missing.txt is not there",
        "empty.txt is no text",
        "bare",
        "a PNG image",
        "hf:",
    ):
        assert expected in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"BZh91AY", "bzip2 -d"),
        (b"\xfd7zXZ\x00", "xz -d"),
        (b"PK\x03\x04", "unzip"),
        ("text".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"text", mtime=0), "ends in .gz"),
        (b"abc\0", "a NUL byte at byte 3"),
        (b"\x01\x02\x03\x04text", "4 control characters"),
    ],
)
def test_binary_data_by_name_says_how_it_was_recognised(
    content: bytes, expected: str, tmp_path: Path, tokens_of: TokensOf
) -> None:
    (tmp_path / "data.txt").write_bytes(content)
    assert expected in problems_of(tmp_path / "data.txt", tokens_of=tokens_of)


@pytest.mark.parametrize(
    "content", [b"BZh is how bzip2 begins", b"\x1b[31mred\x1b[0m", "naïve".encode("latin-1")]
)
def test_text_that_looks_odd_is_still_text(content: bytes, tmp_path: Path, tokens_of: TokensOf) -> None:
    (tmp_path / "data.txt").write_bytes(content)
    assert text_of(tokens_of(tmp_path / "data.txt")) == content


def test_a_folder_without_text_says_what_was_in_it(tmp_path: Path, tokens_of: TokensOf) -> None:
    (tmp_path / "in").mkdir()
    assert "nothing in it" in problems_of(tmp_path / "in", tokens_of=tokens_of)
    (tmp_path / "in" / "a").write_bytes(b"\0")
    (tmp_path / "in" / ".b").write_text("text")
    assert "1 binary, 1 hidden" in problems_of(tmp_path / "in", tokens_of=tokens_of)


def test_what_may_not_be_read_is_a_problem_in_a_folder_too(
    open_folder: Path, tokens_of: TokensOf, cache: Path, as_nobody: Callable[[], Any]
) -> None:
    cache.mkdir()
    (open_folder / "good.txt").write_text("text")
    (open_folder / "secret.txt").write_text("text")
    (open_folder / "secret.txt").chmod(0)
    (open_folder / "closed").mkdir()
    (open_folder / "closed").chmod(0)
    with as_nobody():
        for data in ([open_folder], [open_folder / "secret.txt", open_folder / "closed" / "a.txt"]):
            with pytest.raises(Problems) as raised:
                find_sources([str(one) for one in data], open_folder)
            assert raised.value.exit_code == 3
            assert len(raised.value.problems) == 2
            assert str(raised.value).count("Permission denied") == 2
            assert "secret.txt cannot be read" in str(raised.value)


@pytest.mark.parametrize("word", ["a\0b", "/dev/null", "x" * 5000])
def test_what_can_be_no_file_is_a_problem(word: str, tokens_of: TokensOf) -> None:
    assert "error: " in problems_of(word, tokens_of=tokens_of)


def test_no_data_is_a_problem(tokens_of: TokensOf) -> None:
    assert "--data" in problems_of(tokens_of=tokens_of)


def test_the_built_in_corpus_is_megabytes_of_text_in_a_stable_order(tokens_of: TokensOf) -> None:
    tokens = tokens_of("builtin")
    assert tokens.train_bytes + tokens.validation_bytes > 3_000_000
    assert tokens.summary.documents > 300
    found = [source.name for source in find_sources(["builtin"], Path()).sources]
    assert found == [source.name for source in find_sources(["builtin"], Path()).sources]
    assert "argparse.py" in found
    assert not any({"test", "site-packages", "encodings"} & set(name.split("/")) for name in found)
    assert len(found) == len(set(found))
    text = text_of(tokens)
    assert b"import" in text
    assert b'The "if" statement' in text  # of the language reference


def test_a_python_without_source_says_so(
    tmp_path: Path, tokens_of: TokensOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert "carries no source" in problems_of("builtin", tokens_of=tokens_of)


def test_a_standard_input_that_is_closed_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(Problems, match="standard input is closed"):
        find_sources(["-"], tmp_path)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"])
def test_a_file_that_holds_a_byte_order_mark_alone_is_empty(
    mark: bytes, tmp_path: Path, tokens_of: TokensOf
) -> None:
    (tmp_path / "mark.txt").write_bytes(mark)
    said = problems_of(tmp_path / "mark.txt", tokens_of=tokens_of)
    assert "empty but for a byte order mark" in said
    assert said.count("do: ") == 1
    assert "1 empty" in problems_of(tmp_path, tokens_of=tokens_of)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="there is no /proc here")
def test_a_file_of_the_system_that_calls_itself_empty_is_not_said_to_be_empty(tokens_of: TokensOf) -> None:
    said = problems_of(Path("/proc/meminfo"), tokens_of=tokens_of)
    assert "found: empty" not in said
    assert "do: copy it first: cat /proc/meminfo > copy.txt" in said
