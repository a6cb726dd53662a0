"""Levels: the type each gives to each tensor, and the encoding into it; both are llama.cpp's own."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.binding import interrupts_held, llama, transcript, why
from edge.errors import ConversionError, RequestError
from edge.machine import host

from .ggml_types import NUMBERS
from .gguf import Entry, fits, row_bytes

Float32 = NDArray[np.float32]

FLOATS = ("f32", "f16", "bf16")
LEVELS = (
    *FLOATS,
    *("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_0", "q5_1", "q4_k_m", "q4_k_s", "q4_0", "q4_1"),
    *("iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs"),
    *("q2_k", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "tq1_0", "tq2_0", "mxfp4"),
)
# llama.cpp's names for the mixtures of types (enum llama_ftype) that are not MOSTLY_ and the level
NAMES = {"f32": "ALL_F32", "mxfp4": "MOSTLY_MXFP4_MOE"}
MAX_BUFFER = 16 << 20
F16_MAX = 65504


@dataclass(frozen=True)
class Settings:
    """What may differ from a level's own mixture, and the means.

    threads         0 takes all cores
    max_buffer      bytes of float32 weights in memory at once
    tensor_types    (regular expression, ggml type such as "q8_0") for quantized levels, the first match wins
    output_type     ggml type of `output.weight`; embedding_type of `token_embd.weight`
    prune_layers    layers to leave out
    types           GGUF tensor name → ggml type, of every tensor: a mixture of one's own in place of a level's
    importance      GGUF tensor name → mean squared activation of each input column, f32
    importance_fields   what a file says of it
    """

    threads: int = 0
    max_buffer: int = MAX_BUFFER
    tensor_types: Sequence[tuple[str, str]] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    prune_layers: Sequence[int] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    importance: Mapping[str, Float32] = field(default_factory=dict)
    importance_fields: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        return self.threads or host().cpu.cores


@dataclass(frozen=True)
class Mixture:
    """Tensor name → type; the tensors whose rows the level's own type does not divide; whether it needs importance."""

    types: Mapping[str, str]
    fell_back: tuple[str, ...] = ()
    needs_importance: bool = False


@cache
def levels() -> dict[str, int]:
    """The levels that the installed llama.cpp has, with its number for each."""
    numbers = {
        level: getattr(llama(), f"LLAMA_FTYPE_{NAMES.get(level, f'MOSTLY_{level.upper()}')}", None)
        for level in LEVELS
    }
    return {level: number for level, number in numbers.items() if number is not None}


def ggml_type(name: str) -> int:
    """The number of a tensor type. Raises RequestError for one that this llama.cpp does not have."""
    number = getattr(llama(), f"GGML_TYPE_{name.upper()}", None)
    if number is None or name.upper() not in NUMBERS:
        raise RequestError(
            f"{name!r} is no tensor type of this llama.cpp", hint="for example q8_0, q6_K or f16"
        )
    return int(number)


def float_types(level: str, entries: Sequence[Entry]) -> Mixture:
    """A level of floats."""
    return Mixture({entry.name: entry.type if entry.fixed else level.upper() for entry in entries})


def mixture(blank: Path, level: str, entries: Sequence[Entry], settings: Settings) -> Mixture:
    """What llama.cpp's quantizer would make of a GGUF file: its dry run reads the head alone.

    `blank` has the entries' head and may be empty after it. Raises RequestError for types that are unknown or do
    not divide the rows, ConversionError where llama.cpp refuses.
    """
    for name, kind in (
        ("output.weight", settings.output_type),
        ("token_embd.weight", settings.embedding_type),
    ):
        for entry in entries:
            if (
                kind
                and entry.name == name
                and ggml_type(kind) >= 0
                and not fits(kind.upper(), entry.shape[-1])
            ):
                raise RequestError(
                    f"{kind} does not divide {name}'s rows of {entry.shape[-1]}", hint="choose another type"
                )
    params, kept = parameters(level, settings)
    with interrupts_held(), transcript() as pieces:
        failed = llama().llama_model_quantize(os.fsencode(blank), b"", ctypes.byref(params))
    del kept
    if failed:
        raise ConversionError(f"llama.cpp makes no {level} of it: {why('it gives no reason')}")
    log = "".join(pieces)
    types = {entry.name: entry.type for entry in entries}
    found = re.findall(r"\[ *\d+/ *\d+\] +(\S+) +- \[[^]]*\], type = +\S+, size = .*?\n", log)
    if set(found) != set(types):
        raise ConversionError(
            "llama.cpp's quantizer no longer says which types it takes",
            hint="install the llama-cpp-python that this edge names",
        )
    changed = re.findall(r"\[ *\d+/ *\d+\] +(\S+) +- [^\n]*? -> +[\d.]+ MiB \((\w+)\)\n", log)
    types |= {name: kind.upper() for name, kind in changed}
    types |= {entry.name: entry.type for entry in entries if entry.fixed}
    fixed = {entry.name for entry in entries if entry.fixed}
    fallen = tuple(
        name
        for name in re.findall(r"warning: (\S+) +- ncols +\d+ not divisible by", log)
        if name not in fixed
    )
    return Mixture(types, fallen, "will require an imatrix" in log)


