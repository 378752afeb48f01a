"""The list of bad inputs: what is typed, what lies there, and what must be said. Tests run it; it writes the page.

python tests/bad_inputs.py > docs/bad-input.md
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ambidex import cli

TEXT = "to be or not to be, that is the question\n" * 60
SMALL = [
    "--layers", "1", "--width", "8", "--heads", "1", "--kv-heads", "1", "--feed-forward", "8", "--context", "8",
    "--batch-size", "2", "--steps", "2", "--sample-tokens", "0", "--validation-fraction", "0.1", "--threads", "1",
    "--device", "cpu",
]  # fmt: skip


def nothing() -> None:
    """Only book.txt lies there."""


def written(**files: str | bytes) -> Callable[[], None]:
    """Files in the working folder; ``__`` in a keyword stands for the dot before the suffix."""

    def write() -> None:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            Path(name.replace("__", ".")).write_bytes(data)

    return write


def folder_of_pictures() -> None:
    Path("pictures").mkdir()
    Path("pictures", "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))


def empty_folder() -> None:
    Path("empty").mkdir()


def something_else() -> None:
    Path("photos").mkdir()
    Path("photos", "holiday.txt").write_text("precious")


def a_run() -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main(["train", "--data", "book.txt", *SMALL, "--out", "run"]) == 0


def a_run_with_damage() -> None:
    a_run()
    for weights in Path("run").glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")


def a_run_without_a_readable_card() -> None:
    a_run()
    Path("run", "card.json").write_text('{"config": ')


@dataclass(frozen=True)
class Bad:
    """One bad input. ``said`` are the parts of what must be printed; ``varies``: the rest depends on the machine."""

    name: str
    words: str  # after `ambidex train`; the smallest model and book.txt are added where they are not named
    code: int
    said: tuple[str, ...]
    there: Callable[[], None] = nothing
    environment: Mapping[str, str] = field(default_factory=dict)
    varies: bool = False

    def arguments(self) -> list[str]:
        words = shlex.split(self.words)
        data = [] if "--data" in words else ["--data", "book.txt"]
        given = {word for word in words if word.startswith("--")}
        small = [
            w for flag, value in zip(SMALL[::2], SMALL[1::2]) if flag not in given for w in (flag, value)
        ]
        return ["train", *words, *data, *small]


DATA = [
    Bad("data that is not there", "--data nowhere.txt", 3, ("nowhere.txt is not there", "--data")),
    Bad("two that are not there", "--data one.txt two.txt", 3, ("2 errors", "one.txt is not there", "two.txt is not")),
    Bad("an empty file", "--data void.txt", 3, ("void.txt is no text", "empty"), written(void__txt="")),
    Bad("a file that is no text", "--data noise.txt", 3, ("noise.txt is no text", "binary data"),
        written(noise__txt=bytes(range(256)) * 9)),
    Bad("a file that cannot be read", "--data locked.txt", 3, ("locked.txt cannot be read",), written(locked__txt="x")),
    Bad("too little text", "--data short.txt", 3, ("shorter than one sequence", "at least 9"), written(short__txt="ab")),
    Bad("a context longer than the text", "--context 4000", 3, ("shorter than one sequence", "--context")),
    Bad("too little held out", "--validation-fraction 0.0001", 3, ("held-out", "--validation-fraction")),
    Bad("a folder with nothing in it", "--data empty", 3, ("no text in the folder empty",), empty_folder),
    Bad("a folder without text", "--data pictures", 3, ("no text in the folder pictures", "1 binary"), folder_of_pictures),
    Bad("JSON lines that are none", "--data chat.jsonl", 3, ("3 errors", "chat.jsonl, line 2 is not JSON", "line 3", "line 4"),
        written(chat__jsonl='{"text": "a"}\n{"text": \n[1]\n{"text": 5}\n')),
    Bad("JSON lines of Windows' PowerShell", "--data chat.jsonl", 3, ("chat.jsonl is no UTF-8", "iconv -f UTF-16"),
        written(chat__jsonl='{"text": "a"}\n'.encode("utf-16"))),
    Bad("a number of thousands of digits", "--data chat.jsonl", 3, ("line 1 is not JSON", "thousands of digits"),
        written(chat__jsonl='{"text": "a", "n": ' + "9" * 6000 + "}\n")),
    Bad("a text in UTF-32", "--data wide.txt", 3, ("wide.txt is no text", "iconv -f UTF-32"), written(wide__txt=TEXT.encode("utf-32"))),
    Bad("a field that is not there", "--data chat.jsonl --field txt", 3,
        ("chat.jsonl, line 1 has no field 'txt'", "did you mean 'text'"), written(chat__jsonl='{"text": "a"}\n')),
    Bad("a gzip file that is none", "--data book.txt.gz", 3, ("book.txt.gz is no whole gzip file",),
        written(**{"book__txt__gz": "not gzip"})),
    Bad("a vocabulary larger than the text supports", "--tokenizer bpe --vocabulary-size 5000", 3,
        ("too short for such a BPE vocabulary", "--vocabulary-size ", "or more text")),
    Bad("an empty name, as an empty variable gives it", "--data ''", 3, ("a name in --data is empty",)),
    Bad("an address", "--data https://example.org/book.txt", 3, ("is not there", "nothing is fetched from an address")),
    Bad("names with a comma between them", "--data book.txt,more.txt", 3, ("is not there", "--data book.txt more.txt")),
    Bad("a data set without a name", "--data hf:", 3, ("names no data set", "hf:FOLDER")),
    Bad("no data at all", "--data", 3, ("no data was given", "--data builtin")),
]  # fmt: skip

SETTINGS = [
    Bad("a flag that there is not", "--stepz 5", 2, ("There is no flag --stepz", "did you mean '--steps'")),
    Bad("a flag with a dash that an editor made long", "\u2014seed 5 \u2013keep=2", 2,
        ("2 errors", "There is no flag \u2014seed", "did you mean '--seed'", "none of the keyboard's", "did you mean '--keep'")),
    Bad("a flag in capitals, and one with a single dash", "--SEED 5 -keep 2", 2,
        ("2 errors", "did you mean '--seed'", "did you mean '--keep'")),
    Bad("one word too many", "mine.toml other.toml", 2, ("'other.toml' is one word too many", "--data PATH"),
        written(mine__toml="keep = 2\n", other__toml="")),
    Bad("a key that there is not", "mine.toml", 2, ("There is no setting 'learning_rat'", "did you mean 'learning_rate'"),
        written(mine__toml="learning_rat = 1e-3\n")),
    Bad("a word that is no number", "--seed many", 2, ("--seed", "'many' (flag --seed)", "a whole number")),
    Bad("a flag without its value", "--seed", 2, ("--seed", "nothing (flag --seed)")),
    Bad("a number out of bounds", "--steps -3 --learning-rate inf --seed 1e999", 2, ("3 errors", "1 or more", "10 or less")),
    Bad("a preset that there is not", "--preset nanoo", 2, ("no such preset", "did you mean 'nano'")),
    Bad("heads that do not divide the width", "--width 10 --heads 3", 2, ("The width must divide into heads", "--width 9")),
    Bad("heads of an odd width", "--width 9 --heads 3 --kv-heads 3", 2, ("A head must have an even width", "--width 12")),
    Bad("groups that do not divide the heads", "--width 16 --heads 4 --kv-heads 3", 2, ("groups", "--kv-heads 2")),
    Bad("micro-batches that do not divide the batch", "--batch-size 10 --micro-batch-size 4", 2, ("--micro-batch-size 5",)),
    Bad("a configuration that is not there", "mine.toml", 2, ("configuration file is not there", "ambidex presets nano")),
    Bad("a configuration that is no TOML", "mine.toml", 2, ("is not TOML", "line 1"), written(mine__toml="steps = = 3\n")),
    Bad("a configuration that is no text", "mine.toml", 2, ("cannot be read", "UTF-8"), written(mine__toml=b"\xff\xfe\0")),
    Bad("a configuration that is a folder", "empty", 2, ("cannot be read", "empty"), empty_folder),
    Bad("a configuration without an end", "/dev/zero", 2, ("cannot be read", "no plain file"), varies=True),
    Bad("a configuration that is nested without end", "mine.toml", 2, ("is not TOML", "nested too deeply"),
        written(mine__toml="seed = " + "[" * 20_000)),
    Bad("a configuration that is larger than any", "mine.toml", 2, ("cannot be read", "larger than 1,048,576 bytes"),
        written(mine__toml="#" * 1_048_577)),
    Bad("a number of 5,000 digits in TOML", "mine.toml", 2, ("is not TOML",), written(mine__toml="seed = " + "9" * 5000)),
    Bad("values of the wrong type in TOML", "mine.toml", 2,
        ("4 errors", "There is no setting 'model'", "[1] (mine.toml)", "--tied", "true or false", "--epsilon"),
        written(mine__toml='seed = [1]\ntied = 3\nepsilon = {a = 1}\n[model]\nlayers = 3\n')),
    Bad("nonsense in the environment", "", 2, ("2 errors", "variable AMBIDEX_SEED", "variable AMBIDEX_TIED"),
        environment={"AMBIDEX_SEED": "many", "AMBIDEX_TIED": "maybe"}),
    Bad("wrong in every place at once", "mine.toml --keep 0 --sed 3", 2,
        ("5 errors", "--sed", "mine.toml", "AMBIDEX_CLIP", "flag --keep", "--epsilon"),
        written(mine__toml='stepz = 1\nepsilon = "tiny"\n'), {"AMBIDEX_CLIP": "wide"}),
    Bad("a device that there is not", "--device gpu", 2, ("--device", "auto, cpu, cuda, cuda:N or mps")),
    Bad("a device that this machine has not", "--device cuda:63", 10, ("cuda:63 was asked for", "--device cpu"), varies=True),
]  # fmt: skip

FOLDERS = [
    Bad("--out that is a file", "--out book.txt", 2, ("--out is not a folder", "book.txt")),
    Bad("--out that is a link to nothing", "--out link", 2, ("--out is a link that leads to nothing", "link -> nowhere"),
        lambda: Path("link").symlink_to("nowhere"), varies=True),
    Bad("--out under a file", "--out book.txt/run", 4, ("cannot be written", "book.txt is no folder")),
    Bad("--out where nobody may write", "--out /proc/run", 4, ("cannot be written", "/proc/run"), varies=True),
    Bad("--out with a name too long", f"--out {'n' * 300}", 2, ("--out cannot be the name of a folder", "too long"),
        varies=True),
    Bad("--out that holds something else", "--out photos", 2, ("holds something that is no run", "card.json"), something_else),
    Bad("--out that holds a run", "--out run", 2, ("holds a run already", "ambidex train --out run --resume"), a_run),
    Bad("a run of another configuration", "--out run --resume --layers 2 --seed 5", 2,
        ("2 errors", "--layers 2 (flag --layers)", "--layers 1", "--seed 5 (flag --seed)", "--seed 0"), a_run),
    Bad("a run on another text", "--out run --resume --data other.txt", 2, ("not the one that the run was started with",),
        lambda: (a_run(), written(other__txt=TEXT * 2)())[0]),
    Bad("a run with no good checkpoint", "--out run --resume", 3,
        ("No checkpoint of the run is good", "model.safetensors: sha256 mismatch"), a_run_with_damage),
    Bad("--from-trace that is a file", "--trace --from-trace book.txt", 3, ("There is no run here", "book.txt: no card.json")),
    Bad("a run with a broken card", "--out run --resume", 3, ("card cannot be read",), a_run_without_a_readable_card),
    Bad("runs to go where a file is", "", 2, ("AMBIDEX_RUNS is not a folder",), environment={"AMBIDEX_RUNS": "book.txt"}),
    Bad("a cache that is a file", "", 4, ("token cache", "AMBIDEX_CACHE"), environment={"AMBIDEX_CACHE": "book.txt"},
        varies=True),
]  # fmt: skip

ALL = [*DATA, *SETTINGS, *FOLDERS]


def page() -> str:
    """The list as Markdown, from what is really printed now."""
    lines = [
        "# Bad input, and what is printed",
        "",
        "Each ends in the exit code that stands behind it, without a traceback, and leaves every file as it was.",
        "Written by `python tests/bad_inputs.py`; `tests/test_bad_input.py` runs it all and holds this page against it.",
        "`book.txt` is a text of 2,460 bytes. The flags of a tiny model are left out.",
    ]
    for title, cases in (("Data", DATA), ("Settings", SETTINGS), ("Folders", FOLDERS)):
        lines += ["", f"## {title}"]
        for bad in cases:
            lines += ["", *section(bad, printed(bad)[1])]
    return "\n".join(lines) + "\n"


def section(bad: Bad, printed_text: str) -> list[str]:
    environment = "".join(f"{name}={value} " for name, value in bad.environment.items())
    typed = f"{environment}ambidex train {bad.words}".strip()
    typed = typed if len(typed) < 100 else typed[:90] + "..."
    return [f"### {bad.name[:1].upper()}{bad.name[1:]}: exit {bad.code}", "", "```", f"$ {typed}",
            *printed_text.rstrip("\n").split("\n"), "```"]  # fmt: skip


def printed(bad: Bad) -> tuple[int, str]:
    """Exit code and standard error, run in a folder of its own in this process."""
    here, before = Path.cwd(), dict(os.environ)
    errors = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.chdir(folder)
            os.environ["AMBIDEX_CACHE"] = str(Path(folder, "cache"))
            written(book__txt=TEXT)()
            bad.there()
            os.environ.update(bad.environment)
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(errors),
                unreadable("locked.txt"),
            ):
                code = cli.main(bad.arguments())
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(before)
    return code, errors.getvalue()


@contextlib.contextmanager
def unreadable(name: str) -> object:
    """Whatever opens a file of that name is refused: root may read every file, so a mode would not stop a test's root."""
    real = io.open

    def refusing(file: object, *more: object, **options: object) -> object:
        if isinstance(file, str | os.PathLike) and Path(file).name == name:
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *more, **options)  # type: ignore[call-overload]

    io.open = refusing  # type: ignore[assignment]  # pathlib's own
    try:
        yield
    finally:
        io.open = real


if __name__ == "__main__":
    sys.stdout.write(page())
