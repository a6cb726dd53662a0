"""Blocks of ggml's quantized types as float32, by ggml's own functions."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.binding import llama
from edge.errors import ConversionError
from edge.gguf_header import TYPES

NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}
SIZES = {name: (elements, size) for name, elements, size in TYPES.values()}


class Traits(ctypes.Structure):
    """The beginning of ggml.h's struct ggml_type_traits."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("elements", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def dequantize(blocks: NDArray[np.uint8], kind: str, out: NDArray[np.float32]) -> None:
    """Whole blocks of a type such as "Q4_K" into `out`, as many elements as they hold; both are contiguous.

    Raises ConversionError for a type that ggml has no values of.
    """
    elements, size = SIZES[kind]
    if len(blocks) // size * elements != len(out):
        raise ValueError(f"{len(blocks)} bytes of {kind} are not {len(out)} elements")
    to_float(kind)(blocks.ctypes.data, out.ctypes.data, len(out))


@cache
def to_float(kind: str) -> Any:
    """ggml's function (blocks, out, elements). Raises ConversionError where the installed ggml has none."""
    lib, number = llama(), NUMBERS[kind]
    if number < lib.GGML_TYPE_COUNT:
        get = lib._lib["ggml_get_type_traits"]  # llama-cpp-python binds none of ggml's own functions
        get.restype, get.argtypes = ctypes.POINTER(Traits), [ctypes.c_int]
        traits = get(number).contents
        # also a guard against another layout of the struct in another version
        if (traits.elements, traits.bytes) == SIZES[kind] and traits.to_float:
            return traits.to_float
    raise ConversionError(
        f"the installed llama.cpp has no way to read the type {kind}", hint="get another level of this model"
    )
