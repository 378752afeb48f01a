"""The files of a folder that `transformers` loads as Qwen3ForCausalLM. Needs no `transformers`."""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch

from ambidex.export.vocabulary import huggingface_json
from ambidex.model import Shape
from ambidex.text import Tokenizer
from ambidex.trained import Trained


def files(trained: Trained) -> dict[str, bytes]:
    """Name and content of each file but the model card."""
    return {
        "config.json": _json(configuration(trained.model.shape, trained.tokenizer.end_of_document)),
        "generation_config.json": _json(generation(trained.tokenizer.end_of_document)),
        "model.safetensors": safetensors.torch.save(
            {name: weight.detach().contiguous() for name, weight in trained.model.named_parameters()},
            metadata={"format": "pt"},
        ),
        "tokenizer.json": huggingface_json(trained.tokenizer).encode(),
        "tokenizer_config.json": _json(tokenizer_settings(trained.tokenizer, trained.model.shape.context)),
    }


def configuration(shape: Shape, end: int | None) -> dict[str, Any]:
    """config.json. ``rope_theta`` is read by transformers 4, ``rope_parameters`` by 5."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocabulary_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_base,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_base},
        "tie_word_embeddings": shape.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def generation(end: int | None) -> dict[str, Any]:
    """What `ambidex sample` does by default: temperature 0.8 over all tokens; an end of document ends it."""
    ends = {} if end is None else {"eos_token_id": end, "pad_token_id": end}
    return {"do_sample": True, "temperature": 0.8, "top_k": 0, "top_p": 1.0, **ends}


def tokenizer_settings(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    """tokenizer_config.json. Only BPE marks the end of a document as special: bytes and characters are all text."""
    special = (
        {"eos_token": "\0", "pad_token": "\0"}
        if tokenizer.kind == "bpe" and tokenizer.end_of_document is not None
        else {}
    )
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        **special,
    }


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
