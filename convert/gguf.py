"""Writes GGUF: all names and sizes first, then one tensor after the other, so that memory holds one at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from .families.weight import Weight

Array = NDArray[Any]

# The levels NumPy writes by itself; the others are made from these by llama.cpp's quantizer.
DIRECT = {
    "f32": (Type.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Type.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def tensor_type(weight: Weight, level: Type) -> Type:
    """Vectors stay f32, as llama.cpp wants them; rows that do not divide into the level's blocks become f16."""
    if weight.float32 or len(weight.target_shape) < 2:
        return Type.F32
    block, _ = gguf.GGML_QUANT_SIZES[level]
    return level if weight.target_shape[-1] % block == 0 else Type.F16


def write(
    path: Path,
    architecture: str,
    fields: Mapping[str, Any],
    table: Sequence[Weight],
    read: Callable[[str], Array],
    *,
    level: str = "f16",
    extra: Mapping[str, Array] | None = None,
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Write the tensors of `table`, read as float32 by their source names, and `extra` as they are.

    `fields` are whole GGUF keys with ints, floats, bools, texts or lists of them. The file gets its name when every
    byte of it is on the disk; the same input gives the same bytes. `more` may add keys of its own.
    """
    kind, file_type = DIRECT[level]
    draft = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(draft, architecture)
    try:
        for key, value in fields.items():
            add_field(writer, key, value)
        more(writer)
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for name, values in (extra or {}).items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        for weight in table:
            own = tensor_type(weight, kind)
            shape = (
                gguf.quant_shape_to_byte_shape(weight.target_shape, own)
                if own in gguf.GGML_QUANT_SIZES
                else weight.target_shape
            )
            size = int(np.prod(shape, dtype=np.int64))
            writer.add_tensor_info(weight.target, shape, np.dtype(np.uint8), size, raw_dtype=own)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in (extra or {}).values():
            writer.write_tensor_data(values)
        for weight in table:
            writer.write_tensor_data(encoded(read(weight.source), weight, tensor_type(weight, kind)))
        for file in writer.fout or ():
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        writer.close()
        draft.unlink(missing_ok=True)
        raise
    writer.close()
    draft.replace(path)
    return path


def encoded(values: Array, weight: Weight, kind: Type) -> Array:
    """float32 values in GGUF's layout and type, as bytes."""
    if weight.layout:
        values = weight.layout.to_gguf(values)
    return np.ascontiguousarray(gguf.quantize(values, kind)).view(np.uint8)


def add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One metadata key; whole numbers become u32 where they fit, as llama.cpp reads most of them."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value) if 0 <= value < 2**32 else writer.add_int64(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
