"""One row of a family's table: a tensor's names on both sides and what happens to its values in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """A change of values between a checkpoint and GGUF, with its inverse."""

    to_gguf: Callable[[Array], Array]
    to_checkpoint: Callable[[Array], Array]


@dataclass(frozen=True)
class Weight:
    """`source` is the name in the checkpoint, `target` the one in GGUF, `shape` as the checkpoint stores it."""

    source: str
    target: str
    shape: tuple[int, ...]
    layout: Layout | None = None


def rope_rows(heads: int) -> Layout:
    """The rows of a query or key projection: GGUF's `llama` rotates neighbours where checkpoints rotate halves.

    Within each head, checkpoint row (half, i) becomes GGUF row (i, half). Works for weights and biases.
    """

    def reorder(x: Array, first: int, second: int) -> Array:
        size = len(x) // heads
        parts = x.reshape(heads, first, second, *x.shape[1:]) if size else x
        return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(x.shape)

    return Layout(
        to_gguf=lambda x: reorder(x, 2, len(x) // heads // 2),
        to_checkpoint=lambda x: reorder(x, len(x) // heads // 2, 2),
    )
