"""The operations of a decoder's graph with a KV cache: a family's pass, written down for tokens after those before.

Heads are not split here: ONNX Runtime's `RotaryEmbedding` and `GroupQueryAttention` take (batch, tokens, heads · size)
and say how many heads these are. Positions follow from PAST, the tokens that the cache holds already; their sines are
computed in float64, as the reference does, for the new tokens only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .attention import FLOAT, waves
from .emit import EMITTERS, Emission
from .graph import MICROSOFT
from .levels import LEVELS
from .lower import RULES, Fused, Uses, operands_of
from .ops import Ops
from .values import Array, Handle, Value

IDS, PAST = "input_ids", "past_length"
INT32 = 6  # onnx.proto, TensorProto.DataType


def past_and_present(layer: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """Names of a layer's (past key, past value) and (present key, present value)."""
    past, present = f"past_key_values.{layer}", f"present.{layer}"
    return (f"{past}.key", f"{past}.value"), (f"{present}.key", f"{present}.value")


class DecoderOps(Ops):
    """One pass; attention reads and writes the cache of the layer whose turn it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = 0

    def split_heads(self, x: Value, heads: int) -> Value:
        """(batch, tokens, heads · size), marked as heads."""
        return self.value("cached_heads", x, heads=heads)

    def join_heads(self, x: Value) -> Value:
        return x

    def rms_norm(self, x: Value, weight: Handle, epsilon: float) -> Value:
        """Of each head where `x` is heads."""
        if "heads" in x.attributes:
            heads = x.attributes["heads"]
            return self.value("norm_of_heads", x, weight, epsilon=epsilon, heads=heads)
        return self.value("rms_norm", x, weight, epsilon=epsilon)

    def rope(self, x: Value, frequencies: Array, scale: float = 1.0) -> Value:
        heads = x.attributes["heads"]
        return self.value("cached_rope", x, frequencies=frequencies, scale=scale, heads=heads)

    def attention(  # type: ignore[override]  # a decoder's: to what came before, in a window
        self, query: Value, key: Value, value: Value, *, window: int | None = None, scale: float | None = None
    ) -> Value:
        """(batch, tokens, heads · size)."""
        self.layers += 1
        attributes: dict[str, Any] = {
            "num_heads": query.attributes["heads"],
            "kv_num_heads": key.attributes["heads"],
            "local_window_size": window or -1,
        }
        if scale is not None:
            attributes["scale"] = scale
        return self.value("cached_attention", query, key, value, layer=self.layers - 1, settings=attributes)

    def newest(self, x: Value) -> Value:
        """(batch, width) of the last token."""
        return self.value("newest", x)

    def output(self, x: Value, weight: Handle, *, tied: bool) -> Value:
        """Logits (batch, vocabulary); `tied`: the weight is the table of embeddings as well."""
        return self.value("output", x, weight, tied=tied)


def new_tokens(emission: Emission) -> str:
    """int64 (1,): how many there are."""
    return emission.made_once("new tokens", lambda: emission.node("Shape", IDS, start=1, end=2))


def total(emission: Emission) -> str:
    """int32 (): tokens before and new ones."""

    def make() -> str:
        count = emission.node("Squeeze", new_tokens(emission))
        return emission.node("Cast", emission.node("Add", PAST, count), to=INT32)

    return emission.made_once("total", make)


def places(emission: Emission) -> str:
    """int32 (batch,): the place of the last token, which is how GroupQueryAttention asks for lengths."""

    def make() -> str:
        place = emission.node("Sub", total(emission), emission.graph.constant(1, np.int32))
        return emission.node("Expand", place, emission.node("Shape", IDS, start=0, end=1))

    return emission.made_once("places", make)


def rotation(emission: Emission, frequencies: Array, scale: float) -> tuple[str, str]:
    """Cosines and sines of the new tokens, float32 (tokens, pairs)."""

    def positions() -> str:
        zero, one = (emission.graph.constant(number, np.int64) for number in (0, 1))
        steps = emission.node("Range", zero, emission.node("Squeeze", new_tokens(emission)), one)
        return emission.node("Add", PAST, steps)

    return waves(emission, frequencies, scale, positions)


def rope(emission: Emission, value: Value) -> str:
    cos, sin = rotation(emission, value.attributes["frequencies"], value.attributes["scale"])
    inputs = [*value.operands, emission.ints(0), cos, sin]  # position 0 is the tables' first row
    return emission.fused("RotaryEmbedding", *inputs, num_heads=value.attributes["heads"])


def norm_of_heads(emission: Emission, value: Value) -> str:
    x, weight = value.operands
    heads = emission.node("Reshape", x, emission.ints(0, 0, value.attributes["heads"], -1))
    epsilon = value.attributes["epsilon"]
    normed = emission.node("SimplifiedLayerNormalization", heads, weight, axis=-1, epsilon=epsilon)
    return emission.node("Reshape", normed, emission.ints(0, 0, -1))


def rms_norm(emission: Emission, value: Value) -> str:
    epsilon = value.attributes["epsilon"]
    return emission.node("SimplifiedLayerNormalization", *value.operands, axis=-1, epsilon=epsilon)


def attention(emission: Emission, value: Value) -> str:
    layer, settings = value.attributes["layer"], value.attributes["settings"]
    past, present = past_and_present(layer)
    inputs = [*(emission.name(one) for one in value.operands), *past, places(emission), total(emission)]
    output = f"attention_{layer}"
    emission.graph.node(
        "GroupQueryAttention", inputs, outputs=[output, *present], domain=MICROSOFT, **settings
    )
    return output


def newest(emission: Emission, value: Value) -> str:
    return emission.node("Gather", *value.operands, emission.graph.constant(-1, np.int64), axis=1)


def output(emission: Emission, value: Value) -> str:
    """At int4 the output keeps 8 bits, as llama.cpp's levels of 4 bits keep 6: all of an answer goes through it."""
    x, weight = value.operands
    level = LEVELS["int8w"] if emission.level.name == "int4" else emission.level
    if not value.attributes["tied"]:
        return level.linear(emission.graph, emission.name(x), weight, None)
    if level.bits >= 16:  # one table on disk: Gemm multiplies by it as it lies
        return emission.node("Gemm", x, kept(emission, weight), transB=1)
    again = weight.changed(" as output", weight.shape, lambda table: table)
    return level.linear(emission.graph, emission.name(x), again, None)


