"""The exports in the programs they are for: `transformers`, the `gguf` reader, llama.cpp. `tox run -e export`."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ambidex import trained
from ambidex.export.command import export
from ambidex.runs import Run
from ambidex.text import load_tokenizer
from docs_commands import cannot_run, documented
from exported import KINDS, LINES


def _needs(package: str, why: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"{package} is not installed: {why}")


TRANSFORMERS = _needs("transformers", "tox run -e export brings it")
GGUF = _needs("gguf", "tox run -e export brings it")
LLAMA = _needs("llama_cpp", "pip install llama-cpp-python, which compiles llama.cpp")


@pytest.fixture(scope="module")
def exports(trained_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a run's export, made once."""
    made: dict[tuple[str, str], Path] = {}

    def folder(kind: str, form: str) -> Path:
        if (kind, form) not in made:
            made[kind, form] = export(trained_runs[kind], form, tmp_path_factory.mktemp("export") / kind)
        return made[kind, form]

    return folder


def prompts(kind: str, text: Path, context: int, count: int) -> list[list[int]]:
    """Beginnings of the text at many places, of 1 token up to the whole context."""
    tokens = load_tokenizer(Path(kind) / "tokenizer.json").encode(text.read_bytes()).tolist()
    starts = np.linspace(0, len(tokens) - context - 1, count).astype(int)
    return [tokens[start : start + 1 + number % context] for number, start in enumerate(starts)]


