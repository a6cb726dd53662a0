"""A GGUF file of metadata alone, for the trial: the gguf package takes seconds for a large vocabulary.

The format is GGUF version 3, little-endian (github.com/ggml-org/ggml, docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

UINT8, INT32, UINT32, FLOAT32, BOOL, STRING, ARRAY = 0, 5, 4, 6, 7, 8, 9


def pack(fields: Mapping[str, Any]) -> bytes:
    """The whole file. A value is a bool, an int (as uint32), a str, bytes, or a list of str, int or float."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, 0, len(fields))]
    for key, value in fields.items():
        parts += [_string(key), _value(value)]
    return b"".join(parts)


def _value(value: object) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, bytes):
        return _array(UINT8, len(value), value)
    if isinstance(value, list):
        return _list(value)
    raise TypeError(f"no GGUF type for {type(value).__name__}")


def _list(values: Sequence[Any]) -> bytes:
    if not values or isinstance(values[0], str):
        return _array(STRING, len(values), b"".join(map(_string, values)))
    if isinstance(values[0], float):
        return _array(FLOAT32, len(values), struct.pack(f"<{len(values)}f", *values))
    return _array(INT32, len(values), struct.pack(f"<{len(values)}i", *values))


def _array(kind: int, count: int, data: bytes) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, count) + data


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data
