"""What an export writes, where, and what it refuses. Needs neither `transformers` nor `gguf`."""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import safetensors.torch
from tokenizers import Tokenizer

import ambidex
from ambidex import cli
from ambidex.checkpoint import newest_good
from ambidex.errors import Exit
from ambidex.export import command
from ambidex.export.vocabulary import huggingface_json, llama
from ambidex.text import load_tokenizer
from ambidex.text.bpe import byte_alphabet
from exported import KINDS, LINES
from tiny import TINY


def typed(*words: object) -> int:
    return cli.main(["export", *map(str, words)])


@pytest.fixture
def run(trained_runs: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_runs["byte"], tmp_path / "my-run"))


def test_the_weights_are_the_newest_checkpoints_bit_for_bit(trained_runs, tmp_path):
    for kind, path in trained_runs.items():
        assert typed(path, "--to", tmp_path / kind) == 0
        exported = safetensors.torch.load_file(tmp_path / kind / "model.safetensors")
        saved = newest_good(path / "checkpoints").checkpoint
        assert exported.keys() == saved.model.keys()
        assert all(exported[name].equal(weight) for name, weight in saved.model.items())


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(run, tmp_path, capsys):
    weights = run / "checkpoints" / "step-000012" / "model.safetensors"
    weights.write_bytes(bytes(byte ^ 1 for byte in weights.read_bytes()[:1]) + weights.read_bytes()[1:])
    assert typed(run, "--to", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert "skipped step-000012: model.safetensors: sha256 mismatch" in shown.err
    assert "step 9 of" in shown.out
    assert json.loads((tmp_path / "out" / "export.json").read_bytes())["step"] == 9


def test_a_run_without_a_good_checkpoint_is_an_error_and_leaves_nothing(run, tmp_path):
    shutil.rmtree(run / "checkpoints")
    assert typed(run, "--to", tmp_path / "out") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-run"]


def test_a_place_that_cannot_be_written_is_exit_4_and_names_the_flag(run, tmp_path, monkeypatch, capsys):
    def refused(*words: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ambidex.export.command.fill", refused)
    assert typed(run, "--to", tmp_path / "out") == 4
    said = capsys.readouterr().err
    assert "The export cannot be written." in said
    assert "--to with another folder" in said


@pytest.mark.parametrize("to", ["", " ", ".", ".."])
def test_the_folder_that_one_stands_in_is_not_replaced(run, tmp_path, monkeypatch, capsys, to):
    (tmp_path / "outer" / "empty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "outer" / "empty")
    assert typed(run, "--to", to) == 2
    assert "do: --to model" in capsys.readouterr().err
    assert list((tmp_path / "outer").rglob("*")) == [tmp_path / "outer" / "empty"]


def test_an_untouched_export_is_replaced_and_anything_else_is_left_alone(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert typed(run, "--to", out) == 0
    assert typed(run, "--to", out) == 0
    (out / "notes.txt").write_text("mine")
    assert typed(run, "--to", out) == 2
    assert "notes.txt" in capsys.readouterr().err
    (out / "notes.txt").unlink()
    (out / "README.md").write_text("mine")
    assert typed(run, "--to", out) == 2
    assert (out / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"format": "hf", "files": 3}', '{"format": "gguf", "files": {}}']
)
def test_a_folder_that_only_looks_like_an_export_is_left_alone(run, tmp_path, manifest):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text(manifest)
    assert typed(run, "--to", tmp_path / "out") == 2
    assert (tmp_path / "out" / "export.json").read_text() == manifest


def test_a_run_is_not_taken_for_a_place_to_export_to(run):
    assert typed(run, "--to", run) == 2
    assert (run / "card.json").exists()


def test_an_empty_folder_is_a_place(run, tmp_path):
    (tmp_path / "out").mkdir()
    assert typed(run, "--to", tmp_path / "out") == 0
    assert (tmp_path / "out" / "config.json").exists()


def test_what_is_wrong_is_said_at_once(run, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert typed(run, "--format", "onnx", "--to", tmp_path / "file") == 2
    said = capsys.readouterr().err
    assert "2 errors" in said
    assert "hf or gguf" in said
    assert "--to is not a folder" in said


def test_a_failure_on_the_way_leaves_the_earlier_export_and_nothing_else(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert typed(run, "--to", out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command, "write_synced", full)
    assert typed(run, "--to", out) == 4
    assert "No space left" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-run", "out"]


def test_the_run_is_only_read(run, tmp_path):
    def state() -> dict[str, tuple[bytes, int]]:
        return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()}

    before = state()
    assert typed(run, "--to", tmp_path / "out") == 0
    assert state() == before


def test_the_settings_beside_an_export_train_the_same_model_again(run, text, tmp_path):
    assert typed(run, "--to", tmp_path / "out") == 0
    settings = tmp_path / "out" / "training.toml"
    assert tomllib.loads(settings.read_text("utf-8"))["data"] == ["lines.txt"]
    words = ["train", str(settings), "--data", str(text), "--out", str(tmp_path / "again"), "--threads", "1"]
    assert cli.main([*words, "--device", "cpu"]) == 0
    again = newest_good(tmp_path / "again" / "checkpoints").checkpoint.model
    exported = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert all(exported[name].equal(weight) for name, weight in again.items())


def test_the_model_card_tells_no_path_of_this_machine_and_shows_the_curve(run, text, tmp_path):
    assert typed(run, "--to", tmp_path / "out") == 0
    for file in ("README.md", "training.toml", "export.json"):
        assert str(tmp_path) not in (tmp_path / "out" / file).read_text("utf-8")
        assert str(text.parent) not in (tmp_path / "out" / file).read_text("utf-8")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "(loss.png)" in card
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "card.json").read_bytes())["data"]["hash"] in card


def test_a_name_that_markdown_would_obey_is_written_as_words(run, tmp_path):
    odd = run.rename(tmp_path / "a | <b> `c`")
    assert typed(odd, "--to", tmp_path / "out") == 0
    assert "# a _ _b_ _c_" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_the_commands_beside_an_export_can_be_typed_whatever_the_names(text, tmp_path):
    """A name with a space, quotes in the folder's name, a prompt that JSON would spell as two halves."""
    book = shutil.copy(text, tmp_path / "my book.txt")
    run = ambidex.train(
        **{**TINY, "steps": 2, "prompt": "line \U0001f98a \x7f"}, data=[str(book)], out=str(tmp_path / "run")
    )
    assert typed(run.path, "--to", tmp_path / 'a "b" c') == 0
    settings = tomllib.loads((tmp_path / 'a "b" c' / "training.toml").read_text("utf-8"))
    assert settings["prompt"] == "line \U0001f98a \x7f"
    card = (tmp_path / 'a "b" c' / "README.md").read_text("utf-8")
    command = next(line for line in card.splitlines() if line.startswith("ambidex train"))
    assert shlex.split(command)[4] == "my book.txt"
    folder = next(line for line in card.splitlines() if line.startswith("folder = "))
    assert ast.literal_eval(folder.removeprefix("folder = ").split("  #")[0]) == 'a "b" c'


@pytest.mark.parametrize("cpu", [[1], {"isa": 3}, "x", None])
def test_a_card_with_a_cpu_that_is_none_still_exports(run, tmp_path, cpu):
    card = json.loads((run / "card.json").read_bytes())
    (run / "card.json").write_text(json.dumps({**card, "cpu": cpu}))
    assert typed(run, "--to", tmp_path / "out") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such name")
def test_a_run_whose_name_is_no_utf8_is_exported(run, tmp_path):
    odd = run.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert typed(odd, "--to", tmp_path / "out") == 0
    assert "caf_xe9" in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_for_hugging_face_gives_our_ids_and_gives_the_text_back(trained_runs, kind):
    ours = load_tokenizer(trained_runs[kind] / "tokenizer.json")
    theirs = Tokenizer.from_str(huggingface_json(ours))
    sentences = [LINES.format(7, 1), "é", "", "\n\n  s ", LINES.format(3, 2) * 3]
    for sentence in sentences if kind == "char" else [*sentences, "{}\0Ω"]:
        ids = theirs.encode(sentence).ids
        assert ids == ours.encode(sentence).tolist()
        assert theirs.decode(ids, skip_special_tokens=False) == sentence


def test_a_character_that_the_text_did_not_hold_is_an_error_there_too(trained_runs):
    theirs = Tokenizer.from_str(huggingface_json(load_tokenizer(trained_runs["char"] / "tokenizer.json")))
    with pytest.raises(Exception, match="UNK"):
        theirs.encode("Ω")


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_for_llama_stands_for_the_same_bytes(trained_runs, kind):
    ours = load_tokenizer(trained_runs[kind] / "tokenizer.json")
    theirs, alphabet = llama(ours), byte_alphabet()
    assert len(set(theirs.tokens)) == len(theirs.tokens) == ours.vocabulary_size
    for number, token in enumerate(theirs.tokens):
        if number not in theirs.control:
            assert bytes(alphabet[letter] for letter in token) == ours.token_bytes(number)


def test_merges_put_a_character_together_and_never_two(trained_runs):
    theirs = llama(load_tokenizer(trained_runs["char"] / "tokenizer.json"))
    for merge in theirs.merges:
        left, right = merge.split(" ")
        assert any(token.startswith(left + right) for token in theirs.tokens)
        assert len(right) == 1
        assert 0x80 <= byte_alphabet()[right] < 0xC0  # a byte that goes on with a character


def test_a_place_that_can_be_none_is_called_by_the_flag_that_named_it(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for place, word in (
        (tmp_path / "file" / "model", "The export cannot be written"),
        (tmp_path / ("n" * 300), "too long"),
    ):
        assert cli.main(["export", str(tmp_path), "--to", str(place)]) in (
            Exit.USAGE,
            Exit.DATA,
            Exit.CANNOT_WRITE,
        )
        said = capsys.readouterr().err
        assert word in said
        assert "--out" not in said
