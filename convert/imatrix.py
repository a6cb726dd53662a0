"""Importance matrices in llama.cpp's files: how much each input column of each weight matters.

Format: llama.cpp, tools/imatrix/README.md ("general.type" = "imatrix", two f32 tensors a weight), and before
2025 the same numbers without GGUF around them ("legacy"). Nobody vouches for a file: every size is checked.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge import gguf_header
from edge.errors import RequestError, UnsafeFile

from .gguf import ALIGNMENT, Entry, head
from .safetensors import atomic, open_file, put

Array = NDArray[Any]

DATASETS, CHUNKS, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
SUMS, COUNTS = ".in_sum2", ".counts"
HINT = "make one with `edge convert --calibrate` or llama-imatrix"

MAX_BYTES = 4 << 30  # three times the matrix of a model with 600 G weights in experts
MAX_COUNT = 1 << 53  # of tokens: far above all real ones, and a whole number in every type used here
MAX_NAME = 63 - len(SUMS)  # GGML_MAX_NAME less its zero
MAX_ENTRIES = 1 << 15


@dataclass(frozen=True)
class Importance:
    """What went into the weights while a model read a text.

    sums        GGUF tensor name → sums of squared inputs, f32, (matrices, columns): a row an expert
    counts      GGUF tensor name → tokens summed, int64, (matrices,) or (1,) for all of them
    datasets    names of the texts
    chunks      how many pieces of text; chunk_size in tokens, 0 where a legacy file does not say it
    """

    sums: Mapping[str, Array]
    counts: Mapping[str, Array]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int

    def means(self) -> dict[str, NDArray[np.float32]]:
        """Mean squared input by tensor name, flat, as llama-quantize computes it: 1 for an expert never used."""
        means = {}
        for name, sums in self.sums.items():
            count = self.counts[name].astype(np.float32)[:, None]
            mean = np.divide(sums, count, out=np.ones_like(sums, dtype=np.float32), where=count > 0)
            means[name] = mean.reshape(-1)
        return means

    def fields(self, file: str) -> dict[str, str | int]:
        """What llama-quantize writes of it into a model's metadata; `file` is the matrix's name."""
        return {
            "quantize.imatrix.file": file,
            "quantize.imatrix.dataset": ", ".join(self.datasets),
            "quantize.imatrix.entries_count": len(self.sums),
            "quantize.imatrix.chunks_count": self.chunks,
        }


def read(path: Path) -> Importance:
    """A file of llama-imatrix's, in GGUF or in the legacy form.

    Raises UnsafeFile for one that is something else, damaged or hostile, ModelNotFound when there is none,
    StoreError when it cannot be read.
    """
    with open_file(path) as file:
        try:
            if file.read(4) == b"GGUF":
                return read_gguf(path, file)
            file.seek(0)
            return read_legacy(Remaining(file))
        except UnsafeFile as error:
            about = "" if str(error).startswith(path.name) else f"{path.name}: "
            raise type(error)(f"{about}{error}", hint=error.hint) from None


def read_gguf(path: Path, file: BinaryIO) -> Importance:
    header = gguf_header.read(path, model=False)
    if header.metadata.get("general.type") != "imatrix":
        raise refused("it is a GGUF file of another kind, not an importance matrix")
    for key in (CHUNKS, CHUNK_SIZE):
        if not 0 <= header.get(key, int) < 1 << 32:
            raise refused(f"{key} is {header.get(key, int)}")
    datasets = gguf_header.elements(path, DATASETS, model=False)
    if not all(isinstance(text, str) for text in datasets):
        raise refused(f"{DATASETS} holds something else than names")
    if sum(tensor.bytes for tensor in header.tensors) > MAX_BYTES:
        raise refused(f"it holds more than {MAX_BYTES >> 30} GiB of numbers")

    values: dict[str, Array] = {}
    for tensor in header.tensors:
        if tensor.type != "F32":
            raise refused(f"tensor {tensor.name} is {tensor.type} where F32 is expected")
        file.seek(header.data_offset + tensor.offset)
        values[tensor.name] = np.fromfile(file, "<f4", tensor.elements)
        if len(values[tensor.name]) != tensor.elements:
            raise refused("it became shorter while it was read")
    names = [name.removesuffix(SUMS) for name in values if name.endswith(SUMS)]
    lonely = values.keys() - {name + end for name in names for end in (SUMS, COUNTS)}
    lonely |= {name + SUMS for name in names if name + COUNTS not in values}
    if lonely:
        raise refused(f"tensor {min(lonely)} has no partner: sums and counts come in pairs")
    return checked(
        {name: values[name + SUMS] for name in names},
        {name: values[name + COUNTS] for name in names},
        datasets,
        header.get(CHUNKS, int),
        header.get(CHUNK_SIZE, int),
    )


class Remaining:
    """What is left of a file, claimed piece by piece."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, min(os.fstat(file.fileno()).st_size, MAX_BYTES)

    def take(self, size: int, what: str) -> bytes:
        if not 0 <= size <= self.left:
            raise refused(f"{what} has {size} bytes and {self.left} are left")
        self.left -= size
        data = self.file.read(size)
        if len(data) != size:
            raise refused("it became shorter while it was read")
        return data

    def number(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])

    def name(self, what: str, limit: int) -> str:
        size = self.number(f"the length of {what}")
        if not 0 <= size <= limit:
            raise refused(f"{what} has {size} bytes")
        return self.take(size, what).decode(errors="replace")