def parameters(level: str, settings: Settings) -> tuple[Any, list[Any]]:
    """The quantizer's parameters for a dry run, and the arrays they point to, which must outlive the call."""
    lib = llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.dry_run, params.allow_requantize = levels()[level], True, True
    if settings.output_type:
        params.output_tensor_type = ggml_type(settings.output_type)
    if settings.embedding_type:
        params.token_embedding_type = ggml_type(settings.embedding_type)
    kept: list[Any] = []

    def point(name: str, kind: Any, items: Sequence[Any]) -> None:
        array = (kind * len(items))(*items)
        kept.append(array)
        setattr(params, name, ctypes.cast(array, dict(params._fields_)[name]))

    if settings.tensor_types:
        pairs = [(pattern.encode(), ggml_type(name)) for pattern, name in settings.tensor_types]
        point("tt_overrides", lib.llama_model_tensor_override, [*pairs, (None, 0)])
    if settings.importance:
        rows = [
            (name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size)
            for name, values in settings.importance.items()
        ]
        point("imatrix", lib.llama_model_imatrix_data, [*rows, (None, None, 0)])
    return params, kept


@cache
def quantizer() -> tuple[Callable[..., int], Callable[[int], bool], Callable[[int], None]]:
    """ggml's ggml_quantize_chunk, ggml_quantize_requires_imatrix and ggml_quantize_init (ggml.h)."""
    library = llama()._lib  # llama-cpp-python binds llama.h; ggml.h's functions are in the same libraries
    chunk, needs, tables = (
        library.ggml_quantize_chunk,
        library.ggml_quantize_requires_imatrix,
        library.ggml_quantize_init,
    )
    chunk.restype, needs.restype, tables.restype = ctypes.c_size_t, ctypes.c_bool, None
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    needs.argtypes = tables.argtypes = [ctypes.c_int]
    return chunk, needs, tables


def check_importance(entries: Iterable[Entry], importance: Mapping[str, Float32]) -> None:
    """Raise ConversionError where a tensor's type needs an importance that is not there, or its columns are others."""
    _, needs, _ = quantizer()
    for entry in entries:
        found = importance.get(entry.name)
        if found is None and needs(NUMBERS[entry.type]):
            raise ConversionError(
                f"{entry.name}: {entry.type} needs an importance matrix", hint="give --imatrix or --calibrate"
            )
        if found is not None and found.size not in (
            entry.shape[-1],
            importances(entry.shape) * entry.shape[-1],
        ):
            raise ConversionError(
                f"the importance matrix has {found.size} columns for {entry.name}, which has {entry.shape[-1]}",
                hint="it is of another model",
            )


def importances(shape: Sequence[int]) -> int:
    """How many a tensor has: one for each expert, whose matrices are one tensor (experts, rows, columns)."""
    return math.prod(shape[:-2])


def importance_of(shape: Sequence[int], numbers: NDArray[np.int64], importance: Float32) -> Float32:
    """That of each of a tensor's rows with these numbers: (rows, columns), of an expert's rows the expert's."""
    columns = shape[-1]
    if importance.size == columns:
        return np.broadcast_to(importance, (len(numbers), columns))
    return importance.reshape(-1, columns)[numbers // shape[-2]]


def encode_rows(
    values: Float32,
    numbers: NDArray[np.int64],
    shape: Sequence[int],
    kind: str,
    importance: Float32 | None,
    pool: Executor,
    parts: int,
) -> NDArray[np.uint8]:
    """As `encode`, for the rows with these numbers of a tensor of this shape, whose experts may have an importance
    each."""
    columns = shape[-1]
    if importance is None or importance.size == columns:
        return encode(values, kind, importance, pool, parts)
    experts = numbers // shape[-2]
    edges = [0, *(np.flatnonzero(np.diff(experts)) + 1).tolist(), len(values)]
    each = importance.reshape(-1, columns)
    return np.concatenate(
        [
            encode(values[start:stop], kind, each[experts[start]], pool, parts)
            for start, stop in itertools.pairwise(edges)
        ]
    )


def encode(
    values: Float32, kind: str, importance: Float32 | None, pool: Executor, parts: int
) -> NDArray[np.uint8]:
    """Rows (rows, columns) in a type: (rows, bytes of a row). The bytes do not depend on the parts.

    `check_importance` was asked before: ggml ends the process where a type needs what is not there. Raises
    ConversionError for values that the type cannot hold.
    """
    chunk, _, tables = quantizer()
    number, (rows, columns) = NUMBERS[kind], values.shape
    values = np.ascontiguousarray(values)
    out = np.empty((rows, row_bytes(kind, columns)), np.uint8)
    weights = importance.ctypes.data if importance is not None else None
    # scales of quantized blocks are f16, too
    if kind != "BF16" and max(values.max(), -values.min()) > F16_MAX:
        raise ConversionError(
            f"it has values beyond {F16_MAX}, which {kind} cannot hold", hint="choose bf16 or f32"
        )
    tables(number)  # before threads ask for them

    def work(start: int, stop: int) -> None:
        chunk(number, values[start].ctypes.data, out[start].ctypes.data, 0, stop - start, columns, weights)

    edges = np.linspace(0, rows, min(parts, rows) + 1, dtype=int)
    for _ in pool.map(work, edges[:-1], edges[1:]):
        pass  # only to raise what a thread raised
    return out
