"""What the levels of ONNX take."""

from __future__ import annotations

from dataclasses import dataclass

from .levels import LEVELS


@dataclass(frozen=True)
class Level:
    """Its name, bits a weight of a matrix, scales included, and what it keeps."""

    level: str
    bits_per_weight: float
    keeps: str


def level_table() -> tuple[Level, ...]:
    return tuple(Level(name, level.bits, level.keeps) for name, level in LEVELS.items())
