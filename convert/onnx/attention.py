"""Attention in the graph: ONNX Runtime's MultiHeadAttention where it computes it, else scores, softmax and sum.

Its `Attention`, which multiplies by the weights of query, key and value too, does so head by head: slower on a CPU
than three multiplications and this; so is SkipLayerNormalization than an addition and LayerNormalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .emit import HIDDEN, Emission
from .values import Value, stacked


def is_plain(value: Value) -> bool:
    """Whether MultiHeadAttention computes it: heads of one number, split only here, nothing added to the scores."""
    parts = value.operands
    if len(parts) != 3 or any(part.kind != "split_heads" for part in parts):
        return False
    return len({part.attributes["heads"] for part in parts}) == 1


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
    attributes = {"num_heads": value.operands[0].attributes["heads"]}
    if value.attributes["causal"]:
        attributes["unidirectional"] = 1
    if value.attributes["scale"]:
        attributes["scale"] = value.attributes["scale"]
    return emission.fused("MultiHeadAttention", *three, biases, emission.mask, **attributes)


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
