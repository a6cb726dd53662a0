"""Weights as small integers with scales. All are symmetric: 0 stays 0, and no kernel subtracts an offset."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Without VNNI the kernels add two products of uint8 and int8 in 16 bits, which hold 2 · 255 · 64.
CHANNEL = 64
ROW = 127
# A scale that cuts off the largest values and rounds all others less may be nearer on the whole: these parts of the
# largest value are tried.
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def rows(table: Array) -> tuple[Array, Array]:
    """int8 (rows, width) and a scale (rows, 1) of each."""
    return scaled(table, ROW)


def channels(weight: Array) -> tuple[Array, Array]:
    """int8 (out, in) within ±64, and a scale (out,) of each output channel."""
    values, scales = scaled(weight, CHANNEL)
    return values, scales[:, 0]


def scaled(x: Array, most: int) -> tuple[Array, Array]:
    """int8 within ±most and a scale for every row of `x`, the greatest value at ±most."""
    scales = np.abs(x).max(axis=1, keepdims=True) / most
    values = np.rint(x / np.where(scales > 0, scales, 1)).clip(-most, most)
    return values.astype(np.int8), scales.astype(np.float32)


def blocks(weight: Array, bits: int, size: int) -> tuple[Array, Array]:
    """As MatMulNBits takes it: uint8 (out, blocks, size · bits / 8), 2^(bits − 1) being 0, and scales (out, blocks).

    Two 4-bit values stand in a byte, the first in its low half. What is missing at the end of a row is 0.
    """
    out, width = weight.shape
    count, middle = -(-width // size), 1 << bits - 1
    padded = np.zeros((out, count * size), np.float32)
    padded[:, :width] = weight
    values, scales = nearest(padded.reshape(-1, size), middle)
    stored: Array = (values + middle).astype(np.uint8).reshape(out, count, size)
    if bits == 4:
        stored = stored[..., 0::2] | stored[..., 1::2] << 4
    return stored, scales.reshape(out, count)


def nearest(x: Array, middle: int) -> tuple[Array, Array]:
    """Integers from −middle to middle − 1 and a scale (rows,) for every row, of the least squared error found.

    The value farthest from 0 is put at −middle, the end with one step more; of the integers that a trial gives, the
    scale is the one that fits best: Σ x·q / Σ q².
    """
    rows = np.arange(len(x))
    farthest = x[rows, np.abs(x).argmax(axis=1)]
    best: Array = np.zeros(x.shape, np.int16)
    best_scale = np.zeros(len(x), np.float32)
    least = np.full(len(x), np.inf, np.float32)
    for clip in CLIPS:
        scale = farthest * np.float32(-clip / middle)
        q = np.rint(x / np.where(scale == 0, 1, scale)[:, None]).clip(-middle, middle - 1)
        squares = (q * q).sum(axis=1)
        fitted = (x * q).sum(axis=1) / np.where(squares == 0, 1, squares)
        error = np.square(x - fitted[:, None] * q).sum(axis=1)
        better = error < least
        least[better], best_scale[better], best[better] = error[better], fitted[better], q[better]
    return best, best_scale
