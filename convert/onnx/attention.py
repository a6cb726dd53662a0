"""Attention in the graph: ONNX Runtime's own operators where they compute it, else scores, softmax and sum.

`Attention` multiplies by the packed weights of query, key and value itself; `MultiHeadAttention` takes the three.
"""

from __future__ import annotations

import numpy as np

from .emit import HIDDEN, Emission
from .values import Handle, Value, stacked


def packed(value: Value) -> tuple[Value, list[Handle], list[Handle]] | None:
    """What query, key and value are linears of, their weights and biases, where they are of one and have biases."""
    linears = [heads.operands[0] for heads in value.operands[:3] if heads.kind == "split_heads"]
    if len(linears) != 3 or any(one.kind != "linear" for one in linears):
        return None
    x = linears[0].operands[0]
    if any(one.operands[0] is not x or one.operands[2] is None for one in linears):
        return None
    if len({one.operands[1].shape for one in linears}) != 1 or not same_heads(value):
        return None
    return x, [one.operands[1] for one in linears], [one.operands[2] for one in linears]


def same_heads(value: Value) -> bool:
    return len({heads.attributes["heads"] for heads in value.operands[:3]}) == 1


def fused(emission: Emission, value: Value, x: Value, weights: list[Handle], biases: list[Handle]) -> str:
    """(batch, tokens, width): attention of linears of `x`, with the heads joined."""
    return emission.level.attention(
        emission.graph,
        emission.name(x),
        stacked(weights),
        stacked(biases),
        emission.mask,
        heads=value.operands[0].attributes["heads"],
        causal=value.attributes["causal"],
        scale=value.attributes["scale"],
    )


def of_three(emission: Emission, value: Value) -> str:
    """(batch, tokens, width): attention of query, key and value (batch, tokens, width), the heads joined."""
    attributes = {"num_heads": value.operands[0].attributes["heads"]}
    if value.attributes["causal"]:
        attributes["unidirectional"] = 1
    if value.attributes["scale"]:
        attributes["scale"] = value.attributes["scale"]
    inputs = [heads.operands[0] for heads in value.operands[:3]]
    return emission.fused("MultiHeadAttention", *inputs, None, emission.mask, **attributes)


def scores(emission: Emission, value: Value) -> str:
    """(batch, heads, tokens, size) by the plain operators."""
    query, key, states = value.operands[:3]
    turned = emission.node("Transpose", key, perm=[0, 1, 3, 2])
    product = emission.node("MatMul", query, turned)
    scale = value.attributes["scale"]
    if scale is None:
        size = emission.node("Cast", emission.node("Shape", query, start=3, end=4), to=1)
        product = emission.node("Div", product, emission.node("Sqrt", size))
    else:
        product = emission.node("Mul", product, scale)
    if len(value.operands) > 3:
        product = emission.node("Add", product, value.operands[3])
    product = emission.node("Add", product, emission.masked)
    if value.attributes["causal"]:
        product = emission.node("Add", product, later(emission))
    return emission.node("MatMul", emission.node("Softmax", product, axis=-1), states)


def later(emission: Emission) -> str:
    """float32 (tokens, tokens): as good as −∞ for what comes after a token."""

    def make() -> str:
        tokens = emission.node("Shape", emission.mask, start=1, end=2)
        square = emission.node("Concat", tokens, tokens, axis=0)
        full = emission.node("Expand", emission.graph.constant(HIDDEN, np.float32), square)
        return emission.node("Trilu", full, emission.graph.constant(1, np.int64), upper=1)

    return emission.made_once("later", make)
