"""LongRoPE: a divisor for every rotation, one set for short texts and one for long (arXiv:2402.13753)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.errors import ConversionError
from edge.gguf_header import Header

from .config import need, rope_of
from .from_header import Read, decimal, number
from .rope import Rope
from .weight import Array

LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


@dataclass(frozen=True)
class LongRope:
    """The divisors, f32 as decimals, (rotated elements / 2,) each.

    `scale` multiplies queries and keys, whichever set is used.
    """

    base: float
    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    scale: float

    def frequencies(self, size: int, tokens: int) -> Array:
        """Radians a position for a text of so many tokens, float64: (size / 2,).

        transformers takes the long divisors where the text (so far) is longer than the original context; llama.cpp
        where the context it was opened with is, however short the text. They agree while both are on one side.
        """
        divisors = np.array(self.long if tokens > self.original_context else self.short, np.float32)
        return np.asarray(Rope(self.base).unscaled(size) / divisors)


def read_longrope(raw: Mapping[str, Any], size: int, context: int) -> LongRope | None:
    """Out of config.json; None where nothing is stretched. `size` elements of a head rotate.

    Raises ConversionError for what is missing or is another scaling. Phi-3's first configs call it su or yarn.
    """
    rope, kind, base = rope_of(raw)
    if kind == "default":
        return None
    if kind not in ("longrope", "su", "yarn"):
        raise ConversionError(f"rope scaling {kind!r} is not known for this family", hint="known: longrope")
    # transformers lets the outer key win
    key = "original_max_position_embeddings"
    original = need({key: rope.get(key) if raw.get(key) is None else raw[key]}, key)
    try:
        short, long = (tuple(decimal(float(x)) for x in rope[key]) for key in ("short_factor", "long_factor"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConversionError(f"config.json's rope scaling {kind!r} lacks a usable {error}") from None
    if rope.get("attention_factor") is not None:
        scale = need(rope, "attention_factor", float)
    else:
        factor = need(rope, "factor", float) if rope.get("factor") else context / original
        scale = usual_scale(factor, original)
    if {len(short), len(long)} != {size // 2} or not all(0 < x < math.inf for x in (*short, *long)):
        raise ConversionError(
            f"config.json has {len(short)} short and {len(long)} long rope factors",
            hint=f"{size // 2} of each are needed, above 0",
        )
    return LongRope(base, short, long, original, scale)


def usual_scale(factor: float, original_context: int) -> float:
    """√(1 + ln factor / ln original context), the paper's; 1 where nothing is stretched."""
    return math.sqrt(1 + math.log(factor) / math.log(max(2, original_context))) if factor > 1 else 1.0


def longrope_metadata(rope: LongRope) -> dict[str, int | float | str]:
    """GGUF keys beside rope.freq_base."""
    return {
        "rope.scaling.original_context_length": rope.original_context,
        "rope.scaling.attn_factor": rope.scale,
    }


def longrope_tensors(rope: LongRope) -> dict[str, Array]:
    """The divisors as GGUF's tensors, f32."""
    return {LONG: np.array(rope.long, np.float32), SHORT: np.array(rope.short, np.float32)}


def longrope_fields(header: Header, read: Read) -> dict[str, Any]:
    """config.json's keys of a file that has the tensors of divisors."""
    original = header.get("{arch}.rope.scaling.original_context_length", int)
    context = header.get("{arch}.context_length", int)
    if original < 1:
        raise ConversionError(
            f"rope.scaling.original_context_length is {original}", hint="it has to be above 0"
        )
    fields: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": [decimal(x) for x in read(SHORT).reshape(-1).tolist()],
        "long_factor": [decimal(x) for x in read(LONG).reshape(-1).tolist()],
    }
    scale = number(header, "{arch}.rope.scaling.attn_factor", 1.0)
    # An f32 of the usual value is not the value: left out, it is computed again.
    if not math.isclose(scale, usual_scale(context / original, original), rel_tol=1e-6):
        fields["attention_factor"] = scale
    return {"original_max_position_embeddings": original, "rope_scaling": fields}
