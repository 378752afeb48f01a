"""Files from a stranger: a sentence, before memory or time is spent on what they promise. More of it in `siege/`."""

import gzip
import hashlib
import json
import os

import pytest
import torch

from ambidex import checkpoint, cli, tensorfile
from ambidex.checkpoint import Damaged, Wanted
from ambidex.errors import Problems
from ambidex.text.corpus import Corpus
from tiny import train_words

WANTED = Wanted({"w": (2, 3)}, {"exp_avg.w": (2, 3)})


def saved(folder, weights=None):
    weights = torch.ones(2, 3) if weights is None else weights
    return checkpoint.save(
        folder, checkpoint.Checkpoint(3, {"w": weights}, {"exp_avg.w": torch.ones(2, 3)}, {})
    )


def replaced(folder, name, content):
    """With a manifest that agrees: the hash must not be what saves us."""
    (folder / name).write_bytes(content)
    files = {n: (folder / n).read_bytes() for n in (checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE)}
    listed = {n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in files.items()}
    (folder / checkpoint.MANIFEST).write_bytes(checkpoint._render_manifest(listed))


def tensor_file(header: object, numbers: bytes = bytes(24)) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + numbers


@pytest.mark.parametrize("content", [
    b"", b"\xff" * 8, (1 << 40).to_bytes(8, "little") + b"{}", tensor_file([]), tensor_file({"w": 1}),
    tensor_file({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    tensor_file({"w": {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]}}),
    tensor_file({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 12]}}),
    tensor_file({"w": {"dtype": "F32", "shape": [True, 6], "data_offsets": [0, 24]}}),
    tensor_file({"w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}),
    tensor_file({"w": {"dtype": "I32", "shape": [2, 3], "data_offsets": [0, 24]}}),
    tensor_file({"v": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}),
    tensor_file({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}, bytes(48)),
    tensor_file({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}, b"\0\0\xc0\x7f" * 6),
    ("[" * 100_000).encode(), tensor_file(0)[:8] + b"[" * 200_000,
])  # fmt: skip
def test_a_header_that_cannot_be_true_and_numbers_that_are_none_are_refused(tmp_path, content):
    folder = saved(tmp_path)
    replaced(folder, checkpoint.MODEL, content)
    with pytest.raises(Damaged):
        checkpoint.load(folder, WANTED)
    assert checkpoint.newest_good(tmp_path, WANTED).checkpoint is None


@pytest.mark.parametrize("changes", [
    {"step": 4}, {"step": True}, {"step": "3"}, {"format": 2}, {"seconds": -1}, {"seconds": float("nan")},
    {"best": [1.0]}, {"scale": [0.0, 1]}, {"optimizer_steps": -1}, {"optimizer_steps": 1.5}, {"config": []},
    {"late_steps": -1}, {"late_steps": "2"}, {"late_steps": None},
])  # fmt: skip
def test_a_state_with_a_value_that_cannot_be_is_refused(tmp_path, changes):
    folder = saved(tmp_path)
    state = json.loads((folder / checkpoint.STATE).read_bytes())
    replaced(folder, checkpoint.STATE, json.dumps({**state, **changes}).encode())
    with pytest.raises(Damaged):
        checkpoint.load(folder, WANTED)


def test_a_link_and_a_pipe_in_a_checkpoint_are_refused_at_once(tmp_path):
    folder = saved(tmp_path)
    content = (folder / checkpoint.MODEL).read_bytes()
    (tmp_path / "elsewhere").write_bytes(content)
    (folder / checkpoint.MODEL).unlink()
    (folder / checkpoint.MODEL).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Damaged, match="link"):
        checkpoint.load(folder)
    (folder / checkpoint.MODEL).unlink()
    os.mkfifo(folder / checkpoint.MODEL)
    with pytest.raises(Damaged, match="plain"):
        checkpoint.load(folder)


def test_what_is_written_is_what_the_safetensors_library_reads(tmp_path):
    import safetensors.torch

    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.arange(7),
        "scalar": torch.tensor(2.0),
        "none": torch.zeros(0, 3),
    }
    with (tmp_path / "t.safetensors").open("wb") as file:
        size, digest = tensorfile.write(file, tensors)
    content = (tmp_path / "t.safetensors").read_bytes()
    assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())
    for name, tensor in safetensors.torch.load(content).items():
        assert torch.equal(tensor, tensors[name])


def test_a_gzip_bomb_is_refused_and_an_ordinary_file_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("ambidex.text.readers.SMALLEST_BOMB", 1 << 16)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"a" * (1 << 22)))
    with pytest.raises(Problems, match="unpacks to more") as caught:
        for _ in Corpus([str(tmp_path / "bomb.txt.gz")], "text", scratch=tmp_path).text(True):
            pass
    assert caught.value.exit_code == 3
    book = "".join(f"line {n} {n * n}\n" for n in range(20_000)).encode()
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(book))
    assert b"".join(Corpus([str(tmp_path / "book.txt.gz")], "text", scratch=tmp_path).text(True)) == book


def test_a_card_that_asks_for_another_size_than_the_checkpoint_has_is_refused_before_a_model_is_built(
    tmp_path, story, capsys
):
    out = tmp_path / "run"
    assert cli.main(train_words(story, out, steps=2)) == 0
    card = json.loads((out / "card.json").read_text())
    card["config"].update(width=1 << 18, feed_forward=1 << 20, layers=1000, steps=9)  # terabytes
    (out / "card.json").write_text(json.dumps(card))
    for words in (["train", "--resume", "--out", str(out)], ["sample", str(out)], ["checkpoints", str(out)]):
        assert cli.main(words) == 3
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["card.json", "tokenizer.json"])
def test_a_pipe_where_a_small_file_should_be_does_not_make_us_wait(tmp_path, story, name):
    out = tmp_path / "run"
    assert cli.main(train_words(story, out, steps=2)) == 0
    (out / name).unlink()
    os.mkfifo(out / name)
    assert cli.main(["sample", str(out)]) == 3


def test_a_name_full_of_control_characters_reaches_no_terminal(tmp_path, story, capsys):
    out = tmp_path / "\x1b[31mrun\u202e"
    assert cli.main(train_words(story, out, steps=2)) == 0
    said = capsys.readouterr()
    assert "\x1b[31m" not in said.out + said.err
    assert "\u202e" not in said.out + said.err
    assert "\x1b" not in (out / "summary.md").read_text()


@pytest.mark.parametrize(
    "changes", [{"seconds": 10**400}, {"best": [-(10**400), 3]}, {"scale": [10**400, 1]}]
)
def test_a_number_in_a_state_beyond_any_float_is_refused(tmp_path, changes):
    folder = saved(tmp_path)
    state = json.loads((folder / checkpoint.STATE).read_bytes())
    replaced(folder, checkpoint.STATE, json.dumps({**state, **changes}).encode())
    with pytest.raises(Damaged):
        checkpoint.load(folder, WANTED)
