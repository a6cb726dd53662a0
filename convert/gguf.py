"""The head of a GGUF file: metadata and the tensors' places; and the file reserved for them.

The format is GGUF version 3, little-endian (github.com/ggml-org/ggml, docs/gguf.md). Written here because the gguf
package takes seconds for the head of a large vocabulary, and a head is written for every level and every trial.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edge.errors import ConversionError

from .ggml_types import NUMBERS, SIZES

UINT8, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, INT64 = 0, 4, 5, 6, 7, 8, 9, 11
ALIGNMENT = 32


@dataclass(frozen=True)
class Packed:
    """A metadata value as it stands in another GGUF file: its type and its bytes."""

    data: bytes


@dataclass(frozen=True)
class Entry:
    """A tensor to be: `shape` has the row length last, `type` is a name such as Q4_K, `fixed` at every level."""

    name: str
    shape: tuple[int, ...]
    type: str
    fixed: bool = False

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.type, self.shape[-1])

    @property
    def bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row in a type; the columns are whole blocks of it."""
    block, size = SIZES[kind]
    return columns // block * size


def fits(kind: str, columns: int) -> bool:
    """Whether rows of so many columns are whole blocks of the type."""
    return columns % SIZES[kind][0] == 0


@dataclass(frozen=True)
class Head:
    """`data` begins the file; `places` are where the tensors' bytes begin in it; `size` is all of it in bytes."""

    data: bytes
    places: Mapping[str, int]
    size: int


def head(fields: Mapping[str, Any], entries: Sequence[Entry]) -> Head:
    """Metadata and tensors in the order given.

    A value is a bool, an int (u32 where it fits, else i64), a float (f32), a str, bytes (u8), Packed, or a list of
    str, int (i32) or float; bools in a list stay bools. Raises ConversionError for one that these do not hold.
    """
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(entries), len(fields))]
    for key, value in fields.items():
        try:
            parts += [_string(key), _value(value)]
        except (
            OverflowError,
            UnicodeEncodeError,
            struct.error,
        ) as error:  # half a surrogate pair, 1e300, 2⁶⁴
            raise ConversionError(f"a GGUF file cannot hold the checkpoint's {key}: {error}") from None
    offset = 0
    offsets: dict[str, int] = {}
    for entry in entries:
        sizes = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))
        parts += [_string(entry.name), sizes, struct.pack("<IQ", NUMBERS[entry.type], offset)]
        offsets[entry.name] = offset
        offset += aligned(entry.bytes)
    data = b"".join(parts)
    if entries:
        data += b"\0" * (aligned(len(data)) - len(data))
    return Head(data, {name: len(data) + place for name, place in offsets.items()}, len(data) + offset)


def aligned(size: int) -> int:
    """Bytes of a tensor with what pads it."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _value(value: object) -> bytes:
    if isinstance(value, Packed):
        return value.data
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value) if 0 <= value < 1 << 32 else struct.pack("<Iq", INT64, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, bytes):
        return _array(UINT8, len(value), value)
    if isinstance(value, (list, tuple)):
        return _list(value)
    raise TypeError(f"no GGUF type for {type(value).__name__}")


def _list(values: Sequence[Any]) -> bytes:
    if not values or isinstance(values[0], str):
        return _array(STRING, len(values), _strings(tuple(values)))
    if isinstance(values[0], bool):
        return _array(BOOL, len(values), bytes(values))
    if isinstance(values[0], float):
        return _array(FLOAT32, len(values), struct.pack(f"<{len(values)}f", *values))
    return _array(INT32, len(values), struct.pack(f"<{len(values)}i", *values))


@lru_cache(maxsize=8)
def _strings(values: tuple[str, ...]) -> bytes:
    """A vocabulary is hundreds of thousands of them, and is in every trial's head and every level's."""
    length = struct.Struct("<Q").pack
    texts = [value.encode() for value in values]
    return b"".join([part for text in texts for part in (length(len(text)), text)])


def _array(kind: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, count) + data


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data
