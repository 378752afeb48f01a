import warnings
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from ambidex import cli
from ambidex.api import Run
from ambidex.engine import Device
from ambidex.errors import Problems
from ambidex.model import LanguageModel, Shape, initialise
from ambidex.randomness import stream, uniform
from ambidex.sampling import _pick, generate
from tiny import ambidex, train_words

SHAPE = Shape(vocabulary_size=23, layers=1, width=16, heads=2, kv_heads=1, feed_forward=24, context=8)


@pytest.fixture(scope="module", params=[1, 4], ids=["tokens", "groups of four"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    model = LanguageModel(replace(SHAPE, ngrams=request.param, ngram_rows=97))
    initialise(model, 0)
    return model


@pytest.fixture(scope="module")
def device() -> Device:
    return Device("cpu", "fp32", 1)


def test_the_likeliest_token_is_that_of_reading_everything_again(model, device):
    prompt = [1, 2, 3]
    text = prompt + list(generate(model, device, prompt, 5, temperature=0))
    for end in range(3, 8):
        with torch.no_grad():
            logits = model.logits(model(torch.tensor([text[:end]])))[0, -1]
        assert text[end] == int(logits.argmax())


def test_the_same_seed_gives_the_same_text_and_another_another(model, device):
    texts = [list(generate(model, device, [1], 30, seed=seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_text_goes_on_beyond_the_context(model, device):
    assert len(list(generate(model, device, [1, 2, 3], 40))) == 40


def test_tokens_come_as_often_as_their_probability_says():
    logits = np.log(np.array([0.5, 0.3, 0.2]))
    chances = (np.arange(1000) + 0.5) / 1000
    counts = np.bincount([_pick(logits, c, 1.0, 0) for c in chances], minlength=3)
    assert list(counts) == [500, 300, 200]
    assert {_pick(logits, c, 1.0, 2) for c in chances} == {0, 1}
    assert {_pick(logits, c, 0.0, 0) for c in chances} == {0}


def test_sample_streams_text_of_a_run_and_says_what_is_wrong(tmp_path, story, capsys):
    run = tmp_path / "run"
    assert cli.main(train_words(story, run, steps=3)) == 0
    capsys.readouterr()
    assert cli.main(["sample", str(run), "--prompt", "line ", "--tokens", "20"]) == 0
    assert capsys.readouterr().out.startswith("line ")
    for words in (["--tokens", "-1"], ["--temperature", "-1"], ["--tokens", "x"]):
        assert cli.main(["sample", str(run), *words]) == 2
    assert cli.main(["sample", str(tmp_path / "none")]) == 3
    for path in (run / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(b"")
    assert cli.main(["sample", str(run)]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_a_sample_into_a_closed_pipe_ends_quietly(tmp_path, story):
    run = tmp_path / "run"
    assert ambidex(*train_words(story, run, steps=1)).returncode == 0
    import subprocess
    import sys

    shell = f'"{sys.executable}" -m ambidex sample "{run}" --tokens 60 | head -c 1'
    result = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=120, check=False)
    assert b"Traceback" not in result.stderr


def test_a_prompt_that_the_vocabulary_cannot_spell_is_refused_before_the_first_step(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("AMBIDEX_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("one line without an end " * 400)
    words = train_words(text, tmp_path / "run", tokenizer="char", prompt="\N{SNOWMAN}")
    assert cli.main(words) == 3
    said = capsys.readouterr().err
    assert "do: give another --prompt" in said
    assert not (tmp_path / "run").exists()


def test_a_model_that_never_saw_a_new_line_begins_with_something_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AMBIDEX_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("one line without an end " * 400)
    assert cli.main(train_words(text, tmp_path / "run", tokenizer="char", steps=3)) == 0
    capsys.readouterr()
    assert cli.main(["sample", str(tmp_path / "run"), "--tokens", "5"]) == 0
    assert len(capsys.readouterr().out.strip("\n")) == 5
    assert cli.main(["sample", str(tmp_path / "run"), "--tokens", "5", "--prompt", "a\n"]) == 3
    assert r"found: '\n'" in capsys.readouterr().err


@pytest.mark.parametrize("at_once", [1, 7, 4096])
def test_numbers_drawn_one_by_one_are_those_drawn_together(at_once):
    assert list(islice(stream(3, "sample", at_once), 50)) == uniform(3, "sample", 50).tolist()


def test_a_text_without_an_end_takes_no_memory_for_it(model, device):
    assert len(list(islice(generate(model, device, [1], 10**18), 3))) == 3


def test_a_temperature_next_to_zero_takes_the_likeliest_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _pick(np.array([0.0, 5.0, 1.0]), 0.99, 1e-320, 0) == 1


@pytest.mark.parametrize("wrong", [{"tokens": 2.5}, {"tokens": "5"}, {"seed": 1.5}, {"temperature": float("inf")},
                                   {"prompt": None}, {"tokens": True}, {"top_k": -1}])  # fmt: skip
def test_what_no_sample_can_have_is_said_before_a_run_is_read(wrong):
    with pytest.raises(Problems, match="has a value that it cannot have"):
        Run("nowhere").sample(**wrong)
