"""The functions of `numpy_ops`, writing down what is computed: the operations of an encoder's graph.

A pass that NumPy computes for (tokens, width) is written down for (batch, tokens, width). Nothing is emitted here:
`lower` turns the values that outputs need into nodes, several at once where one of its RULES knows an operator. A new
operation is a method here, and a function in `emit.EMITTERS`.
"""

from __future__ import annotations

from typing import Any

from .values import Array, Handle, Value


class Ops:
    """One pass; `made` are its values in order."""

    def __init__(self) -> None:
        self.made: list[Value] = []

    def value(self, kind: str, *operands: Any, **attributes: Any) -> Value:
        return Value(self.made, kind, operands, attributes)

    def input(self, name: str) -> Value:
        """An input of the graph: (batch, tokens)."""
        return self.value("input", name=name)

    def embed(self, table: Handle, ids: Value) -> Value:
        """(batch, tokens, width); of positions (tokens, width), of zeros (width,)."""
        return self.value("embed", ids, table)

    def positions(self, ids: Value, offset: int = 0) -> Value:
        return self.value("positions", ids, offset=offset)

    def zeros(self, ids: Value) -> Value:
        return self.value("zeros", ids)

    def first(self, x: Value) -> Value:
        """(batch, width)."""
        return self.value("first", x)

    def linear(self, x: Value, weight: Handle, bias: Handle | None = None) -> Value:
        return self.value("linear", x, weight, bias)

    def convolution(self, x: Value, weight: Handle, bias: Handle) -> Value:
        """In float32 at every level: there is one in a model."""
        return self.value("convolution", x, weight, bias)

    def layer_norm(self, x: Value, weight: Handle, bias: Handle | None, epsilon: float) -> Value:
        return self.value("layer_norm", x, weight, bias, epsilon=epsilon)

    def gelu(self, x: Value) -> Value:
        return self.value("gelu", x)

    def gelu_tanh(self, x: Value) -> Value:
        return self.value("gelu_tanh", x)

    def relu(self, x: Value) -> Value:
        return self.value("relu", x)

    def silu(self, x: Value) -> Value:
        return self.value("silu", x)

    def tanh(self, x: Value) -> Value:
        return self.value("tanh", x)

    def softmax(self, x: Value) -> Value:
        return self.value("softmax", x)

    def split(self, x: Value, widths: tuple[int, ...]) -> list[Value]:
        whole = self.value("split", x, widths=widths)
        return [self.value("part", whole, number=number) for number in range(len(widths))]

    def split_heads(self, x: Value, heads: int) -> Value:
        """(batch, heads, tokens, size)."""
        return self.value("split_heads", x, heads=heads)

    def join_heads(self, x: Value) -> Value:
        return self.value("join_heads", x)

    def attention(
        self,
        query: Value,
        key: Value,
        value: Value,
        *,
        window: int | None = None,
        scale: float | None = None,
        causal: bool = True,
        bias: Value | None = None,
    ) -> Value:
        """(batch, heads, tokens, size); padding is masked. `bias` is (batch or 1, heads, tokens, tokens)."""
        operands = (query, key, value) if bias is None else (query, key, value, bias)
        return self.value("attention", *operands, scale=scale, causal=causal, window=window)

    def rope(self, x: Value, frequencies: Array, scale: float = 1.0) -> Value:
        return self.value("rope", x, frequencies=frequencies, scale=scale)

    def distances(self, ids: Value, table: Array) -> Value:
        return self.value("distances", ids, table=table)

    def head_biases(self, table: Handle, index: Value) -> Value:
        """(1, heads, tokens, tokens)."""
        return self.value("head_biases", table, index)

    def relative_scores(self, x: Value, rows: Value, index: Value, *, of_keys: bool = False) -> Value:
        """(batch, heads, tokens, tokens); `rows` are heads of (rows, width)."""
        (flat,), heads = rows.operands, rows.attributes["heads"]
        return self.value("relative_scores", x, flat, index, heads=heads, of_keys=of_keys)

    def mean(self, x: Value) -> Value:
        """(batch, width), over the tokens that are no padding."""
        return self.value("mean", x)

    def last(self, x: Value, ids: Value | None = None, padding: int | None = None) -> Value:
        """(batch, width), of the last token that is no padding: by the mask, and by its id where one is given."""
        return self.value("last", x) if padding is None else self.value("last", x, ids, padding=padding)

    def normalize(self, x: Value) -> Value:
        """Vectors of length 1."""
        return self.value("normalize", x)
