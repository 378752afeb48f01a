"""Our tokenizers in other programs' words: a `tokenizers` JSON for Hugging Face, byte-level BPE for llama.cpp.

Both give the ids that ours give, add no token, and change no character. What they cannot do stands beside them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ambidex.text import Tokenizer
from ambidex.text.bpe import byte_alphabet
from ambidex.text.tokenizer import CharTokenizer

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_NEVER = "<never> <never>"  # llama.cpp wants a list of merges that is not empty; no text comes to these two


def huggingface_json(tokenizer: Tokenizer) -> str:
    """tokenizer.json for `transformers`: no normalizer, no post-processor, no token added.

    Bytes become a byte-level vocabulary without merges; characters become a word-level one in which each character
    is a word, and which raises an error for a character that the training text did not hold, as ours does. BPE is
    the library's own already.
    """
    if tokenizer.kind == "bpe":
        return tokenizer.to_json()
    if isinstance(tokenizer, CharTokenizer):
        vocabulary = {character: number for number, character in enumerate(tokenizer.characters)}
        model: dict[str, Any] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unknown>"}
        split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
        return _json(model, split, {"type": "Fuse"})
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": byte_alphabet(), "merges": [],
    }  # fmt: skip
    return _json(model, _BYTE_LEVEL, _BYTE_LEVEL)


def _json(model: dict[str, Any], before: dict[str, Any], decoder: dict[str, Any]) -> str:
    whole: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": before, "post_processor": None, "decoder": decoder, "model": model,
    }  # fmt: skip
    return json.dumps(whole, ensure_ascii=False, indent=1)


@dataclass(frozen=True)
class Llama:
    """A vocabulary of llama.cpp's kind "gpt2". ``end`` is the id between two documents, None where there is none."""

    tokens: tuple[str, ...]
    control: frozenset[int]  # tokens that are no text
    merges: tuple[str, ...]
    end: int | None


def llama(tokenizer: Tokenizer) -> Llama:
    """The same ids by llama.cpp's byte-level BPE.

    Bytes: no merge, so a byte stays a token. Characters: merges put the bytes of each character together, and never
    two characters; llama.cpp leaves out, without a word, a character that the vocabulary does not hold.
    """
    as_text = {byte: character for character, byte in byte_alphabet().items()}
    tokens = ["".join(as_text[byte] for byte in tokenizer.token_bytes(token))
              for token in range(tokenizer.vocabulary_size)]  # fmt: skip
    control: frozenset[int] = frozenset()
    end = tokenizer.end_of_document
    merges: list[str] = []
    if tokenizer.kind == "bpe":
        merges = [" ".join(pair) for pair in json.loads(tokenizer.to_json())["model"]["merges"]]
        if end is not None:
            tokens[end] = _unused("<|endoftext|>", tokens)
            control = frozenset([end])
    else:
        for token in tokens:
            merges += [f"{token[:cut]} {token[cut]}" for cut in range(1, len(token))]
    return Llama(tuple(tokens), control, tuple(dict.fromkeys(merges)) or (_NEVER,), end)


def _unused(name: str, tokens: list[str]) -> str:
    while name in tokens:  # the training text may have held just this
        name = f"<{name}>"
    return name
