"""A decoder that reads whole texts, as a classifier does: its pass without a cache.

The operations are those of the decoder with a cache, of which nothing is past. What is not seen of later tokens is
not seen of padding either, which stands at the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .decoder_ops import PAST, DecoderOps, places, total
from .emit import EMITTERS, Emission
from .graph import MICROSOFT
from .values import Value


class WholeTextOps(DecoderOps):
    """One pass over whole texts."""

    def attention(
        self, query: Value, key: Value, value: Value, *, cap: float | None = None, **settings: Any
    ) -> Value:
        """(batch, tokens, heads · size)."""
        cached = super().attention(query, key, value, **settings)
        attributes = cached.attributes["settings"] | ({"softcap": cap} if cap else {})
        return self.value("whole_attention", query, key, value, settings=attributes)


def attention(emission: Emission, value: Value) -> str:
    def nothing() -> str:
        zero = emission.graph.constant(0, np.int64)
        emission.graph.node("Identity", [zero], outputs=[PAST])
        return PAST

    emission.made_once(PAST, nothing)
    three = [emission.name(one) for one in value.operands]
    inputs = [*three, "", "", places(emission), total(emission)]
    outputs = [f"whole_{value.index}{end}" for end in ("", "_key", "_value")]
    emission.graph.node(
        "GroupQueryAttention", inputs, outputs=outputs, domain=MICROSOFT, **value.attributes["settings"]
    )
    return outputs[0]


EMITTERS["whole_attention"] = attention
