"""ggml's tensors as they lie in memory, for callbacks that are handed their addresses.

llama.cpp keeps this layout to itself (ggml.h, struct ggml_tensor), so it is held to tensors made for the purpose
before any other is read.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.binding import llama
from edge.errors import EngineError

ROOM = 1 << 20  # bytes for the tensors made to look at
F32, I32 = 0, 26  # ggml.h, enum ggml_type


class Tensor(ctypes.Structure):
    """struct ggml_tensor as far as it is read; `ne` and `nb` are elements and bytes, rows' own length first."""

    _fields_ = (
        ("type", c_int),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int),
        ("op_params", c_int32 * 16),
        ("flags", c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", c_char * 64),
    )


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", ctypes.c_bool))


@dataclass(frozen=True)
class Ops:
    """This ggml's numbers of the two matrix products, and its test for a buffer in the process's own memory."""

    mul_mat: int
    mul_mat_id: int
    is_host: Any


@cache
def ops() -> Ops:
    """Raises EngineError where the installed ggml's tensors do not lie as `Tensor` says."""
    try:
        return looked_at(llama()._lib)
    except AttributeError as error:
        raise strange(f"it lacks a function ({error})") from None


def looked_at(lib: Any) -> Ops:
    def function(name: str, result: Any, *arguments: Any) -> Any:
        pointer = lib[name]  # a pointer of our own: attributes are shared with llama-cpp-python
        pointer.restype, pointer.argtypes = result, arguments
        return pointer

    init = function("ggml_init", c_void_p, InitParams)
    new = function("ggml_new_tensor", c_void_p, c_void_p, c_int, c_int, ctypes.POINTER(c_int64))
    product = function("ggml_mul_mat", c_void_p, *(c_void_p,) * 3)
    chosen = function("ggml_mul_mat_id", c_void_p, *(c_void_p,) * 4)
    set_name = function("ggml_set_name", c_void_p, c_void_p, c_char_p)
    get_name = function("ggml_get_name", c_void_p, c_void_p)
    get_data = function("ggml_get_data", c_void_p, c_void_p)
    op_name = function("ggml_op_name", c_char_p, c_int)
    free = function("ggml_free", None, c_void_p)

    context = init(InitParams(ROOM, None, False))
    if not context:
        raise EngineError("ggml has no memory for its tensors", hint="close other programs")
    try:

        def make(kind: int, *shape: int) -> Any:
            return new(context, kind, len(shape), (c_int64 * len(shape))(*shape))

        weight, x = make(F32, 7, 5), make(F32, 7, 3)
        experts, rows, ids = make(F32, 7, 5, 4), make(F32, 7, 2, 3), make(I32, 2, 3)
        set_name(weight, b"edge.weight")
        dense, sparse = product(context, weight, x), chosen(context, experts, rows, ids)
        first, one, many = (Tensor.from_address(address) for address in (weight, dense, sparse))
        agrees = (
            (first.type, Tensor.from_address(ids).type) == (F32, I32)
            and (list(first.ne), list(first.nb)) == ([7, 5, 1, 1], [4, 28, 140, 140])
            and first.data == get_data(weight)
            and first.name == b"edge.weight"
            and weight + Tensor.name.offset == get_name(weight)
            and list(one.ne) == [5, 3, 1, 1]
            and list(one.src[:3]) == [weight, x, None]
            and list(many.src[:3]) == [experts, rows, ids]
            and (op_name(one.op), op_name(many.op)) == (b"MUL_MAT", b"MUL_MAT_ID")
        )
        if not agrees:
            raise strange("its tensors lie differently in memory")
        return Ops(one.op, many.op, function("ggml_backend_buffer_is_host", ctypes.c_bool, c_void_p))
    finally:
        free(context)


def strange(what: str) -> EngineError:
    return EngineError(
        f"activations cannot be read out of this llama.cpp: {what}",
        hint="update edge-runtime, or use llama-imatrix",
    )


def view(tensor: Tensor, dtype: str = "<f4") -> NDArray[Any]:
    """The tensor's numbers where they are, (ne3, ne2, ne1, ne0); they live as long as the callback."""
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    item = np.dtype(dtype).itemsize
    extent = sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + item
    memory = (c_char * extent).from_address(tensor.data)
    numbers: NDArray[Any] = np.ndarray(shape, dtype, memory, strides=strides)
    return numbers
