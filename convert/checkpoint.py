"""A Hugging Face checkpoint: a folder with config.json, safetensors files and a tokenizer, that nobody vouches for.

Nothing in it is run or unpickled. Weights are read with pread into buffers of their own: the pages of a mapped
file count as this process's memory for as long as they are mapped.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from os.path import lexists
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge.errors import ModelNotFound, StoreError, UnsafeFile
from edge.store.checkpoints import CONFIG, INDEX, TEXT_FILES, WEIGHTS

from .safetensors import (
    AGAIN,
    DTYPES,
    NO_PICKLE,
    OTHER,
    PICKLES,
    bad,
    header_of,
    is_name,
    json_object,
    open_file,
    reading,
)

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

MAX_JSON = 32 << 20  # bytes, far above any real config or index
BLOCK = 1 << 18  # elements that are read, checked and widened at a time: they stay in the CPU's cache

# The bits of the exponent (E4M3: all but the sign). An element in which all are set is NaN or infinite.
EXPONENT = {"F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80, "F8_E4M3": 0x7F, "F8_E5M2": 0x7C}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its elements' dtype (a key of `safetensors.DTYPES`), its place in one of the folder's files."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str
    offset: int


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint; `open` makes one. Its files stay open, so a reader sees one version of each.

    `config` is config.json, `text_files` the tokenizer's files by name, `sources` all files that were used, by
    their name in the folder, `notes` what a user should know of.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    text_files: Mapping[str, Path]
    sources: Mapping[str, Path]
    notes: tuple[str, ...]
    files: Mapping[str, BinaryIO] = field(repr=False)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def float32(self, name: str) -> Float32:
        """All of a tensor of floats in its shape; exact, but for F64, which is rounded.

        Raises UnsafeFile when there is no such tensor, when it is not of floats, and for a value that is NaN or
        infinite in float32, with how many there are and where the first is.
        """
        tensor = self.tensor(name)
        return self.read(name, 0, elements(tensor), widened=True).reshape(tensor.shape)

    def raw(self, name: str) -> Array:
        """All of a tensor in its own dtype and shape: BF16 as uint16, F8 and BOOL as uint8.

        Raises as `float32`, but takes integers too.
        """
        tensor = self.tensor(name)
        return self.read(name, 0, elements(tensor), widened=False).reshape(tensor.shape)

    def chunks(self, name: str, max_bytes: int, *, raw: bool = False, rows: int = 1) -> Iterator[Array]:
        """A tensor as arrays (rows, row length), as many whole rows each as `max_bytes` holds.

        But at least one, and always a multiple of `rows`; `rows` 0 gives the tensor whole. A row is the last
        dimension; a vector is one row. Values are as in `float32`, or as in `raw`. Memory is one chunk and a few
        MiB. Raises as `float32`.
        """
        tensor = self.tensor(name)
        columns = tensor.shape[-1] if tensor.shape else 1
        itemsize = DTYPES[tensor.dtype].itemsize if raw else 4
        total = elements(tensor)
        group = columns * rows if rows else total
        step = group * max(1, max_bytes // max(1, group * itemsize))
        for start in range(0, total, max(1, step)):
            yield self.read(name, start, min(start + step, total), widened=not raw).reshape(-1, columns)

    def check_finite(self, name: str) -> None:
        """Read a tensor for nothing but its check. Raises as `float32`."""
        tensor, count, first = self.tensor(name), 0, 0
        for start in range(0, elements(tensor), BLOCK):
            block = np.empty(min(BLOCK, elements(tensor) - start), DTYPES[tensor.dtype])
            self.fill(tensor, start, block)
            wrong = np.flatnonzero(not_finite(block, tensor.dtype))
            first = start + int(wrong[0]) if len(wrong) and not count else first
            count += len(wrong)
        if count:
            index = [int(place) for place in np.unravel_index(first, tensor.shape)]
            raise UnsafeFile(
                f"{tensor.file}: tensor {name[:80]} has {count} values that are NaN or infinite, the first at {index}",
                hint="no conversion can repair that; get another copy or revision of the model",
            )

    def sha256(self) -> dict[str, str]:
        """The hash of every source file, by its name in the folder."""
        found = {}
        for name, path in self.sources.items():
            running = hashlib.sha256()
            with reading(path), path.open("rb", buffering=0) as file:
                while piece := file.read(1 << 20):
                    running.update(piece)
            found[name] = running.hexdigest()
        return found

    def tensor(self, name: str) -> Tensor:
        """Raises UnsafeFile when there is none of that name."""
        try:
            return self.tensors[name]
        except KeyError:
            raise UnsafeFile(f"{self.path.name} has no tensor {name}", hint=OTHER) from None

    def read(self, name: str, start: int, stop: int, *, widened: bool) -> Array:
        """Elements `start` to `stop` in one dimension, checked; `widened` to float32 a block at a time."""
        tensor = self.tensor(name)
        if widened and tensor.dtype not in (*EXPONENT, "F64"):
            raise UnsafeFile(f"{tensor.file}: tensor {name[:80]} is {tensor.dtype}, not floats", hint=OTHER)
        dtype = DTYPES[tensor.dtype]
        out = np.empty(stop - start, np.float32 if widened else dtype)
        direct = out.dtype == dtype
        buffer = np.empty(0 if direct else min(BLOCK, len(out)), dtype)
        for at in range(0, len(out), BLOCK):
            part = out[at : at + BLOCK]
            block = part if direct else buffer[: len(part)]
            self.fill(tensor, start + at, block)
            if not_finite(block, tensor.dtype).any():
                self.check_finite(name)
            if not direct:
                widen(block, tensor.dtype, part)
        return out

    def fill(self, tensor: Tensor, start: int, block: Array) -> None:
        """Read as many elements as `block` has, from element `start` on."""
        rest, file = block.view(np.uint8).data, self.files[tensor.file]
        at = tensor.offset + start * block.itemsize
        with reading(self.path / tensor.file):
            while rest:
                count = os.preadv(file.fileno(), [rest], at)
                if not count:
                    raise UnsafeFile(f"{tensor.file} ended at byte {at} while it was read", hint=AGAIN)
                rest, at = rest[count:], at + count


def open(path: Path | str) -> Checkpoint:
    """The checkpoint in a folder, its headers checked against each other and no weight read.

    Follows transformers: model.safetensors before model.safetensors.index.json. Weights may be symbolic links
    to anywhere; config and tokenizer only to within the folder or the blobs of the Hugging Face cache it is in.
    Raises UnsafeFile for what is damaged, hostile, a pickle or contradicts itself, ModelNotFound when there is
    no checkpoint, StoreError when it cannot be read.
    """
    folder = Path(path)
    files: dict[str, BinaryIO] = {}
    tensors: dict[str, Tensor] = {}
    notes: list[str] = []
    with reading(folder), ExitStack() as opened:
        if not folder.is_dir():
            opened.enter_context(open_file(folder))  # says so of a pickle, and when there is nothing
            raise StoreError(f"{folder} is a file", hint="give the folder that holds it and its config.json")
        places = None if lexists(folder / WEIGHTS) else index(folder)
        if places is None and lexists(folder / INDEX):
            notes.append(f"{WEIGHTS} is used, {INDEX} beside it is not")
        for shard in sorted(set(places.values())) if places else [WEIGHTS]:
            files[shard] = opened.enter_context(open_file(folder / shard))
            for name, info in header_of(files[shard], shard).items():
                if name in tensors:
                    raise UnsafeFile(
                        f"tensor {name[:80]} is in {tensors[name].file} and in {shard}", hint=AGAIN
                    )
                tensors[name] = Tensor(info.dtype, info.shape, info.bytes, shard, info.offset)
        if places:
            compare(places, tensors)
        if not (folder / CONFIG).exists():
            raise ModelNotFound(
                f"{folder} has no {CONFIG}", hint="give the folder of a Hugging Face checkpoint"
            )
        config = read_json(inside(folder, CONFIG))
        if "auto_map" in config:
            notes.append(f"{CONFIG} names code that the checkpoint brings (auto_map); it is never run")
        text_files = {name: inside(folder, name) for name in TEXT_FILES if (folder / name).exists()}
        json_files = [CONFIG, INDEX] if places else [CONFIG]
        sources = {name: folder / name for name in (*json_files, *files)} | text_files
        opened.pop_all()
    return Checkpoint(folder, config, tensors, text_files, sources, tuple(notes), files)


def index(folder: Path) -> dict[str, str]:
    """Tensor → shard, as the index says; every shard is there and has a plain name."""
    if not lexists(folder / INDEX):
        raise without_weights(folder)
    places = read_json(inside(folder, INDEX)).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise bad(f"{INDEX} has no weight_map")
    shards: dict[str, int] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or not is_name(shard) or not is_name(name):
            raise bad(
                f"{INDEX} puts {name[:40]!r} into {str(shard)[:40]!r}: not the names of a tensor and a file"
            )
        shards[shard] = shards.get(shard, 0) + 1
    for shard, count in sorted(shards.items()):
        if shard.lower().endswith(PICKLES):
            raise bad(f"{INDEX} names {shard[:80]}, a pickle, which is never opened", NO_PICKLE)
        if not shard.endswith(".safetensors"):
            raise bad(f"{INDEX} names {shard[:80]}, not a safetensors file")
        if not lexists(folder / shard):
            raise bad(f"{shard[:80]} is missing; {INDEX} puts {count} tensors there")
    for path in sorted(folder.iterdir()):
        if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", path.name) and path.name not in shards:
            raise bad(f"{path.name} is there and {INDEX} does not name it")
    return places


def without_weights(folder: Path) -> UnsafeFile | ModelNotFound:
    """What to say of a folder that has neither model.safetensors nor an index."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLES:
            return bad(f"{folder} has weights only as pickles ({path.name[:80]!r}), never opened", NO_PICKLE)
        if path.suffix == ".safetensors":
            what = f"{folder} has {path.name[:80]!r}, but neither {WEIGHTS} nor {INDEX}"
            return ModelNotFound(what, hint="get the missing file from where the model came from")
    return ModelNotFound(f"{folder} has no {WEIGHTS}", hint="give the folder of a Hugging Face checkpoint")


