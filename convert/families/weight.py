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
    """A change of values between a checkpoint and GGUF, with its inverse.

    `rows` is how many rows (or elements of a vector) change together: both functions take any multiple of them,
    so that a large tensor can pass in pieces. 0 takes a tensor as a whole.
    """

    to_gguf: Callable[[Array], Array]
    to_checkpoint: Callable[[Array], Array]
    rows: int = 1


@dataclass(frozen=True)
class Weight:
    """`source` is the name in the checkpoint, `target` the one in GGUF, `shape` as the checkpoint stores it.

    `gguf_shape` (row length last, too) is there where the layout changes it. What is not `required` may be absent
    from a checkpoint; it is absent from the file then. `float32` stays f32 at every level, as vectors do.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    layout: Layout | None = None
    gguf_shape: tuple[int, ...] | None = None
    required: bool = True
    float32: bool = False

    @property
    def target_shape(self) -> tuple[int, ...]:
        return self.gguf_shape or self.shape


def rope_rows(head_size: int) -> Layout:
    """The rows of a query or key projection: GGUF's `llama` rotates neighbours where checkpoints rotate halves.

    Within each head, checkpoint row (half, i) becomes GGUF row (i, half). Works for weights and biases.
    """

    def reorder(x: Array, first: int, second: int) -> Array:
        parts = x.reshape(-1, first, second, *x.shape[1:])
        return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(x.shape)

    return Layout(
        to_gguf=lambda x: reorder(x, 2, head_size // 2),
        to_checkpoint=lambda x: reorder(x, head_size // 2, 2),
        rows=head_size,
    )
