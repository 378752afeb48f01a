"""README.md of an export: what the model is, how it was trained, how to use it, and how to train it again.

What it says of files is their names only: an export is made to be given away, and paths tell about their owner.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from ambidex.escaping import one_line
from ambidex.rows import Row
from ambidex.runs import PLOT, Run
from ambidex.text.tokenizer import CharTokenizer
from ambidex.trained import Trained

SETTINGS = "training.toml"
_LEFT_OUT = {
    "out",
    "resume",
    "dry_run",
    "from_trace",
    "trace",
    "trace_states",
    "tensorboard",
    "time",
    "device",
    "threads",
}

_USE = {
    "hf": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {quoted}  # this one
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
tokens = tokenizer({quoted_prompt}, return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=200)[0]))
```""",
    "gguf": """```
llama-completion -m model.gguf --no-conversation -p {prompt} -n 200
ollama create my-model -f Modelfile && ollama run my-model
```""",
}
_TOKENS = {
    "hf": {
        "byte": "A token is a byte; every text can be read. No token is added to a text.",
        "char": "A token is a character. A character that the training text did not hold is an error.",
        "bpe": "Tokens are pieces learnt from the text by byte-level BPE; every text can be read. No token is added to a text.",
    },
    "gguf": {
        "byte": "A token is a byte, as a byte-level BPE without merges; every text can be read.",
        "char": "A token is a character, as a byte-level BPE whose merges put each character's bytes together. "
                "llama.cpp leaves out, without a word, a character that the training text did not hold.",
        "bpe": "Tokens are pieces learnt from the text by byte-level BPE; every text can be read.",
    },
}  # fmt: skip


def model_card(trained: Trained, run: Run, kind: str, folder: str, picture: bool) -> str:
    """Markdown with the header that the Hugging Face hub reads. ``folder``: the name of the one that it lies in."""
    name, card = _plain(run.path.resolve().name), trained.card
    curve = f"![Training and validation loss by step]({PLOT})\n\n" if picture else ""
    return f"""---
library_name: {"transformers" if kind == "hf" else "gguf"}
pipeline_tag: text-generation
tags: [ambidex, qwen3]
---

# {name}

A decoder-only transformer in Qwen3's layout, trained from nothing with Ambidex {_plain(card.get("ambidex", "?"))}. It goes on
with a text; it was not trained to answer or to follow instructions.

{_table(_figures(trained, run))}

{curve}## Use

{_USE[kind].format(quoted=_quoted(one_line(folder)), quoted_prompt=_quoted(_prompt(trained)), prompt=shlex.quote(_prompt(trained)))}

{_TOKENS[kind][trained.tokenizer.kind]}
The weights are exact, in fp32. The model has seen no more than {trained.settings.context} tokens at once.

## Text

{_table(_text(trained))}

What may be done with the model depends on that text's licence; none is stated here.

## Train it again

`{SETTINGS}` holds every setting. With the same text, on the same build of torch, instruction set and number of threads,
this ends in the same bytes; elsewhere, in the same model to within rounding:

```
ambidex train {SETTINGS} --data {shlex.join(_sources(trained.settings.data))} --out again
```

{_table(_made_with(card))}
"""


def settings_toml(trained: Trained) -> str:
    """Every setting that decides the model's numbers, as `ambidex train` reads them."""
    settings = trained.settings.model_dump(mode="json")
    settings["precision"] = trained.card.get("precision", settings["precision"])
    settings["data"] = _sources(trained.settings.data)
    kept = {name: value for name, value in settings.items() if name not in _LEFT_OUT}
    lines = [f"# What decided the numbers of this model, for: ambidex train {SETTINGS}"]
    return "\n".join([*lines, *(f"{name} = {_quoted(value)}" for name, value in kept.items())]) + "\n"


def _figures(trained: Trained, run: Run) -> dict[str, str]:
    rows = [row for row in run.metrics if row.step <= trained.step]
    evaluated: list[Row] = [row for row in rows if row.val_loss is not None]
    figures = {
        "parameters": f"{sum(trained.model.shape.parameters().values()):,}",
        "shape": f"{trained.settings.layers} layers of width {trained.settings.width}, {trained.settings.heads} query and "
                 f"{trained.settings.kv_heads} key/value heads, context {trained.settings.context}",
        "step": f"{trained.step} of {trained.settings.steps}",
    }  # fmt: skip
    if rows:
        figures["training loss"] = f"{rows[-1].loss:.4f} nats per token"
        figures["tokens seen"] = f"{rows[-1].tokens:,}"
    if evaluated:
        figures["validation loss"] = (
            f"{evaluated[-1].val_loss:.4f} nats per token, at step {evaluated[-1].step}"
        )
    return figures


def _text(trained: Trained) -> dict[str, str]:
    data = trained.card.get("data", {})
    return {
        "sources": ", ".join(f"`{source}`" for source in _sources(trained.settings.data)),
        "sha256": f"`{_plain(data.get('hash', '?'))}`",
        "documents": _plain(data.get("documents", "?")),
        "bytes": _plain(data.get("bytes", "?")),
        "tokenizer": f"{trained.tokenizer.kind}, {trained.tokenizer.vocabulary_size:,} tokens",
    }


def _made_with(card: dict[str, Any]) -> dict[str, str]:
    build, cpu = card.get("build", {}), card.get("cpu")
    cpu = cpu if isinstance(cpu, dict) else {}
    sets = cpu.get("isa")
    return {
        "torch": _plain(build.get("torch", "?")),
        "Python": _plain(build.get("python", "?")),
        "device": _plain(card.get("device", {}).get("name", "?")),
        "precision": _plain(card.get("precision", "?")),
        "threads": _plain(card.get("threads", "?")),
        "CPU": _plain(cpu.get("name", "?")),
        "instruction sets": _plain(", ".join(map(str, sets)) if isinstance(sets, list) else "?"),
        "seed": _plain(card.get("config", {}).get("seed", "?")),
    }


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _sources(data: tuple[str, ...]) -> list[str]:
    """Names without their folders; `builtin`, `-` and `hf:NAME` as they are."""
    return [_plain(source if source.startswith("hf:") else Path(source).name or source) for source in data]


def _prompt(trained: Trained) -> str:
    """A beginning that the vocabulary can read: of characters, one that the text held."""
    if isinstance(trained.tokenizer, CharTokenizer):
        return next((letter for letter in trained.tokenizer.characters if letter.isalpha()), "")
    return "The "


def _plain(value: object) -> str:
    """On one line, without what Markdown or a terminal would obey."""
    return "".join(
        "_" if character in "|`<>[]*\\" else character
        for character in one_line(str(value).replace("\n", " "))
    )


def _quoted(value: object) -> str:
    """As Python and TOML read it. JSON would spell a rare letter as two halves, which TOML refuses; DEL it takes."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
