"""Levels made by llama.cpp's own quantizer, in this process, with bounded memory, atomically."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.binding import listen, llama, why
from edge.errors import ConversionError, RequestError

LEVELS = (
    *(
        "f32",
        "f16",
        "bf16",
        "q8_0",
        "q6_k",
        "q5_k_m",
        "q5_k_s",
        "q5_0",
        "q5_1",
        "q4_k_m",
        "q4_k_s",
        "q4_0",
        "q4_1",
    ),
    *("iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs"),
    *("q2_k", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s", "tq1_0", "tq2_0", "mxfp4"),
)
# llama.cpp's names for the mixtures of types (enum llama_ftype) that are not MOSTLY_ and the level
NAMES = {"f32": "ALL_F32", "mxfp4": "MOSTLY_MXFP4_MOE"}
# The quantizer's own default holds 8 GiB of rows; this much costs no speed.
MAX_BUFFER = 256 << 20


@dataclass(frozen=True)
class Settings:
    """What may differ from a level's own mixture.

    threads         0 takes all cores
    max_buffer      bytes of rows in memory at once
    tensor_types    (regular expression, ggml type such as "q8_0"), the first match wins
    output_type     ggml type of `output.weight`; embedding_type of `token_embd.weight`
    prune_layers    layers to leave out
    importance      GGUF tensor name → mean squared activation of each input column, f32
    """

    threads: int = 0
    max_buffer: int = MAX_BUFFER
    tensor_types: Sequence[tuple[str, str]] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    prune_layers: Sequence[int] = ()
    importance: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def levels() -> dict[str, int]:
    """The levels that the installed llama.cpp has, with its number for each."""
    numbers = {level: file_type(level) for level in LEVELS}
    return {level: number for level, number in numbers.items() if number is not None}


def file_type(level: str) -> int | None:
    return getattr(llama(), f"LLAMA_FTYPE_{NAMES.get(level, f'MOSTLY_{level.upper()}')}", None)


def ggml_type(name: str) -> int:
    """llama.cpp's number of a tensor type. Raises RequestError for one it does not have."""
    number = getattr(llama(), f"GGML_TYPE_{name.upper()}", None)
    if number is None:
        raise RequestError(
            f"{name!r} is no tensor type of this llama.cpp", hint="for example q8_0, q6_K or f16"
        )
    return int(number)


def quantize(source: Path, target: Path, level: str, settings: Settings = Settings()) -> Path:
    """Write `source`, a GGUF of floats, at `level`; the bytes depend neither on threads nor on the buffer.

    Raises RequestError for a level or type that is not there, ConversionError where llama.cpp refuses.
    """
    known = levels()
    if level not in known:
        raise RequestError(
            f"{level!r} is not a level of this llama.cpp", hint=f"there are {', '.join(known)}"
        )
    draft = target.with_name(target.name + ".partial")
    params, kept = parameters(known[level], settings)
    listen()
    try:
        failed = llama().llama_model_quantize(os.fsencode(source), os.fsencode(draft), ctypes.byref(params))
        del kept
        if failed:
            raise ConversionError(
                f"llama.cpp did not quantize {source.name} to {level}: {why('it gives no reason')}",
                hint="the smallest levels need an importance matrix",
            )
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    draft.replace(target)
    return target


def parameters(number: int, settings: Settings) -> tuple[Any, list[Any]]:
    """llama.cpp's parameters, and the arrays they point to, which must outlive the call."""
    lib = llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype = number
    params.nthread = settings.threads
    params.max_buf_size = settings.max_buffer
    params.allow_requantize = True
    if settings.output_type:
        params.output_tensor_type = ggml_type(settings.output_type)
    if settings.embedding_type:
        params.token_embedding_type = ggml_type(settings.embedding_type)
    kept: list[Any] = [settings.importance]

    def point(name: str, kind: Any, items: Sequence[Any]) -> None:
        array = (kind * len(items))(*items)
        kept.append(array)
        setattr(params, name, ctypes.cast(array, dict(params._fields_)[name]))

    if settings.tensor_types:
        pairs = [(pattern.encode(), ggml_type(name)) for pattern, name in settings.tensor_types]
        point("tt_overrides", lib.llama_model_tensor_override, [*pairs, (None, 0)])
    if settings.prune_layers:
        point("prune_layers", ctypes.c_int32, [*sorted(settings.prune_layers), -1])
    if settings.importance:
        rows = [
            (name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size)
            for name, values in settings.importance.items()
        ]
        point("imatrix", lib.llama_model_imatrix_data, [*rows, (None, None, 0)])
    return params, kept
