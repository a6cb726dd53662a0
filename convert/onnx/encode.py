"""Weights as small integers with scales. All are symmetric: 0 stays 0, and no kernel subtracts an offset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Without VNNI the kernels add two products of uint8 and int8 in 16 bits, which hold 2 · 255 · 64.
CHANNEL = 64
ROW = 127
# A scale that cuts off the largest values and rounds all others less may be nearer on the whole: these parts of the
# largest value are tried. With 8 bits all others are rounded too little for that to pay.
CLIPS = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7), 8: (1.0,)}
TOGETHER = 2048  # blocks a thread encodes at once: they and what it computes from them fit its cache


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
    x = padded.reshape(-1, size)
    stored: Array = np.empty(x.shape, np.uint8)
    scales = np.empty(len(x), np.float32)

    def encode(start: int) -> None:
        part = slice(start, start + TOGETHER)
        values, scales[part] = nearest(np.ascontiguousarray(x[part].T), middle, CLIPS[bits])
        stored[part] = (values + middle).astype(np.uint8).T

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for _ in threads.map(encode, range(0, len(x), TOGETHER)):
            pass
    stored = stored.reshape(out, count, size)
    if bits == 4:
        stored = stored[..., 0::2] | stored[..., 1::2] << 4
    return stored, scales.reshape(out, count)


def nearest(x: Array, middle: int, clips: Sequence[float]) -> tuple[Array, Array]:
    """Integers from −middle to middle − 1 and a scale (columns,) for every column, of the least squared error found.

    The value farthest from 0 is put at −middle, the end with one step more; of the integers that a trial gives, the
    scale is the one that fits best: Σ x·q / Σ q².
    """
    farthest = x[np.abs(x).argmax(axis=0), np.arange(x.shape[1])]
    tried, fitted = (
        np.zeros_like(farthest),
        np.zeros_like(farthest),
    )  # the best trial's scale, and what fits it
    least = np.full_like(farthest, np.inf)
    q, scratch = np.empty_like(x), np.empty_like(x)
    for clip in clips:
        scale = farthest * np.float32(-clip / middle)
        rounded(x, scale, middle, q)
        squares = np.multiply(q, q, out=scratch).sum(axis=0)
        fit = total(np.multiply(x, q, out=scratch)) / np.where(squares == 0, np.float32(1), squares)
        np.subtract(x, np.multiply(q, fit, out=scratch), out=scratch)
        error = total(np.square(scratch, out=scratch))
        better = error < least
        least[better], fitted[better], tried[better] = error[better], fit[better], scale[better]
    return rounded(x, tried, middle, q), fitted


def rounded(x: Array, scale: Array, middle: int, out: Array) -> Array:
    """x over the scale of its column, to the nearest integers from −middle to middle − 1, into `out`."""
    np.rint(np.divide(x, np.where(scale == 0, np.float32(1), scale), out=out), out=out)
    return np.asarray(np.clip(out, -middle, middle - 1, out=out))


def total(x: Array) -> Array:
    """The sum of each column of rows that are a multiple of 8."""
    sums = x.reshape(-1, 8, x.shape[1]).sum(axis=0)
    while len(sums) > 1:
        sums = sums[0::2] + sums[1::2]
    return np.asarray(sums[0])