def compare(places: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Every tensor is in the shard that the index says, and none is elsewhere."""
    for name, tensor in tensors.items():
        stated = places.get(name)
        if stated is None:
            raise bad(f"{tensor.file} holds tensor {name[:80]}, which {INDEX} does not name")
        if stated != tensor.file:
            raise bad(f"tensor {name[:80]} is in {tensor.file}; {INDEX} says {stated}")
    for name, stated in places.items():
        if name not in tensors:
            raise bad(f"tensor {name[:80]} is in no shard; {INDEX} says {stated}")


def inside(folder: Path, name: str) -> Path:
    """The real path of a file of text. A link could bring any file of this machine into what is made from it."""
    home, real = folder.resolve(), (folder / name).resolve()
    roots = [
        home,
        *((parent.parent / "blobs").resolve() for parent in home.parents if parent.name == "snapshots"),
    ]
    if not any(real.is_relative_to(root) for root in roots):
        raise bad(f"{name} is a link that leads out of {folder}", "put the file itself there")
    if not real.is_file():
        raise bad(f"{name} is no regular file")
    return real


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object in a file. Raises as `open` does."""
    with open_file(path) as file, reading(path):
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON:
            raise bad(f"{path.name} has {size} bytes; {MAX_JSON} is the limit")
        text = os.pread(file.fileno(), size, 0)
    return json_object(text, path.name)


def elements(tensor: Tensor) -> int:
    return tensor.bytes // DTYPES[tensor.dtype].itemsize


def not_finite(block: Array, dtype: str) -> npt.NDArray[np.bool_]:
    """Which elements are NaN or infinite as float32; of integers none, in an empty array."""
    if dtype == "F64":
        with np.errstate(over="ignore"):
            return ~np.isfinite(block.astype(np.float32))
    if dtype not in EXPONENT:
        return np.zeros(0, np.bool_)
    bits = block.view(f"<u{block.itemsize}")
    found: npt.NDArray[np.bool_] = bits & EXPONENT[dtype] == EXPONENT[dtype]
    return found


def widen(block: Array, dtype: str, out: Float32) -> None:
    """The elements as float32, into `out`; they are finite."""
    if dtype == "BF16":  # the upper half of a float32
        bits = out.view(np.uint32)
        bits[:] = block
        bits <<= 16
    elif dtype.startswith("F8"):
        out[:] = eight_bits(3 if dtype == "F8_E4M3" else 2)[block]
    else:
        out[:] = block


@cache
def eight_bits(mantissa: int) -> Float32:
    """The 256 values of an 8-bit float with so many bits of mantissa (OCP 8-bit Floating Point, 2023)."""
    code = np.arange(256)
    exponent, fraction = (code & 127) >> mantissa, (code & (1 << mantissa) - 1) / (1 << mantissa)
    bias = (1 << 6 - mantissa) - 1
    size = np.where(exponent, 1 + fraction, 2 * fraction) * 2.0 ** (exponent - bias)
    signed: Float32 = np.where(code > 127, -size, size).astype(np.float32)
    return signed
