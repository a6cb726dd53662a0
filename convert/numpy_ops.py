"""The operations a family's forward pass is written in, computed by NumPy: the reference of every certificate.

Arrays are (tokens, width) or (heads, tokens, head size). The type of the weights decides the precision; float64
weights make a float64 reference. Another module with the same functions can build a graph from the same pass.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def embed(table: Array, ids: Array) -> Array:
    """Rows of the table: (tokens, width)."""
    return np.asarray(table[ids])


def positions(ids: Array, offset: int = 0) -> Array:
    """`offset` at the first token and 1 more at each: (tokens,)."""
    return np.arange(len(ids)) + offset


def zeros(ids: Array) -> Array:
    """0 for every token: (tokens,)."""
    return np.zeros(len(ids), np.int64)


def first(x: Array) -> Array:
    """The first token of (tokens, width): (1, width)."""
    return x[:1]


def last(x: Array, ids: Array, padding: int | None = None) -> Array:
    """The last token of (tokens, width) whose id is not `padding`, the first one if all are: (1, width)."""
    there = np.flatnonzero(ids != padding) if padding is not None else np.arange(len(ids))
    index = int(there[-1]) if len(there) else 0
    return x[index : index + 1]


def mean(x: Array) -> Array:
    """The mean of all tokens of (tokens, width): (1, width)."""
    return np.asarray(np.mean(x, axis=0, keepdims=True))


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x · weightᵀ + bias; weight is (out, in) as checkpoints store it."""
    y: Array = x @ weight.T
    return y if bias is None else np.add(y, bias)


def convolution(x: Array, weight: Array, bias: Array) -> Array:
    """Each token's neighbours by a weight of their own, itself in the middle: (tokens, out).

    The weight is (out, in, odd number of tokens); before and after the text there are zeros.
    """
    count = weight.shape[-1]
    padded = np.pad(x, ((count // 2, count // 2), (0, 0)))
    return np.asarray(sum(padded[tap : tap + len(x)] @ weight[:, :, tap].T for tap in range(count)) + bias)


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    """x over its root mean square, scaled (Zhang and Sennrich, 2019, arXiv:1910.07467)."""
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight)


def silu(x: Array) -> Array:
    """x · sigmoid(x)."""
    with np.errstate(over="ignore"):  # exp of a large negative x: the quotient is 0, as it should be
        return np.asarray(x / (1 + np.exp(-x)))


def relu(x: Array) -> Array:
    """What is above 0."""
    return np.asarray(np.maximum(x, 0))


def tanh(x: Array) -> Array:
    """The hyperbolic tangent."""
    return np.asarray(np.tanh(x))


def gelu_tanh(x: Array) -> Array:
    """GELU by its tanh approximation (Hendrycks and Gimpel, 2016, arXiv:1606.08415)."""
    return np.asarray(0.5 * x * (1 + np.tanh(float(np.sqrt(2 / np.pi)) * (x + 0.044715 * x * x * x))))


def soft_cap(x: Array, cap: float) -> Array:
    """Everything drawn smoothly into ±cap (Gemma 2, arXiv:2408.00118)."""
    return np.asarray(cap * np.tanh(x / cap))


def split_heads(x: Array, heads: int) -> Array:
    """(tokens, heads · size) → (heads, tokens, size)."""
    return np.asarray(x.reshape(len(x), heads, -1).transpose(1, 0, 2))


def join_heads(x: Array) -> Array:
    """(heads, tokens, size) → (tokens, heads · size)."""
    return np.asarray(x.transpose(1, 0, 2).reshape(x.shape[1], -1))


def rope(x: Array, frequencies: Array, scale: float = 1.0) -> Array:
    """Rotary positions from 0 on, halves rotated together (Su et al., 2021, arXiv:2104.09864; HF's layout).

    The first 2 · len(frequencies) elements of a head turn and are multiplied by `scale`; the rest stays as it is.
    """
    angles = np.arange(x.shape[1])[:, None] * frequencies
    cos, sin = (scale * np.cos(angles)).astype(x.dtype), (scale * np.sin(angles)).astype(x.dtype)
    half = len(frequencies)
    first, second, rest = np.split(x, [half, 2 * half], axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def softmax(x: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    cap: float | None = None,
    causal: bool = True,
    bias: Array | None = None,
) -> Array:
    """Attention to what came before, or to all; each key-value head serves `query heads / key heads` query heads.

    With a window, a token sees itself and the window − 1 tokens before it (Mistral, arXiv:2310.06825), and as many
    after it where attention is not causal. Scores are multiplied by `scale`, 1 / √head size unless given, drawn into
    ±cap where there is one; `bias` (heads, tokens, tokens) is added to them.
    """
    key, value = (np.repeat(x, len(query) // len(x), axis=0) for x in (key, value))
    scores = query @ key.transpose(0, 2, 1) * (scale or float(query.shape[-1]) ** -0.5)
    if cap is not None:
        scores = soft_cap(scores, cap)
    if bias is not None:
        scores = scores + bias
    distance = np.arange(scores.shape[1])[:, None] - np.arange(scores.shape[2])
    hidden = np.abs(distance) >= (window or len(distance) + 1)
    if causal:
        hidden |= distance < 0
    return np.asarray(softmax(np.where(hidden, -np.inf, scores)) @ value)


def distances(ids: Array, table: Array) -> Array:
    """The table's entries for the distances i − j between tokens: (tokens, tokens), i down.

    The table has them for −n … n, n at least the number of tokens less 1.
    """
    there = np.arange(len(ids))
    return np.asarray(table[there[:, None] - there + len(table) // 2])


def head_biases(table: Array, index: Array) -> Array:
    """What each head adds to scores, out of a table (rows, heads) by `distances`: (heads, tokens, tokens)."""
    return np.asarray(table.T[:, index])


def relative_scores(x: Array, rows: Array, index: Array, *, of_keys: bool = False) -> Array:
    """Products of queries (heads, tokens, size), or of keys, with the row for each distance: (heads, tokens, tokens).

    Element (i, j) is query i, or key j, times row `index[i, j]` of (heads, rows, size).
    """
    products = x @ rows.transpose(0, 2, 1)
    taken = np.take_along_axis(products, (index.T if of_keys else index)[None], axis=-1)
    return taken.transpose(0, 2, 1) if of_keys else taken


def layer_norm(x: Array, weight: Array, bias: Array | None, epsilon: float) -> Array:
    """x less its mean over its standard deviation, scaled and shifted (Ba et al., 2016, arXiv:1607.06450)."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    y = centred / np.sqrt(variance + epsilon) * weight
    return np.asarray(y if bias is None else y + bias)


def gelu(x: Array) -> Array:
    """x times the normal distribution's share below x (Hendrycks and Gimpel, 2016, arXiv:1606.08415), exact."""
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))).astype(x.dtype))


def split(x: Array, widths: tuple[int, ...]) -> list[Array]:
    """Columns of (tokens, sum of widths), in order: projections that checkpoints store as one."""
    return np.split(x, np.cumsum(widths)[:-1].tolist(), axis=-1)