def kept(emission: Emission, table: Handle) -> str:
    """The table of embeddings in float32, under the name by which the embedding is looked up."""
    level = emission.level
    if level.bits == 32:
        return level.vector(emission.graph, table)
    (half,) = emission.graph.weight(table.name, [], list)  # made by `Half.table`
    return emission.node("Cast", half, to=FLOAT)


def skipping(value: Value, uses: Uses) -> Fused | None:
    """rms_norm(x + y): SkipSimplifiedLayerNormalization, which gives the sum too."""
    added, weight = value.operands
    if added.kind != "add" or len(operands_of(added)) != 2:
        return None
    others = [other for other in uses[added.index] if other is not value]
    if any(other.index <= value.index for other in others):  # they would read the sum before it is there
        return None

    def emit(emission: Emission) -> str:
        number = emission.graph.count
        normed, summed = (f"SkipSimplifiedLayerNormalization_{number}{end}" for end in ("", "_sum"))
        inputs = [emission.name(one) for one in (*added.operands, weight)]
        outputs = [normed, "", "", summed] if others else [normed]
        if others:
            emission.names[added.index] = summed
        emission.graph.node(
            "SkipSimplifiedLayerNormalization", inputs, outputs=outputs, domain=MICROSOFT,
            epsilon=value.attributes["epsilon"],
        )  # fmt: skip
        return normed

    return Fused(operands_of(added), emit, (added,) if others else ())


EMITTERS |= {
    "cached_heads": lambda emission, value: emission.name(value.operands[0]),
    "cached_rope": rope,
    "norm_of_heads": norm_of_heads,
    "rms_norm": rms_norm,
    "cached_attention": attention,
    "newest": newest,
    "output": output,
}
RULES["rms_norm"] = [skipping]