def read_legacy(rest: Remaining) -> Importance:
    """Count of entries; each a name, its calls, its values (mean squares times calls); calls and dataset."""
    entries = rest.number("the count of entries")
    if not 1 <= entries <= MAX_ENTRIES:
        raise refused("it is not an importance matrix")
    sums, counts = {}, {}
    for index in range(entries):
        name = rest.name(f"the name of entry {index}", MAX_NAME)
        if name in sums or not name or not name.isprintable():
            raise refused(f"entry {index} is called {name!r}, which is no name or was there before")
        # llama-quantize divides by the calls where there are any
        counts[name] = np.array([max(1, rest.number(name))], np.float32)
        size = rest.number(name)
        sums[name] = np.frombuffer(rest.take(4 * size, name), "<f4")
    chunks = rest.number("the count of chunks") if rest.left else 0
    dataset = rest.name("the dataset", 4096) if rest.left else ""
    if rest.left or chunks < 0:
        raise refused(f"{rest.left} bytes follow its end" if rest.left else f"it has {chunks} chunks")
    return checked(sums, counts, (dataset,) if dataset else (), chunks, 0)


def checked(
    sums: Mapping[str, Array], counts: Mapping[str, Array], datasets: tuple[str, ...], chunks: int, size: int
) -> Importance:
    """The matrix, if its numbers can be what they stand for. Raises UnsafeFile."""
    if not sums:
        raise refused("it has no entries")
    shaped, whole = {}, {}
    for name in sorted(sums):
        flat, count = sums[name], counts[name]
        if not flat.size or flat.size % count.size:
            raise refused(f"{name} has {flat.size} sums for {count.size} counts")
        if not (np.isfinite(flat).all() and (flat >= 0).all()):
            raise refused(f"{name} has sums of squares that are negative or not numbers")
        if not ((count >= 0) & (count <= MAX_COUNT)).all():
            raise refused(f"{name} has counts that are none")
        shaped[name] = flat.astype(np.float32).reshape(count.size, -1)
        whole[name] = np.floor(count.astype(np.float64) + 0.5).astype(np.int64)  # half away from zero, as C
    return Importance(shaped, whole, datasets, chunks, size)


def write(importance: Importance, path: Path) -> Path:
    """Write it as llama-imatrix does, byte for byte; atomically.

    Raises RequestError for a tensor name too long for GGUF, StoreError where the disk refuses.
    """
    pieces: dict[str, Array] = {}
    for name in sorted(importance.sums):
        if len(name.encode()) > MAX_NAME:
            raise RequestError(f"the tensor name {name!r} is too long for an importance matrix")
        pieces[name + SUMS] = importance.sums[name].astype("<f4")
        pieces[name + COUNTS] = importance.counts[name].astype("<f4")[:, None]
    fields = {
        "general.type": "imatrix",
        DATASETS: importance.datasets,
        CHUNKS: importance.chunks,
        CHUNK_SIZE: importance.chunk_size,
    }
    start = head(
        fields,
        [
            Entry(name, values.shape if len(values) > 1 else values.shape[1:], "F32")
            for name, values in pieces.items()
        ],
    )
    with atomic(path, start.size) as file:
        put(file, start.data, path)
        for values in pieces.values():
            put(file, values.tobytes() + bytes(-values.nbytes % ALIGNMENT), path)
    return path


def refused(what: str) -> UnsafeFile:
    return UnsafeFile(what, hint=HINT)
