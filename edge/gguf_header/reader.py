"""Walks a GGUF header from its magic to its tensor data and refuses it at the first lie."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edge.gguf_header.cursor import U32, U64, Cursor, opened
from edge.gguf_header.header import Array, Header, Tensor, Value, bad, describe
from edge.gguf_header.tables import (
    ARRAY,
    FOREIGN,
    MAX_ALIGNMENT,
    MAX_DECODED,
    MAX_KEYS,
    MAX_NAME,
    MAX_TENSORS,
    OTHER,
    SCALARS,
    STRING,
    TYPES,
)


def read(path: Path, *, part: int = 1, model: bool = True) -> Header:
    """The header of a GGUF file (version 2 or 3, little endian), every number of it checked.

    `part` counts the files of a split model from 1; only the first names an architecture. `model=False` is for
    GGUF files of other kinds, which need not name one.
    Raises BadGGUF for a file that is something else, damaged or hostile, ModelNotFound when there is none,
    StoreError when it cannot be read.
    """
    with opened(path) as cursor:
        return parse(cursor, part, model)


def elements(path: Path, key: str, *, model: bool = True) -> tuple[Any, ...]:
    """All elements of an array in the metadata; bytes of strings that are not UTF-8 become U+FFFD.

    Raises as `read` does, and BadGGUF when `key` is absent or no array.
    """
    with opened(path) as cursor:
        array = parse(cursor, model=model).metadata.get(key)
        if isinstance(array, tuple):
            return array
        if not isinstance(array, Array):
            raise bad(f"{key} is {describe(array)} where an array is expected")
        cursor.at = array.offset
        if array.element_type == "string":
            return tuple(cursor.blob(key).decode(errors="replace") for _ in range(array.length))
        code = next(code for name, code in SCALARS.values() if name == array.element_type)
        return struct.unpack_from(f"<{array.length}{code}", cursor.data, array.offset)


def packed(path: Path) -> dict[str, bytes]:
    """Every metadata value as it stands in the file, type first, for another file to hold. Raises as `read` does."""
    found: dict[str, bytes] = {}
    with opened(path) as cursor:
        parse(cursor)
        cursor.at = cursor.strings = 0
        _, _, count = preamble(cursor)
        for _ in range(count):
            key = cursor.text("a metadata key", limit=65_535)
            start = cursor.at
            metadata_value(cursor, key)
            found[key] = bytes(cursor.data[start : cursor.at])
    return found


def parse(cursor: Cursor, part: int = 1, model: bool = True) -> Header:
    version, tensor_count, key_count = preamble(cursor)
    metadata: dict[str, Value] = {}
    for index in range(key_count):
        key = cursor.text(f"metadata key {index}", limit=65_535)
        if not key or not key.isprintable():
            raise bad(f"metadata key {index} is {key[:40]!r}, not a name")
        if key in metadata:
            raise bad(f"metadata key {key[:80]} is there twice")
        metadata[key] = metadata_value(cursor, key[:80])

    header = Header(version, metadata, (), 32, 0, cursor.file_bytes)
    found = header.get("split.no", int, 0) + 1
    if found != part:
        what = f"it is part {found} of {header.split_count} where part {part} is expected"
        raise bad(what, "give the first part, whose name ends in -00001-of-…, and keep the others beside it")
    named = part == 1 and (model or "general.architecture" in metadata)
    if named and not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", header.architecture):
        raise bad(f"general.architecture is {describe(header.architecture)}, not a name")
    alignment = header.get("general.alignment", int, 32)
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise bad(f"general.alignment is {alignment}, not a power of two up to {MAX_ALIGNMENT}")

    tensors: dict[str, Tensor] = {}
    for index in range(tensor_count):
        tensor = tensor_info(cursor, index)
        if tensor.name in tensors:
            raise bad(f"tensor {tensor.name} is there twice")
        tensors[tensor.name] = tensor
    data_offset = -(-cursor.at // alignment) * alignment
    check_layout(tensors.values(), alignment, data_offset, cursor.file_bytes)
    return Header(version, metadata, tuple(tensors.values()), alignment, data_offset, cursor.file_bytes)


def preamble(cursor: Cursor) -> tuple[int, int, int]:
    """Magic, version, tensor count, key count: returns the last three."""
    start = cursor.data[:64]
    if not start.startswith(b"GGUF"):
        if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
            raise bad("it is a web page, not a model", "the link needs a login or leads to another page")
        if start[8:9] == b"{":
            raise bad("it is a safetensors file, not GGUF", OTHER)
        for magic, what, hint in FOREIGN:
            if start.startswith(magic):
                raise bad(f"it is {what}, not GGUF", hint)
        raise bad(f"it begins with {start[:4]!r} where b'GGUF' is expected")
    cursor.claim(4, "the magic")
    version = cursor.number(U32, "the version")
    if version & 0xFFFF == 0 and version:
        raise bad("it is a big-endian GGUF file", "get the little-endian file of this model")
    if version == 1:
        raise bad("it is GGUF version 1, which no current program reads", "get a newer file of this model")
    if version not in (2, 3):
        raise bad(f"it says GGUF version {version}; 2 and 3 exist", "a newer edge may read it")
    counts = []
    # The least bytes of a tensor: name, one dimension, type, offset. Of a key: name, type, one byte.
    for what, least, limit in (("tensors", 33, MAX_TENSORS), ("metadata keys", 14, MAX_KEYS)):
        count = cursor.number(U64, f"the number of {what}")
        if count * least > cursor.file_bytes:
            raise bad(f"it claims {count} {what}, which {cursor.file_bytes} bytes cannot hold")
        if count > limit:
            raise bad(f"it claims {count} {what}; {limit} is the limit")
        counts.append(count)
    return version, counts[0], counts[1]


def metadata_value(cursor: Cursor, key: str) -> Value:
    kind = cursor.number(U32, f"the type of {key}")
    if kind == STRING:
        return cursor.text(key)
    if kind == ARRAY:
        return metadata_array(cursor, key)
    if kind not in SCALARS:
        raise bad(f"{key} has value type {kind}; 0 to 12 exist")
    name, code = SCALARS[kind]
    start = cursor.claim(struct.calcsize(code), key)
    if name == "bool" and cursor.data[start] > 1:
        raise bad(f"{key} is a bool of value {cursor.data[start]}; 0 and 1 exist")
    value: int | float | bool = struct.unpack_from(f"<{code}", cursor.data, start)[0]
    return value


def metadata_array(cursor: Cursor, key: str) -> tuple[Any, ...] | Array:
    kind, count = cursor.number(U32, f"the type of {key}"), cursor.number(U64, f"the length of {key}")
    if kind == ARRAY:
        raise bad(f"{key} is an array of arrays, which GGUF readers do not take")
    if kind != STRING and kind not in SCALARS:
        raise bad(f"{key} is an array of value type {kind}; 0 to 12 exist")
    name, code = SCALARS.get(kind, ("string", "Q"))  # a string has at least its length
    left = len(cursor.data) - cursor.at
    if count * struct.calcsize(code) > left:
        raise bad(f"{key} claims {count} elements and {left} bytes are left for them")
    start = cursor.at
    if kind == STRING:
        cursor.step_over_strings(count, key)
        return Array(name, count, start)
    cursor.claim(count * struct.calcsize(code), key)
    if name == "bool" and cursor.data[start : cursor.at].translate(None, b"\0\1"):
        raise bad(f"{key} holds bools of other values than 0 and 1")
    if count > MAX_DECODED:
        return Array(name, count, start)
    return struct.unpack_from(f"<{count}{code}", cursor.data, start)


def tensor_info(cursor: Cursor, index: int) -> Tensor:
    name = cursor.text(f"the name of tensor {index}", MAX_NAME)
    if not name.isprintable() or not name or ".." in name or "/" in name or "\\" in name:
        raise bad(f"tensor {index} is called {name!r}, not a name")
    dims = cursor.number(U32, f"tensor {name}")
    if not 1 <= dims <= 4:
        raise bad(f"tensor {name} has {dims} dimensions; 1 to 4 are possible")
    shape = struct.unpack_from(f"<{dims}Q", cursor.data, cursor.claim(8 * dims, f"tensor {name}"))
    count = math.prod(shape)
    if not 0 < count < 1 << 63:
        raise bad(f"tensor {name} has shape {shape}: {'no' if not count else 'more than 2^63'} elements")
    kind, offset = cursor.number(U32, f"tensor {name}"), cursor.number(U64, f"tensor {name}")
    if kind not in TYPES:
        raise bad(
            f"tensor {name} has type {kind}, which GGML does not have",
            "get another level of this model, or a newer edge",
        )
    type_name, block, block_bytes = TYPES[kind]
    if shape[0] % block:
        raise bad(f"tensor {name} has rows of {shape[0]}, not whole blocks of {block} as {type_name} needs")
    return Tensor(name, shape, type_name, offset, count // block * block_bytes)


def check_layout(tensors: Iterable[Tensor], alignment: int, data_offset: int, file_bytes: int) -> None:
    """Tensors lie at aligned offsets, apart from each other, inside the file."""
    end, before = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset % alignment:
            raise bad(f"tensor {tensor.name} is at {tensor.offset}, not a multiple of {alignment}")
        if tensor.offset < end:
            raise bad(f"tensor {tensor.name} begins at {tensor.offset}, inside {before} which ends at {end}")
        end, before = tensor.offset + tensor.bytes, tensor.name
    if end and data_offset + end > file_bytes:
        raise bad(f"tensor {before} ends at byte {data_offset + end} and the file has {file_bytes}")
