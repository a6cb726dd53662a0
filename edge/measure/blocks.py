"""Weights of any type that this build of llama.cpp multiplies: valid blocks, cheap to make in any number."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.binding import llama
from edge.gguf_header import TYPES

NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
SIZES = {name: (elements, size) for name, elements, size in TYPES.values()}
# Kept for sums, or of activations: no matrix of a model is of these
NO_WEIGHTS = {"F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K"}
# ggml searches tables for seconds before it encodes one block of these. Any bits are a valid block of them but for
# the scale, an f16 in the first bytes, or in the top four bits of the last four numbers (ggml-common.h).
SEARCHED = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}
SCALE = 0x2000  # 0.0078 in f16
TILE = 4096  # weights


def kinds() -> tuple[str, ...]:
    """The types of weights that the installed ggml has."""
    return tuple(
        name
        for number, (name, _, _) in TYPES.items()
        if name not in NO_WEIGHTS and number < llama().GGML_TYPE_COUNT
    )


def bits(kind: str) -> float:
    """Bits a weight."""
    elements, size = SIZES[kind]
    return 8 * size / elements


def size_of(kind: str, rows: int, width: int) -> int:
    """Bytes of a matrix."""
    elements, size = SIZES[kind]
    return rows * width // elements * size


def weights(kind: str, count: int) -> bytes:
    """So many weights: one tile over and over."""
    size = size_of(kind, 1, count)
    one = tile(kind).tobytes()
    return (one * (size // len(one) + 1))[:size]


@cache
def tile(kind: str) -> NDArray[np.uint8]:
    """`TILE` weights, normally distributed where ggml encodes them."""
    elements, size = SIZES[kind]
    random = np.random.default_rng(0)
    if kind in SEARCHED:
        return random_blocks(kind, TILE // elements, size)
    values = (random.standard_normal(TILE) / 20).astype(np.float32)
    importance = np.ones(TILE, np.float32)
    out = np.zeros(TILE // elements * size, np.uint8)
    encode = quantizer()
    encode(NUMBERS[kind], values.ctypes.data, out.ctypes.data, 0, 1, TILE, importance.ctypes.data)
    return out


def random_blocks(kind: str, count: int, size: int) -> NDArray[np.uint8]:
    blocks = np.random.default_rng(0).integers(0, 256, (count, size), np.uint8)
    if kind == "IQ1_M":
        scales = blocks[:, -8:].view("<u2")
        scales &= 0x0FFF
        scales[:, 3] |= SCALE & 0xF000
    else:
        blocks[:, :2].view("<u2")[:] = SCALE
    return blocks.reshape(-1)


@cache
def quantizer() -> Any:
    """ggml's ggml_quantize_chunk (ggml.h), a pointer of our own."""
    function = llama()._lib["ggml_quantize_chunk"]
    function.restype = ctypes.c_size_t
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, count, count, count, pointer]
    return function
