"""A GGUF file for llama.cpp and what is built on it, by the `gguf` package of the llama.cpp project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ambidex.errors import Problem, Problems
from ambidex.export.vocabulary import llama
from ambidex.trained import Trained

MODEL = "model.gguf"


def check() -> None:
    """Raise Problems (exit 2) where the package is not installed."""
    _library()


def write(trained: Trained, path: Path, name: str, description: str) -> None:
    """Write the weights in fp32, the vocabulary and the settings that llama.cpp reads. Raises OSError."""
    gguf = _library()
    shape, vocabulary = trained.model.shape, llama(trained.tokenizer)
    writer: Any = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
    writer.add_name(name)
    writer.add_description(description)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(shape.vocabulary_size)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocabulary.tokens))
    kinds = [
        gguf.TokenType.CONTROL if token in vocabulary.control else gguf.TokenType.NORMAL
        for token in range(len(vocabulary.tokens))
    ]
    writer.add_token_types(kinds)
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if vocabulary.end is not None:  # llama.cpp takes token 11 for each that is left out
        for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
            add(vocabulary.end)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, shape.layers)
    for ours, weight in trained.model.named_parameters():
        theirs = names.get_name(ours, try_suffixes=(".weight",))
        writer.add_tensor(theirs, weight.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def modelfile(context: int) -> str:
    """What `ollama create NAME -f Modelfile` reads: plain text goes in, with no template of a conversation."""
    return (
        f'FROM ./{MODEL}\nTEMPLATE "{{{{ .Prompt }}}}"\nPARAMETER num_ctx {context}\n'
        "PARAMETER temperature 0.8\nPARAMETER top_k 0\nPARAMETER top_p 1\n"
    )


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise Problems(
            Problem("--format gguf needs the gguf package.", found="not installed", fix='pip install "ambidex[gguf]"')
        ) from None  # fmt: skip
    return gguf
