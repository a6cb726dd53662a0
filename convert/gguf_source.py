"""The weights of a GGUF file as float32, whatever their type, in pieces.

Read with pread into buffers of their own: the pages of a mapped file count as this process's memory.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge import gguf_header
from edge.errors import BadGGUF, UnsafeFile
from edge.gguf_header import Header

from .checkpoint import widen
from .ggml_types import SIZES, dequantize
from .safetensors import AGAIN, OTHER, reading

Float32 = NDArray[np.float32]
Bytes = NDArray[np.uint8]

BLOCK = 1 << 18  # elements that are read and widened at a time; whole blocks of every type
FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
INTEGERS = ("I8", "I16", "I32", "I64")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes are: one of the model's files, the offset from its start, how many."""

    file: BinaryIO
    offset: int
    bytes: int


@dataclass(frozen=True)
class GGUFSource:
    """An open GGUF model, all its parts; `open` makes one. Its files stay open, so a reader sees one version.

    `header` is the first file's with the tensors of all (whose offsets count within their own file), `types` the
    ggml type of each tensor by name.
    """

    path: Path
    header: Header
    types: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    places: Mapping[str, Place] = field(repr=False)
    files: tuple[BinaryIO, ...] = field(repr=False)

    def __enter__(self) -> GGUFSource:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()

    def shape(self, name: str) -> tuple[int, ...]:
        """Row length last, as NumPy has it. Raises BadGGUF when there is no such tensor."""
        if name not in self.shapes:
            raise BadGGUF(f"{self.path.name} has no tensor {name[:80]}", hint=OTHER)
        return self.shapes[name]

    def float32(self, name: str) -> Float32:
        """All of a tensor in its shape; exact, but for F64, which is rounded.

        Raises BadGGUF when there is no such tensor, UnsafeFile for integers and for a value that is NaN or
        infinite, ConversionError for a type that ggml cannot read.
        """
        shape = self.shape(name)
        return self.read(name, 0, math.prod(shape)).reshape(shape)

    def raw(self, name: str) -> Bytes:
        """All bytes of a tensor as they are in the file: (bytes,). Raises BadGGUF when there is none."""
        self.shape(name)
        return self.fill(name, 0, np.empty(self.places[name].bytes, np.uint8))

    def chunks(self, name: str, max_bytes: int, *, rows: int = 1) -> Iterator[Float32]:
        """A tensor as arrays (rows, row length), as many whole rows each as `max_bytes` of float32 hold.

        But at least one, and always a multiple of `rows`; `rows` 0 gives the tensor whole. A vector is one row.
        Memory is one chunk and a few MiB. Raises as `float32`.
        """
        shape = self.shape(name)
        columns, total = shape[-1], math.prod(shape)
        group = columns * rows if rows else total
        step = group * max(1, max_bytes // (4 * group))
        for start in range(0, total, step):
            yield self.read(name, start, min(start + step, total)).reshape(-1, columns)

    def read(self, name: str, start: int, stop: int) -> Float32:
        """Elements `start` to `stop`, which lie between blocks of the tensor's type, in one dimension."""
        kind = self.types[name]
        if kind in INTEGERS:
            raise UnsafeFile(f"{self.path.name}: tensor {name} is {kind}, not floats", hint=OTHER)
        elements, size = SIZES[kind]
        out = np.empty(stop - start, np.float32)
        buffer = np.empty(min(BLOCK, len(out)) // elements * size, np.uint8)
        for at in range(0, len(out), BLOCK):
            part = out[at : at + BLOCK]
            blocks = buffer[: len(part) // elements * size]
            self.fill(name, (start + at) // elements * size, blocks)
            if kind in FLOATS:
                with np.errstate(over="ignore"):  # F64 beyond float32: infinite, and refused below
                    widen(blocks.view(FLOATS[kind]), kind, part)
            else:
                dequantize(blocks, kind, part)
            wrong = np.flatnonzero(~np.isfinite(part))
            if len(wrong):
                index = [int(i) for i in np.unravel_index(start + at + int(wrong[0]), self.shapes[name])]
                raise UnsafeFile(
                    f"{self.path.name}: tensor {name} has a value that is NaN or infinite, the first at {index}",
                    hint="no conversion can repair that; get another copy of the model",
                )
        return out

    def fill(self, name: str, start: int, out: Bytes) -> Bytes:
        """Read as many bytes as `out` has, from byte `start` of the tensor on."""
        place, rest = self.places[name], out.data
        at = place.offset + start
        with reading(self.path):
            while rest:
                count = os.preadv(place.file.fileno(), [rest], at)
                if not count:
                    raise BadGGUF(f"{self.path.name} ended at byte {at} while it was read", hint=AGAIN)
                rest, at = rest[count:], at + count
        return out


def open(path: Path) -> GGUFSource:
    """A GGUF model by its file, or by the first of several; headers are checked and no weight is read.

    Raises BadGGUF for a file that is damaged or hostile, ModelNotFound when it or another part is missing,
    StoreError when it cannot be read.
    """
    first = gguf_header.read(path)
    tensors: dict[str, gguf_header.Tensor] = {}
    places: dict[str, Place] = {}
    with ExitStack() as opened:
        files = []
        for part, file_path in enumerate(parts_of(path, first.split_count), 1):
            with reading(file_path):
                file = opened.enter_context(file_path.open("rb", buffering=0))
            files.append(file)
            header = first if part == 1 else gguf_header.read(file_path, part=part)
            for tensor in header.tensors:
                if tensor.name in tensors:
                    raise BadGGUF(f"tensor {tensor.name} is in two parts of {path.name}", hint=AGAIN)
                tensors[tensor.name] = tensor
                places[tensor.name] = Place(file, header.data_offset + tensor.offset, tensor.bytes)
        opened.pop_all()
    return GGUFSource(
        path,
        replace(first, tensors=tuple(tensors.values())),
        {name: tensor.type for name, tensor in tensors.items()},
        {name: tensor.shape[::-1] for name, tensor in tensors.items()},
        places,
        tuple(files),
    )


def parts_of(path: Path, count: int) -> list[Path]:
    """The files of a model cut into `count`, whose names end in -00001-of-…, by the first."""
    if count == 1:
        return [path]
    match = re.fullmatch(rf"(.+)-00001-of-{count:05d}\.gguf", path.name)
    if match is None:
        raise BadGGUF(
            f"{path.name} is one of {count} parts and its name does not say which",
            hint=f"the first part's name ends in -00001-of-{count:05d}.gguf",
        )
    return [path.with_name(f"{match[1]}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]
