"""What depends on the distance between tokens: scores and windows of attention, a convolution over neighbours.

Every distance i − j lies on a diagonal of the scores. So rows for the 2 · tokens distances are looked up and
multiplied by once, and `skewed` moves each product to its place by reshaping: neither an index nor a gathering of
(tokens, tokens) is made.
"""

from __future__ import annotations

import numpy as np

from .emit import HIDDEN, Emission
from .values import Value


def tokens(emission: Emission) -> str:
    """int64 (1,): how many there are in a text, padding among them."""
    return emission.made_once("tokens", lambda: emission.node("Shape", emission.mask, start=1, end=2))


def entries(emission: Emission, index: Value, *, falling: bool) -> str:
    """int64 (2 · tokens,): the table's entries for the distances tokens − 1, …, −tokens, or, rising, the other way.

    The last is of no use, and rising, too: 1 − tokens, …, tokens.
    """
    table = index.attributes["table"]
    nearest = len(table) // 2

    def make() -> str:
        values = np.append(table[::-1] if falling else table, table[:1])
        start = emission.node("Sub", emission.ints(nearest + 1), tokens(emission))
        end = emission.node("Add", emission.ints(nearest + 1), tokens(emission))
        return emission.node("Slice", emission.graph.constant(values, np.int64), start, end, emission.ints(0))

    return emission.made_once(f"entries {index.index} {falling}", make)


def skewed(emission: Emission, products: str) -> str:
    """(…, tokens, tokens) of (batch, heads, tokens, 2 · tokens): column j of row i is what stood at tokens − 1 + j − i.

    Read without the first tokens − 1 elements, in rows that are one element shorter, it stands in column j.
    """

    def shape(*last: str) -> str:
        return emission.node("Concat", emission.ints(0, 0), *last, axis=0)

    def shorter() -> str:
        double = emission.node("Mul", tokens(emission), emission.ints(2))
        return shape(tokens(emission), emission.node("Sub", double, emission.ints(1)))

    flat = emission.node("Reshape", products, emission.ints(0, 0, -1))
    start = emission.made_once(
        "all but one", lambda: emission.node("Sub", tokens(emission), emission.ints(1))
    )
    inside = emission.node("Slice", flat, start, emission.ints(-1), emission.ints(2))
    rows = emission.node("Reshape", inside, emission.made_once("shorter", shorter))
    return emission.node("Slice", rows, emission.ints(0), tokens(emission), emission.ints(3))


def relative_scores(emission: Emission, value: Value) -> str:
    """(batch, heads, tokens, tokens)."""
    x, rows, index = value.operands
    of_keys = value.attributes["of_keys"]
    near = emission.node("Gather", rows, entries(emission, index, falling=not of_keys), axis=0)
    heads = emission.node("Reshape", near, emission.ints(0, value.attributes["heads"], -1))
    turned = emission.node("Transpose", heads, perm=[1, 2, 0])
    scores = skewed(emission, emission.node("MatMul", x, turned))
    return emission.node("Transpose", scores, perm=[0, 1, 3, 2]) if of_keys else scores


def head_biases(emission: Emission, value: Value) -> str:
    """(1, heads, tokens, tokens)."""
    table, index = value.operands
    near = emission.node("Gather", table, entries(emission, index, falling=True), axis=0)
    column = emission.node("Unsqueeze", emission.node("Transpose", near, perm=[1, 0]), emission.ints(0, 2))
    shape = emission.node("Concat", emission.ints(1, 1), tokens(emission), emission.ints(1), axis=0)
    return skewed(emission, emission.node("Expand", column, shape))


def convolution(emission: Emission, value: Value) -> str:
    """(batch, tokens, out); padding counts as zeros."""
    x, weight, bias = value.operands
    there = emission.node("Mul", x, emission.node("Unsqueeze", emission.float_mask, emission.ints(2)))
    turned = emission.node("Transpose", there, perm=[0, 2, 1])
    side = weight.shape[-1] // 2
    seen = emission.node("Conv", turned, weight, bias, pads=[side, side])
    return emission.node("Transpose", seen, perm=[0, 2, 1])


def outside(emission: Emission, window: int) -> str:
    """float32 (1, 1, tokens, tokens): as good as −∞ for tokens that are `window` or more apart."""

    def make() -> str:
        square = emission.node("Concat", emission.ints(1, 1), tokens(emission), tokens(emission), axis=0)
        full = emission.node("Expand", emission.graph.constant(HIDDEN, np.float32), square)
        sides = [
            emission.node("Trilu", full, emission.graph.constant(side, np.int64), upper=int(side > 0))
            for side in (window, -window)
        ]
        return emission.node("Add", *sides)

    return emission.made_once(f"outside {window}", make)
