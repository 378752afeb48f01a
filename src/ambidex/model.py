"""A decoder-only transformer: RMSNorm, RoPE, QK-norm, SwiGLU, grouped-query attention.

Module names and weight layout are those of Hugging Face's Qwen3, so a checkpoint exports without surgery; what that
layout has no place for is off until somebody asks for it (`ngrams.py`).
Shapes in comments: B sequences, T tokens, W width, H query heads, K key/value heads, D width of a head,
F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ambidex.ngrams import NGramEmbedding
from ambidex.products import chosen, linear, linears
from ambidex.randomness import symmetric


@dataclass(frozen=True)
class Shape:
    """What decides the model's weights. ``context`` is the longest sequence, in tokens."""

    vocabulary_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int
    tied: bool = True
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    residual_init: float = 1.0
    ngrams: int = 1  # tokens of the longest group that has a row of its own
    ngram_rows: int = 8192
    grow_from: int = 0  # blocks that learn from the first step on; 0: all of them

    @property
    def first_depth(self) -> int:
        return min(self.grow_from or self.layers, self.layers)

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def parameters(self) -> dict[str, int]:
        """Weights by part, counted without building the model."""
        kv_width = self.kv_heads * self.head_width
        attention = 2 * self.width * self.width + 2 * self.width * kv_width + 2 * self.head_width
        counts = {
            "embedding": self.vocabulary_size * self.width,
            "n-grams": (self.ngrams - 1) * self.ngram_rows * self.width,
            "attention": self.layers * attention,
            "feed-forward": self.layers * 3 * self.width * self.feed_forward,
            "norms": (2 * self.layers + 1) * self.width,
        }
        if not self.tied:
            counts["head"] = self.vocabulary_size * self.width
        return {part: count for part, count in counts.items() if count}

    def operations_per_token(self, depth: float = 0, candidates: int = 0) -> int:
        """Floating-point operations of one training token: products only, forward (1x) and backward (2x).

        Counted by hand rather than as six times the parameters, which leaves attention out and takes the embedding's
        look-up for a product. Causal attention is counted as the half that is needed.
        ``depth`` is the blocks, ``candidates`` the tokens that the softmax runs over; 0 for all.
        """
        kv_width = self.kv_heads * self.head_width
        block = 2 * self.width * self.width + 2 * self.width * kv_width + 3 * self.width * self.feed_forward
        scores = self.width * self.context  # two products of T x D per head and token, half of them masked
        head = self.width * (candidates or self.vocabulary_size)
        return round(6 * ((depth or self.layers) * (block + scores) + head))


class RMSNorm(nn.Module):
    """Zhang and Sennrich, "Root mean square layer normalization", 2019."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:  # (..., width), fp32 at every precision
        products = chosen()
        if products is None:
            return F.rms_norm(x.float(), self.weight.shape, self.weight, self.epsilon)
        return products.operations.rms_norm(x, self.weight, self.epsilon)


def rotation_tables(length: int, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE (Su et al., 2021), each (length, head_width), rounded once from fp64."""
    frequencies = base ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)  # (D/2,)
    angles = np.outer(np.arange(length, dtype=np.float64), frequencies)  # (T, D/2)
    angles = np.concatenate([angles, angles], axis=1)  # (T, D)
    return torch.from_numpy(np.cos(angles).astype(np.float32)), torch.from_numpy(
        np.sin(angles).astype(np.float32)
    )


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """RoPE in Qwen3's layout: the two halves of a head are the two coordinates. ``x`` is (B, H, T, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class Cache:
    """What sampling keeps of the tokens so far: themselves, (B, T), and their keys and values, a (B, K, T, D) pair a layer."""

    def __init__(self) -> None:
        self.tokens: Tensor | None = None
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        return 0 if self.tokens is None else self.tokens.shape[1]

    def follow(self, tokens: Tensor) -> None:
        self.tokens = tokens if self.tokens is None else torch.cat((self.tokens, tokens), dim=1)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self._layers:
            before_keys, before_values = self._layers[layer]
            keys, values = torch.cat((before_keys, keys), dim=2), torch.cat((before_values, values), dim=2)
        self._layers[layer] = keys, values
        return keys, values


class Attention(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_width = shape.heads, shape.kv_heads, shape.head_width
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.q_norm = RMSNorm(shape.head_width, shape.norm_epsilon)
        self.k_norm = RMSNorm(shape.head_width, shape.norm_epsilon)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, cache: Cache | None) -> Tensor:  # x (B, T, W)
        batch, length, width = x.shape
        queries, keys, values = linears(x, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        values = values.view(batch, length, self.kv_heads, self.head_width).transpose(1, 2)
        queries = self.q_norm(queries.view(batch, length, self.heads, self.head_width))
        keys = self.k_norm(keys.view(batch, length, self.kv_heads, self.head_width))
        products = chosen()
        if products is None:
            queries = rotate(queries.transpose(1, 2), cosine, sine).to(values.dtype)  # (B, H, T, D)
            keys = rotate(keys.transpose(1, 2), cosine, sine).to(values.dtype)  # (B, K, T, D)
        else:
            queries = products.operations.rotate(queries, cosine, sine, values.dtype)
            keys = products.operations.rotate(keys, cosine, sine, values.dtype)
        causal = cache is None or cache.length == 0
        if cache is not None:
            keys, values = cache.append(self.layer, keys, values)
        if self.kv_heads != self.heads:
            # Written out rather than enable_gqa, whose CPU kernel is missing from some of the torch versions we support.
            keys = keys.repeat_interleave(self.heads // self.kv_heads, dim=1)
            values = values.repeat_interleave(self.heads // self.kv_heads, dim=1)
        mixed = attend(queries, keys, values, causal and length > 1)
        return linear(mixed.transpose(1, 2).reshape(batch, length, width), self.o_proj.weight)


def attend(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:  # each (B, H, T, D)
    products = chosen()
    if causal and products is not None and products.low is not None:
        return products.operations.causal_attention(queries, keys, values)
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)


class FeedForward(nn.Module):
    """SwiGLU: Shazeer, "GLU variants improve transformer", 2020."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, W)
        gate, up = linears(x, self.gate_proj.weight, self.up_proj.weight)  # (B, T, F) each
        products = chosen()
        product = F.silu(gate) * up if products is None else products.operations.swiglu(gate, up)
        return linear(product, self.down_proj.weight)


