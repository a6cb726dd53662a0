"""What a value becomes in the graph: one function a kind, by the plainest ONNX operators.

`Emission.masked` is the mask of padding as scores add it; operators of com.microsoft take the mask itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .graph import MICROSOFT, Graph
from .levels import Level
from .values import Handle, Value

MASK = "attention_mask"
HIDDEN = -1.0e30  # as good as −∞ for a score, and two of them are still a number


@dataclass
class Emission:
    """A graph in the making: `names` are the outputs of values by their index, `once` what is made once."""

    graph: Graph
    level: Level
    names: dict[int, str] = field(default_factory=dict)
    once: dict[str, str] = field(default_factory=dict)

    def node(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node with one output; inputs are names, values, handles in float32, or None to leave one out."""
        return self.graph.node(kind, [self.name(one) for one in inputs], **attributes)[0]

    def fused(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """A node of ONNX Runtime's own operators."""
        return self.node(kind, *inputs, domain=MICROSOFT, **attributes)

    def name(self, one: Any) -> str:
        if one is None:
            return ""
        if isinstance(one, Value):
            return self.names[one.index]
        if isinstance(one, Handle):
            return self.level.vector(self.graph, one)
        if isinstance(one, str):
            return one
        return self.graph.constant(one, np.float32)

    def ints(self, *values: int) -> str:
        return self.graph.constant(list(values), np.int64)

    def made_once(self, key: str, make: Callable[[], str]) -> str:
        if key not in self.once:
            self.once[key] = make()
        return self.once[key]

    def linear(self, x: Any, weight: Handle, bias: Handle | None = None) -> str:
        """As the level multiplies."""
        return self.level.linear(self.graph, self.name(x), weight, bias)

    @property
    def mask(self) -> str:
        """int32 (batch, tokens), 1 for tokens: as ONNX Runtime's attention takes it."""
        return self.made_once("mask", lambda: self.node("Cast", MASK, to=6))

    @property
    def float_mask(self) -> str:
        """float32 (batch, tokens)."""
        return self.made_once("float_mask", lambda: self.node("Cast", MASK, to=1))

    @property
    def masked(self) -> str:
        """float32 (batch, 1, 1, tokens): 0 for tokens, as good as −∞ for padding."""

        def make() -> str:
            padding = self.node("Sub", 1.0, self.float_mask)
            return self.node("Unsqueeze", self.node("Mul", padding, HIDDEN), self.ints(1, 2))

        return self.made_once("masked", make)

    @property
    def counts(self) -> str:
        """int64 (batch, 1): tokens of each text."""
        return self.made_once("counts", lambda: self.node("ReduceSum", MASK, self.ints(1), keepdims=1))


Emitter = Callable[[Emission, Value], str]


def embed(emission: Emission, value: Value) -> str:
    ids, table = value.operands
    if ids.kind == "zeros":
        return emission.name(table[0:1])
    if ids.kind == "positions":
        offset = ids.attributes["offset"]
        there = table[offset:]
        shape = emission.made_once("shape", lambda: emission.node("Shape", ids.operands[0], start=1, end=2))
        return emission.node("Slice", there, emission.ints(0), shape, emission.ints(0))
    return emission.level.table(emission.graph, emission.name(ids), table)


def linear(emission: Emission, value: Value) -> str:
    return emission.linear(*value.operands)


def layer_norm(emission: Emission, value: Value) -> str:
    return emission.node("LayerNormalization", *value.operands, axis=-1, epsilon=value.attributes["epsilon"])


def gelu(emission: Emission, value: Value) -> str:
    return emission.fused("Gelu", *value.operands)


def gelu_tanh(emission: Emission, value: Value) -> str:
    return emission.fused("FastGelu", *value.operands)


def silu(emission: Emission, value: Value) -> str:
    (x,) = value.operands
    return emission.node("Mul", x, emission.node("Sigmoid", x))


def softmax(emission: Emission, value: Value) -> str:
    return emission.node("Softmax", *value.operands, axis=-1)


def first(emission: Emission, value: Value) -> str:
    return emission.node("Gather", *value.operands, emission.graph.constant(0, np.int64), axis=1)


def split(emission: Emission, value: Value) -> str:
    """All parts under names of their own; the value's is the first's."""
    widths = value.attributes["widths"]
    inputs = [emission.name(value.operands[0]), emission.ints(*widths)]
    names = emission.graph.node("Split", inputs, outputs=len(widths), axis=-1)
    for number, name in enumerate(names):
        emission.once[f"part {value.index} {number}"] = name
    return names[0]


def part(emission: Emission, value: Value) -> str:
    return emission.once[f"part {value.operands[0].index} {value.attributes['number']}"]


def split_heads(emission: Emission, value: Value) -> str:
    shape = emission.ints(0, 0, value.attributes["heads"], -1)
    return emission.node("Transpose", emission.node("Reshape", *value.operands, shape), perm=[0, 2, 1, 3])


def join_heads(emission: Emission, value: Value) -> str:
    turned = emission.node("Transpose", *value.operands, perm=[0, 2, 1, 3])
    return emission.node("Reshape", turned, emission.ints(0, 0, -1))


def mean(emission: Emission, value: Value) -> str:
    mask = emission.node("Unsqueeze", emission.float_mask, emission.ints(1))
    total = emission.node("Squeeze", emission.node("MatMul", mask, *value.operands), emission.ints(1))
    return emission.node("Div", total, emission.node("Cast", emission.counts, to=1))


def last(emission: Emission, value: Value) -> str:
    if len(value.operands) == 1:
        place = emission.node("Sub", emission.counts, emission.ints(1))
    else:
        padding = emission.graph.constant(value.attributes["padding"], np.int64)
        other = emission.node("Not", emission.node("Equal", value.operands[1], padding))
        there = emission.node("Mul", emission.node("Cast", other, to=7), MASK)
        places = emission.node("CumSum", MASK, emission.graph.constant(1, np.int64), exclusive=1)
        place = emission.node("ReduceMax", emission.node("Mul", places, there), emission.ints(1), keepdims=1)
    return emission.node("GatherND", value.operands[0], place, batch_dims=1)


def normalize(emission: Emission, value: Value) -> str:
    (x,) = value.operands
    length = emission.node("ReduceL2", x, emission.ints(-1), keepdims=1)
    return emission.node("Div", x, emission.node("Max", length, 1e-12))


def plain(kind: str) -> Emitter:
    return lambda emission, value: emission.node(kind, *value.operands)


EMITTERS: dict[str, Emitter] = {
    "input": lambda emission, value: str(value.attributes["name"]),
    "positions": lambda emission, value: "",  # `embed` reads its operand
    "zeros": lambda emission, value: "",
    "embed": embed,
    "linear": linear,
    "layer_norm": layer_norm,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "softmax": softmax,
    "first": first,
    "split": split,
    "part": part,
    "split_heads": split_heads,
    "join_heads": join_heads,
    "mean": mean,
    "last": last,
    "normalize": normalize,
    "add": plain("Add"),
    "subtract": plain("Sub"),
    "multiply": plain("Mul"),
    "divide": plain("Div"),
    "relu": plain("Relu"),
    "tanh": plain("Tanh"),
}
