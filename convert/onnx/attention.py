"""Attention in the graph: ONNX Runtime's MultiHeadAttention where it computes it, else scores, softmax and sum.

Its `Attention` would multiply by the weights of query, key and value too, but in float32 only. An addition and
LayerNormalization stay two operators: SkipLayerNormalization is a little slower on a CPU
(bench/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .emit import HIDDEN, Emission
from .relative import outside, tokens
from .values import Array, Value, stacked

FLOAT, DOUBLE = 1, 11  # onnx.TensorProto.DataType


def is_plain(value: Value) -> bool:
    """Whether MultiHeadAttention computes it: heads of one number, which may be turned."""
    parts = [before_turning(part) for part in value.operands[:3]]
    if any(part.kind != "split_heads" for part in parts):
        return False
    return len({part.attributes["heads"] for part in parts}) == 1


def before_turning(part: Value) -> Value:
    return part.operands[0] if part.kind == "rope" else part


def turned(emission: Emission, part: Value) -> str:
    """(batch, tokens, width): heads with their rotary positions, before they are split."""
    heads = before_turning(part)
    if heads is part:
        return emission.name(part.operands[0])
    (cos, sin), (x,) = rotation(emission, part), heads.operands
    first = emission.ints(0)  # of the tables' rows
    return emission.fused("RotaryEmbedding", x, first, cos, sin, num_heads=heads.attributes["heads"])


def rotation(emission: Emission, part: Value) -> tuple[str, str]:
    """Cosines and sines of the positions from 0 on, float32 (tokens, pairs)."""

    def positions() -> str:
        zero, one = (emission.graph.constant(number, np.int64) for number in (0, 1))
        return emission.node("Range", zero, emission.node("Squeeze", tokens(emission)), one)

    return waves(emission, part.attributes["frequencies"], part.attributes["scale"], positions)


def waves(
    emission: Emission, frequencies: Array, scale: float, positions: Callable[[], str]
) -> tuple[str, str]:
    """Cosines and sines of positions (tokens,), float32 (tokens, pairs), by way of float64 as in the reference."""
    key = f"rotation {frequencies.tobytes().hex()} {scale}"

    def angles() -> str:
        column = emission.node("Unsqueeze", emission.node("Cast", positions(), to=DOUBLE), emission.ints(1))
        return emission.node("Mul", column, emission.graph.constant(frequencies[None], np.float64))

    def wave(shift: float) -> str:
        found = emission.made_once(f"{key} angles", angles)
        if shift:  # ONNX Runtime has no cosine in float64
            found = emission.node("Add", found, emission.graph.constant(shift, np.float64))
        found = emission.node("Sin", found)
        if scale != 1:
            found = emission.node("Mul", found, emission.graph.constant(scale, np.float64))
        return emission.node("Cast", found, to=FLOAT)

    return (
        emission.made_once(f"{key} cos", lambda: wave(float(np.pi / 2))),
        emission.made_once(f"{key} sin", lambda: wave(0.0)),
    )


def rope(emission: Emission, value: Value) -> str:
    return emission.fused("RotaryEmbedding", *value.operands, emission.ints(0), *rotation(emission, value))


def of_linears(emission: Emission, value: Value, linears: Sequence[Value]) -> str:
    """(batch, tokens, width): attention of three linears, the heads joined.

    It adds their biases where the level's multiplication does not: it copies the three anyway.
    """
    weights, biases = ([one.operands[place] for one in linears] for place in (1, 2))
    sources = [one.operands[0] for one in linears]
    if emission.level.adds_bias:
        products = map(emission.linear, sources, weights, biases)
        return of_three(emission, value, list(products))
    return of_three(emission, value, list(map(emission.linear, sources, weights)), stacked(biases))


def of_three(emission: Emission, value: Value, three: Sequence[Any], biases: Any = None) -> str:
    """(batch, tokens, width): attention of query, key and value (batch, tokens, width), the heads joined."""
    attributes = {"num_heads": before_turning(value.operands[0]).attributes["heads"]}
    if value.attributes["causal"]:
        attributes["unidirectional"] = 1
    if value.attributes["scale"]:
        attributes["scale"] = value.attributes["scale"]
    return emission.fused(
        "MultiHeadAttention", *three, biases, emission.mask, added(emission, value), **attributes
    )


def added(emission: Emission, value: Value) -> str | None:
    """(batch or 1, heads or 1, tokens, tokens): what is added to the scores besides masks, if anything is."""
    bias, window = value.operands[3:], value.attributes["window"]
    if not window:
        return emission.name(bias[0]) if bias else None
    hidden = outside(emission, window)
    return emission.node("Add", bias[0], hidden) if bias else hidden


def scores(emission: Emission, value: Value) -> str:
    """(batch, heads, tokens, size) by the plain operators."""
    query, key, states = value.operands[:3]
    product = emission.node("MatMul", query, emission.node("Transpose", key, perm=[0, 1, 3, 2]))
    scale = value.attributes["scale"]
    if scale is None:
        size = emission.node("Cast", emission.node("Shape", query, start=3, end=4), to=1)
        product = emission.node("Div", product, emission.node("Sqrt", size))
    else:
        product = emission.node("Mul", product, scale)
    if (more := added(emission, value)) is not None:
        product = emission.node("Add", product, more)
    product = emission.node("Add", product, emission.masked)
    if value.attributes["causal"]:
        product = emission.node("Add", product, later(emission))
    return emission.node("MatMul", emission.node("Softmax", product, axis=-1), states)


def later(emission: Emission) -> str:
    """float32 (tokens, tokens): as good as −∞ for what comes after a token."""

    def make() -> str:
        square = emission.node("Concat", tokens(emission), tokens(emission), axis=0)
        full = emission.node("Expand", emission.graph.constant(HIDDEN, np.float32), square)
        return emission.node("Trilu", full, emission.graph.constant(1, np.int64), upper=1)

    return emission.made_once("later", make)