class Block(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.width, shape.norm_epsilon)
        self.self_attn = Attention(shape, layer)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.norm_epsilon)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, cache: Cache | None) -> Tensor:  # x (B, T, W)
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, cache)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """The blocks between the tokens and the last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary_size, shape.width)
        self.embed_ngrams = (
            NGramEmbedding(shape.ngrams, shape.ngram_rows, shape.width) if shape.ngrams > 1 else None
        )
        self.layers = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.depth = shape.layers
        self.norm = RMSNorm(shape.width, shape.norm_epsilon)
        cosine, sine = rotation_tables(shape.context, shape.head_width, shape.rope_base)
        self.register_buffer("cosine", cosine, persistent=False)  # (context, D)
        self.register_buffer("sine", sine, persistent=False)  # (context, D)

    cosine: Tensor
    sine: Tensor

    def deepen(self, depth: int) -> None:
        """Compute and learn with the first ``depth`` blocks alone: those above are silent yet, see `initialise`."""
        self.depth = depth
        for number, block in enumerate(self.layers):
            block.requires_grad_(number < depth)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:  # tokens (B, T) -> (B, T, W)
        start = cache.length if cache is not None else 0
        rows = slice(start, start + tokens.shape[1])
        cosine, sine = self.cosine[rows], self.sine[rows]  # (T, D)
        x = self.embed_tokens(tokens)
        if self.embed_ngrams is not None:
            x = x + self.embed_ngrams(tokens, cache.tokens if cache is not None else None)
        for number, block in enumerate(self.layers):
            if number == self.depth:
                break
            x = block(x, cosine, sine, cache)
        if cache is not None:
            cache.follow(tokens)
        return self.norm(x)  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """The whole model. ``forward`` gives the last norm's output; `loss.py` and `logits` take it from there."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary_size, bias=False)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def late_weights(self) -> list[str]:
        """Names of the weights of blocks that join later."""
        late = range(self.shape.first_depth, self.shape.layers)
        return [
            f"model.layers.{n}.{name}" for n in late for name, _ in self.model.layers[n].named_parameters()
        ]

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:  # (B, T) -> (B, T, W)
        return self.model(tokens, cache)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:  # (..., W) -> (..., V)
        return linear(hidden, self.lm_head.weight)


@torch.no_grad()
def initialise(model: LanguageModel, seed: int) -> None:
    """Fill the weights, the same bytes on every machine (`randomness.py`).

    Matrices get a deviation of 1/sqrt(fan in); what a block adds to the residual stream is scaled down by the square
    root of the number of such additions (Radford et al., 2019), and, as rows of n-grams are, by the shape's
    ``residual_init``; norms start at 1.
    Each tensor has a stream of its own, so adding a layer changes no other layer.
    Blocks that join later (`growth.py`) are silent: what they add is exactly 0.
    """
    additions = 2 * model.shape.layers
    silent = frozenset(model.late_weights())
    for name, weight in model.named_parameters():
        outputs = name.endswith(("o_proj.weight", "down_proj.weight"))
        if weight.ndim == 1 or (outputs and name in silent):
            weight.fill_(1.0 if weight.ndim == 1 else 0.0)
            continue
        deviation = 0.02 if ".embed_" in name else weight.shape[1] ** -0.5
        if outputs:
            deviation *= model.shape.residual_init / additions**0.5
        elif name.endswith("embed_ngrams.weight"):
            deviation *= model.shape.residual_init
            if not deviation:  # numbers for a large table take time
                weight.zero_()
                continue
        numbers = symmetric(seed, name, weight.numel(), deviation)
        weight.copy_(torch.from_numpy(numbers).view(weight.shape))
