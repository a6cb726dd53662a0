"""How each level keeps a matrix, and which operator multiplies by it.

    fp32   as it is
    fp16   kept in half, computed in float32: ONNX Runtime widens it once, when it loads the model
    int8   kept in 7 of 8 bits by output channel, activations rounded to 8 bits by token when it runs
    int8w  kept in 8 bits by block (MatMulNBits), activations too, as accuracy level 4 computes
    int4   the same in 4 bits

Embedding tables of the last three are int8 by row. Vectors, tables of positions and token types, and heads are
float32 at every level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge.errors import ConversionError, RequestError

from . import encode
from .graph import MICROSOFT, Graph
from .values import Handle

BLOCK = 32  # weights that share a scale at int8w and int4
LEAST = 1e-30  # a row of zeros stays one


class Level:
    """fp32, and what the others have in common."""

    name = "fp32"
    bits = 32.0  # of a weight of a matrix, with its part of the scale
    keeps = "every weight as it is"
    adds_bias = False  # whether its multiplication adds a bias at no cost

    def vector(self, graph: Graph, handle: Handle) -> str:
        """The weight in float32, as the table has it."""
        graph.kept(handle, "float32")
        return graph.weight(handle.name, [("", np.float32, handle.shape)], lambda: [read(handle)])[0]

    def turned(self, graph: Graph, handle: Handle) -> str:
        """The weight (out, in) in float32 as (in, out): what MatMul multiplies by."""
        graph.kept(handle, "float32")
        shape = handle.shape[::-1]
        parts = [("", np.float32, shape)]
        return graph.weight(f"{handle.name} turned", parts, lambda: [turn(read(handle))])[0]

    def linear(self, graph: Graph, x: str, weight: Handle, bias: Handle | None) -> str:
        """x · weightᵀ + bias, by name."""
        if weight.exact:
            return LEVELS["fp32"].product(graph, x, weight, bias)
        return self.product(graph, x, weight, bias)

    def product(self, graph: Graph, x: str, weight: Handle, bias: Handle | None) -> str:
        y = graph.node("MatMul", [x, self.turned(graph, weight)])[0]
        return y if bias is None else graph.node("Add", [y, self.vector(graph, bias)])[0]

    def table(self, graph: Graph, ids: str, table: Handle) -> str:
        """Rows of a table, float32."""
        return graph.node("Gather", [self.vector(graph, table), ids], axis=0)[0]


class Half(Level):
    name = "fp16"
    bits = 16.0
    keeps = "weights in half, computed in float32: half the disk"

    def turned(self, graph: Graph, handle: Handle) -> str:
        graph.kept(handle, "float16")
        parts = [(" half", np.float16, handle.shape[::-1])]
        (kept,) = graph.weight(f"{handle.name} turned", parts, lambda: [turn(half(handle))])
        return self.widened(graph, kept)

    def widened(self, graph: Graph, kept: str) -> str:
        return graph.node("Cast", [kept], to=1)[0]

    def table(self, graph: Graph, ids: str, table: Handle) -> str:
        if table.exact:
            return super().table(graph, ids, table)
        graph.kept(table, "float16")
        (kept,) = graph.weight(table.name, [(" half", np.float16, table.shape)], lambda: [half(table)])
        return self.widened(graph, graph.node("Gather", [kept, ids], axis=0)[0])


class Quantized(Level):
    """Tables by row."""

    def table(self, graph: Graph, ids: str, table: Handle) -> str:
        if table.exact:
            return super().table(graph, ids, table)
        rows, width = table.shape
        graph.kept(table, "int8 by row")
        parts = [(" rows", np.int8, (rows, width)), (" scales", np.float32, (rows, 1))]
        kept, scales = graph.weight(table.name, parts, lambda: encode.rows(read(table)))
        found = [graph.node("Gather", [each, ids], axis=0)[0] for each in (kept, scales)]
        return graph.node("Mul", [graph.node("Cast", [found[0]], to=1)[0], found[1]])[0]


class Int8(Quantized):
    """MatMulIntegerToFloat, which has one scale for all tokens of a batch: each is brought to the same range first.

    Without that a text's label depends on its neighbours, and a prompt's logits on whether it came in pieces.
    """

    name = "int8"
    bits = 8.0
    keeps = "weights by output channel, activations in 8 bits: fastest"

    def quantized(self, graph: Graph, weight: Handle) -> tuple[str, str]:
        """The weight as int8 (in, out) and the scales of its columns."""
        out, width = weight.shape
        graph.kept(weight, "int8 by output channel")
        parts = [(" columns", np.int8, (width, out)), (" scales", np.float32, (out,))]

        def make() -> Sequence[encode.Array]:
            values, scales = encode.channels(read(weight))
            return turn(values), scales

        kept, scales = graph.weight(weight.name, parts, make)
        return kept, scales

    def product(self, graph: Graph, x: str, weight: Handle, bias: Handle | None) -> str:
        kept, scales = self.quantized(graph, weight)
        rounded, largest = graph.once(f"rounded {x}", lambda: rounded_by_row(graph, x))
        step, middle = activation_steps(graph)
        inputs = [rounded, kept, step, scales, middle]
        y = graph.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT)[0]
        y = graph.node("Mul", [y, largest])[0]
        return y if bias is None else graph.node("Add", [y, self.vector(graph, bias)])[0]


class Blocks(Quantized):
    """MatMulNBits: `width` bits a weight."""

    width = 8
    adds_bias = True

    def product(self, graph: Graph, x: str, weight: Handle, bias: Handle | None) -> str:
        out, columns = weight.shape
        blocks = -(-columns // BLOCK)
        graph.kept(weight, f"int{self.width} by block of {BLOCK}")
        parts = [
            (" blocks", np.uint8, (out, blocks, BLOCK * self.width // 8)),
            (" scales", np.float32, (out, blocks)),
        ]

        def make() -> Sequence[encode.Array]:
            return encode.blocks(read(weight), self.width, BLOCK)

        kept, scales = graph.weight(weight.name, parts, make)
        attributes = {"K": columns, "N": out, "bits": self.width, "block_size": BLOCK, "accuracy_level": 4}
        inputs = [x, kept, scales, "", "", self.vector(graph, bias) if bias else ""]
        return graph.node("MatMulNBits", inputs, domain=MICROSOFT, **attributes)[0]


class Int8W(Blocks):
    name = "int8w"
    bits = 8 + 32 / BLOCK
    keeps = f"weights by block of {BLOCK}: nearer than int8, and slower"


class Int4(Blocks):
    name = "int4"
    bits = 4 + 32 / BLOCK
    keeps = "the same in 4 bits, embeddings in 8: smallest"
    width = 4


LEVELS: dict[str, Level] = {level.name: level for level in (Level(), Half(), Int8(), Int8W(), Int4())}


def check_levels(wanted: Sequence[str]) -> None:
    """Raise RequestError for a level that is not known, or named twice, and where none is."""
    for level in wanted:
        if level not in LEVELS:
            raise RequestError(f"{level!r} is no level of ONNX", hint=f"there are {', '.join(LEVELS)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise RequestError("name each level once", hint=f"there are {', '.join(LEVELS)}")


def rounded_by_row(graph: Graph, x: str) -> list[str]:
    """x (…, width) over the greatest absolute value of each row, in 8 bits, and those values (…, 1)."""
    greatest = graph.node(
        "ReduceMax", [graph.node("Abs", [x])[0], graph.constant([-1], np.int64)], keepdims=1
    )
    (largest,) = graph.node("Max", [*greatest, graph.constant(LEAST, np.float32)])
    even = graph.node("Div", [x, largest])
    return [*graph.node("QuantizeLinear", [*even, *activation_steps(graph)]), largest]


def activation_steps(graph: Graph) -> tuple[str, str]:
    """What one step of a rounded activation is worth, and the number of zero: −1 to 1 in uint8."""
    return graph.constant(1 / 127, np.float32), graph.constant(128, np.uint8)


def read(handle: Handle) -> encode.Array:
    return np.asarray(handle.read(), np.float32)


def turn(x: encode.Array) -> encode.Array:
    return np.ascontiguousarray(x.T)


def half(handle: Handle) -> encode.Array:
    """The weight in half. Raises ConversionError for values beyond its range."""
    with np.errstate(over="ignore"):
        found = read(handle).astype(np.float16)
    if not np.isfinite(found).all():
        raise ConversionError(
            f"{handle.name} has values beyond 65504, the largest of fp16", hint="leave that level out"
        )
    return found
