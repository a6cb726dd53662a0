"""YaRN: rotary positions stretched beyond the trained context (Peng et al., 2023, arXiv:2309.00071)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.errors import ConversionError
from edge.gguf_header import Header

from .config import need, rope_of
from .from_header import number
from .rope import Rope
from .weight import Array

# Rotations within the trained context above which a frequency stays, below which it is divided by the factor:
# the paper's values. GGUF has keys for others, but llama.cpp reads them for few architectures.
FAST, SLOW = 32.0, 1.0
MOST_FACTOR = 1 << 10  # the largest known is 32


@dataclass(frozen=True)
class Yarn:
    """`attention` multiplies queries and keys; without it, it follows from the factor."""

    base: float
    factor: float
    original_context: int
    attention: float | None = None

    @property
    def usual_attention(self) -> float:
        """0.1 · ln factor + 1, the paper's."""
        return 0.1 * math.log(self.factor) + 1

    @property
    def scale(self) -> float:
        """What queries and keys are multiplied by."""
        return self.usual_attention if self.attention is None else self.attention

    def frequencies(self, size: int) -> Array:
        """Radians a position as the model uses them, float64: (size / 2,)."""
        plain = Rope(self.base).unscaled(size)

        def pair(rotations: float) -> float:
            """The pair of elements that turns so often within the trained context."""
            return (
                size * math.log(self.original_context / (rotations * 2 * math.pi)) / (2 * math.log(self.base))
            )

        first, last = max(math.floor(pair(FAST)), 0), min(math.ceil(pair(SLOW)), size - 1)
        stretched = np.clip((np.arange(size // 2) - first) / max(0.001, last - first), 0, 1)
        return np.asarray(plain / self.factor * stretched + plain * (1 - stretched))


def read_yarn(raw: Mapping[str, Any]) -> Yarn:
    """Out of config.json. Raises ConversionError for what is missing and what llama.cpp has no place for."""
    rope, _, base = rope_of(raw)
    usual = {"beta_fast": (None, FAST), "beta_slow": (None, SLOW), "truncate": (None, True)}
    for key, values in (usual | {"mscale": (None,), "mscale_all_dim": (None,)}).items():
        if rope.get(key) not in values:
            raise ConversionError(
                f"config.json's rope scaling has {key} {rope[key]!r}",
                hint="llama.cpp computes yarn for this family without it",
            )
    found = Yarn(
        base=base,
        factor=need(rope, "factor", float, most=MOST_FACTOR),
        original_context=need(rope, "original_max_position_embeddings"),
        attention=None if rope.get("attention_factor") is None else need(rope, "attention_factor", float),
    )
    if found.factor < 1 or found.base <= 1:
        raise ConversionError(f"config.json's rope scaling {dict(rope)} is not possible")
    return found


def yarn_metadata(yarn: Yarn) -> dict[str, int | float | str]:
    """GGUF keys beside rope.freq_base. llama.cpp multiplies by the usual attention factor itself."""
    fields: dict[str, int | float | str] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": yarn.factor,
        "rope.scaling.original_context_length": yarn.original_context,
    }
    if yarn.attention is not None:
        fields["rope.scaling.attn_factor"] = yarn.attention / yarn.usual_attention
    return fields


def yarn_fields(header: Header) -> dict[str, Any]:
    """config.json's rope_theta and rope_scaling of a file whose rope.scaling.type is yarn."""
    yarn = Yarn(
        number(header, "{arch}.rope.freq_base", 10000.0),
        number(header, "{arch}.rope.scaling.factor"),
        header.get("{arch}.rope.scaling.original_context_length", int),
    )
    fields: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": yarn.original_context,
    }
    if header.get("{arch}.rope.scaling.attn_factor", float, None) is not None:
        attention = number(header, "{arch}.rope.scaling.attn_factor") * yarn.usual_attention
        fields["attention_factor"] = float(f"{attention:.6g}")  # all that an f32 holds for sure
    return {"rope_theta": yarn.base, "rope_scaling": fields}