def ours(run: Path, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        model = trained.newest(Run(run)).model
        return model.logits(model(torch.tensor([tokens])))[0]  # (T, V)


@TRANSFORMERS
@pytest.mark.parametrize("kind", KINDS)
def test_logits_in_transformers_are_ours_on_100_prompts(exports, trained_runs, text, kind, record_property):
    from transformers import AutoModelForCausalLM

    theirs, loading = AutoModelForCausalLM.from_pretrained(exports(kind, "hf"), output_loading_info=True)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert next(theirs.parameters()).dtype == torch.float32
    model = trained.newest(Run(trained_runs[kind])).model
    largest, seen = 0.0, 0
    with torch.no_grad():
        for tokens in prompts(str(trained_runs[kind]), text, model.shape.context, 100):
            batch = torch.tensor([tokens])
            largest = max(largest, float((theirs(batch).logits - model.logits(model(batch))).abs().max()))
            seen += 1
    print(f"{kind}: largest difference of a logit over {seen} prompts: {largest:.2e}")
    assert seen == 100
    assert largest < 1e-4


@TRANSFORMERS
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_in_transformers_gives_our_ids_and_every_text_back(exports, trained_runs, text, kind):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(exports(kind, "hf"))
    mine = load_tokenizer(trained_runs[kind] / "tokenizer.json")
    whole = text.read_bytes().decode()
    texts = [whole, whole[7:60], "", "  line  1 ,  is \r\n\t"]
    if kind != "char":
        texts += [LINES * 2, "e\u0301 ﬁ Å", "Ω≈ç√ 🦊 don ' t", "a\0b"]
    for sentence in texts:
        ids = theirs(sentence)["input_ids"]
        assert ids == mine.encode(sentence).tolist()
        assert theirs.decode(ids) == sentence


@TRANSFORMERS
@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_the_tokenizer_round_trips_the_built_in_corpus(trained_runs, exports, kind):
    from transformers import AutoTokenizer

    from ambidex.text.builtin import builtin_sources

    theirs = AutoTokenizer.from_pretrained(exports(kind, "hf"))
    read = 0
    for source in builtin_sources()[::20]:
        raw = b"".join(source.content())
        sentence = raw.decode("utf-8", "replace")
        assert theirs.decode(theirs(sentence)["input_ids"]) == sentence
        read += len(raw)
    assert read > 100_000


@TRANSFORMERS
def test_the_likeliest_text_is_the_one_that_we_write(exports, trained_runs):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ambidex.engine import Device
    from ambidex.sampling import generate

    folder = exports("byte", "hf")
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = trained.newest(Run(trained_runs["byte"]))
    begun = found.tokenizer.encode("line").tolist()
    mine = list(generate(found.model, Device("cpu", "fp32", 1), begun, 10, temperature=0))
    batch = tokenizer("line", return_tensors="pt", return_token_type_ids=False)
    out = theirs.generate(**batch, max_new_tokens=10, do_sample=False)[0].tolist()
    assert out[len(begun) :] == mine[: len(out) - len(begun)]


@GGUF
@pytest.mark.parametrize("kind", KINDS)
def test_gguf_holds_every_weight_and_what_llama_reads(exports, trained_runs, kind):
    from gguf import GGUFReader

    reader = GGUFReader(exports(kind, "gguf") / "model.gguf")
    found = trained.newest(Run(trained_runs[kind]))
    shape, fields = found.model.shape, {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "qwen3"
    assert fields["qwen3.attention.head_count_kv"] == shape.kv_heads
    assert fields["qwen3.attention.key_length"] == shape.head_width
    assert fields["qwen3.rope.freq_base"] == shape.rope_base
    assert fields["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(shape.norm_epsilon, rel=1e-6)
    assert fields["qwen3.context_length"] == shape.context
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert len(fields["tokenizer.ggml.tokens"]) == shape.vocabulary_size
    weights = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    ours = dict(found.model.named_parameters())
    assert len(weights) == len(ours)
    assert ("output.weight" in weights) == (not shape.tied)
    assert np.array_equal(weights["token_embd.weight"], ours["model.embed_tokens.weight"].detach().numpy())
    name = "model.layers.1.self_attn.k_proj.weight"
    assert np.array_equal(weights["blk.1.attn_k.weight"], ours[name].detach().numpy())


@LLAMA
@pytest.mark.parametrize("kind", KINDS)
def test_llama_gives_our_tokens_and_our_likeliest_next_one(exports, trained_runs, text, kind):
    from llama_cpp import Llama

    found = trained.newest(Run(trained_runs[kind]))
    context = found.model.shape.context
    theirs = Llama(str(exports(kind, "gguf") / "model.gguf"), n_ctx=context, logits_all=True, verbose=False)
    for line in text.read_bytes().decode().splitlines(keepends=True)[:50]:
        assert (
            theirs.tokenize(line.encode(), add_bos=False, special=False)
            == found.tokenizer.encode(line).tolist()
        )
    same = largest = 0.0
    for tokens in prompts(str(trained_runs[kind]), text, context, 100):
        theirs.reset()
        theirs.eval(tokens)
        logits = theirs.scores[len(tokens) - 1]
        expected = ours(trained_runs[kind], tokens)[-1].numpy()
        largest = max(largest, float(np.abs(logits - expected).max()))
        same += int(logits.argmax()) == int(expected.argmax())
    print(f"{kind}: the same likeliest token on {same:.0f} of 100 prompts; largest difference {largest:.2e}")
    assert same == 100


@GGUF
def test_without_the_package_the_command_says_what_to_type(trained_runs, tmp_path, monkeypatch, capsys):
    import sys

    from ambidex import cli

    monkeypatch.setitem(sys.modules, "gguf", None)
    words = ["export", str(trained_runs["byte"]), "--format", "gguf", "--to", str(tmp_path / "out")]
    assert cli.main(words) == 2
    assert 'pip install "ambidex[gguf]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@TRANSFORMERS
@GGUF
def test_what_the_page_says_to_type_works_as_it_stands_there(trained_runs, tmp_path, monkeypatch, capsys):
    from ambidex import cli

    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_runs["byte"], "first")
    export(Path("first"), "hf", Path("first-model"))  # the docs' own test types this line
    line = documented("ambidex export first --format gguf --to first-gguf")
    assert cli.main(shlex.split(line)[1:]) == 0
    capsys.readouterr()
    program = documented("from transformers import AutoModelForCausalLM, AutoTokenizer")
    exec(compile(program, "docs/export.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("def ")
    for line in (
        cannot_run('llama-completion -m first-gguf/model.gguf --no-conversation -p "def " -n 200'),
        cannot_run("cd first-gguf && ollama create first -f Modelfile && ollama run first"),
    ):
        files = [word for word in shlex.split(line) if word.endswith((".gguf", "Modelfile"))]
        assert files
        assert all((Path("first-gguf") / Path(file).name).is_file() for file in files)
