"""Rotary positions: their frequencies as config.json describes them (Su et al., 2021, arXiv:2104.09864)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.errors import ConversionError

from .config import need, rope_of
from .weight import Array


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's stretching of the slow rotations (its model card's reference code)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class Rope:
    """`linear` divides every frequency; `llama3` only the slow ones."""

    base: float
    linear: float = 1.0
    llama3: Llama3Rope | None = None

    def unscaled(self, size: int) -> Array:
        """Radians a position, one a pair of a head's `size` rotated elements, float64: (size / 2,)."""
        return np.asarray(self.base ** -(np.arange(0, size, 2) / size))

    def divisors(self, size: int) -> Array:
        """What each frequency is divided by: for llama3 1 where fast, `factor` where slow, smooth in between."""
        if self.llama3 is None:
            return np.full(size // 2, self.linear)
        stretch = self.llama3
        wavelengths = 2 * math.pi / self.unscaled(size)
        smooth = (stretch.original_context / wavelengths - stretch.low_freq_factor) / (
            stretch.high_freq_factor - stretch.low_freq_factor
        )
        smooth = np.clip(smooth, 0, 1)
        return np.asarray(1 / ((1 - smooth) / stretch.factor + smooth))

    def frequencies(self, size: int) -> Array:
        """Radians a position as the model uses them: (size / 2,)."""
        return np.asarray(self.unscaled(size) / self.divisors(size))


def read_rope(raw: Mapping[str, Any]) -> Rope:
    """Out of config.json. Raises ConversionError for what is missing or not possible, and for other scalings."""
    rope, kind, base = rope_of(raw)
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        return Rope(base, linear=need(rope, "factor", float))
    if kind == "llama3":
        stretch = Llama3Rope(
            need(rope, "factor", float),
            need(rope, "low_freq_factor", float),
            need(rope, "high_freq_factor", float),
            need(rope, "original_max_position_embeddings"),
        )
        if stretch.high_freq_factor <= stretch.low_freq_factor:
            raise ConversionError(
                f"config.json's rope scaling has high_freq_factor {stretch.high_freq_factor:g}",
                hint=f"it has to be above low_freq_factor, {stretch.low_freq_factor:g}",
            )
        return Rope(base, llama3=stretch)
    raise ConversionError(f"rope scaling {kind!r} is not known for this family", hint="known: linear, llama3")
