"""Reads and writes safetensors files: the length of a JSON header in 8 bytes, the header, the tensors' bytes.

Layout and the limit of 100 MB: huggingface/safetensors, README ("Format") and tensor.rs. Nobody vouches for a
file, so every number in its header is checked against the bytes that are there, and tensor data is left alone.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge.errors import ModelNotFound, RequestError, StoreError, UnsafeFile
from edge.store.records import name_it

# What an element is in NumPy; formats that NumPy lacks are their bits. Sub-byte and complex types are not read.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"), "F8_E5M2": np.dtype("u1"), "BOOL": np.dtype("u1"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
}  # fmt: skip
MAX_HEADER = 100_000_000  # bytes, as in tensor.rs
MAX_VALUES = 1 << 20  # commas and brackets of a JSON text: bounds the memory its values take
MAX_DIMS = 8
HALF = re.compile(r"\\u[dD][89a-fA-F]")
MAX_NAME = 255  # bytes

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
AGAIN = "download it again"
OTHER = "get the model.safetensors of this model"
NO_PICKLE = (
    "a pickle can run code when it is opened (CVE-2025-32434); get the safetensors files of this model"
)
# What else is found under the name .safetensors: first bytes, what it is, what to do.
FOREIGN = (
    (b"version https://git-lfs", "a Git-LFS pointer", "run `git lfs pull`, or pull the model with edge"),
    (b"PK\x03\x04", "a zip archive or a PyTorch pickle", NO_PICKLE),
    (b"\x80", "a Python pickle", NO_PICKLE),
    (b"GGUF", "a GGUF file", "give it a name that ends in .gguf"),
    (b"\x1f\x8b", "gzip-compressed", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it first"),
    (b"{", "JSON, perhaps a server's error message", AGAIN),
    (b"\0\0\0\0", "zeros: a download that reserved its space and never finished", AGAIN),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's place. `shape` has the row length last; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    Raises UnsafeFile for a file that is something else, damaged or hostile, ModelNotFound when there is none,
    StoreError when it cannot be read.
    """
    with open_file(path) as file:
        return header_of(file, path.name)


def open_file(path: Path) -> BinaryIO:
    """A regular file, unbuffered; pickles are refused by name. Raises as `read_header` does."""
    if path.suffix.lower() in PICKLES:
        raise UnsafeFile(f"{path.name} is a pickle by its name, which is never opened", hint=NO_PICKLE)
    with reading(path):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its writer
            raise StoreError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
        return path.open("rb", buffering=0)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Give what the disk refuses the name of the file it was about."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(f"{path} does not exist", hint="`edge list` names the models kept here") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def header_of(file: BinaryIO, name: str) -> dict[str, TensorInfo]:
    """As `read_header`, of an open file that messages call `name`."""
    try:
        with reading(Path(name)):
            size = os.fstat(file.fileno()).st_size
            length = preamble(os.pread(file.fileno(), 64, 0), size)
            return tensors_of(os.pread(file.fileno(), length, 8), size)
    except UnsafeFile as error:
        raise UnsafeFile(f"{name}: {error}", hint=error.hint) from None


def preamble(start: bytes, file_bytes: int) -> int:
    """The header's length in bytes, from the first 64 bytes of the file."""
    if not file_bytes:
        raise bad("it is empty")
    if start[8:9] != b"{":  # with one, the bytes below could be a length that happens to look like this
        if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
            raise bad("it is a web page, not a model", "the link needs a login or leads to another page")
        for magic, what, hint in FOREIGN:
            if start.startswith(magic):
                raise bad(f"it is {what}, not safetensors", hint)
    if len(start) < 10:
        raise bad(f"it has {file_bytes} bytes, too few for a header")
    length: int = struct.unpack_from("<Q", start)[0]
    if 8 + length > file_bytes:
        raise bad(f"its header ends at byte {8 + length} and the file has {file_bytes}")
    if length > MAX_HEADER:
        raise bad(f"its header has {length} bytes; {MAX_HEADER} is the limit")
    if start[8:9] != b"{":
        raise bad(f"its header begins with {start[8:12]!r}, not with a JSON object")
    return length


def tensors_of(header: bytes, file_bytes: int) -> dict[str, TensorInfo]:
    entries = json_object(header, "its header")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or any(type(value) is not str for value in metadata.values()):
        raise bad("its __metadata__ is not an object of strings")
    data = 8 + len(header)
    found = [tensor_info(name, entry, data) for name, entry in entries.items()]
    found.sort(key=lambda tensor: (tensor.offset, tensor.bytes))
    end, before = data, "the header"
    for tensor in found:
        name = tensor.name[:80]
        if tensor.offset < end:
            raise bad(f"tensor {name} begins at {tensor.offset}, inside {before} which ends at {end}")
        if tensor.offset > end:
            raise bad(f"tensor {name} begins at {tensor.offset} and {before} ends at {end}: a hole")
        end, before = end + tensor.bytes, name
    if end > file_bytes:
        raise bad(f"tensor {before} ends at byte {end} and the file has {file_bytes}")
    if end < file_bytes:
        raise bad(f"{file_bytes - end} bytes follow the last tensor, which ends at {end}")
    return {tensor.name: tensor for tensor in found}


def tensor_info(name: str, entry: Any, data: int) -> TensorInfo:
    """One header entry, checked; `data` is where the tensors' bytes begin."""
    if not is_name(name):
        raise bad(f"a tensor is called {name[:40]!r}, not a name")
    short = name[:80]
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad(f"tensor {short} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise bad(f"tensor {short} has dtype {str(dtype)[:20]!r}; known are {' '.join(DTYPES)}", OTHER)
    if not are_sizes(shape) or len(shape) > MAX_DIMS:
        raise bad(f"tensor {short} has shape {str(shape)[:40]!r}, not up to {MAX_DIMS} sizes below 2^63")
    if not are_sizes(offsets) or len(offsets) != 2:
        raise bad(f"tensor {short} has offsets {str(offsets)[:40]!r}, not two numbers below 2^63")
    size, place = math.prod(shape) * DTYPES[dtype].itemsize, offsets[1] - offsets[0]
    if size != place:
        raise bad(f"tensor {short} takes {str(size)[:40]} bytes as {dtype} {shape} and has {place}")
    return TensorInfo(name, dtype, tuple(shape), data + offsets[0], size)


def is_name(text: str) -> bool:
    """Neither a path, nor empty, nor able to steer a terminal."""
    plain = text.isprintable() and not any(part in text for part in ("..", "/", "\\"))
    return plain and 0 < len(text.encode()) <= MAX_NAME


def are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def json_object(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object that costs no more than its values may, each key once. Raises UnsafeFile, naming `what`."""
    values = sum(map(text.count, (b",", b"[", b"{")))
    if values > MAX_VALUES:
        raise bad(f"{what} has {values} commas and brackets; {MAX_VALUES} is the limit")
    try:
        # bytes of another encoding would be guessed, numbers of a million digits computed
        found = json.loads(text.decode(), object_pairs_hook=once, parse_int=number)
    except UnicodeDecodeError as error:
        raise bad(f"{what} is not UTF-8 at its byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise bad(f"{what} is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise bad(f"{what} {error}") from None
    except RecursionError:
        raise bad(f"{what} is nested too deeply") from None
    if not isinstance(found, dict):
        raise bad(f"{what} is not a JSON object")
    if halved(text.decode(), found):
        raise bad(f"{what} holds half of a character")
    return found


def halved(text: str, found: Any) -> bool:
    """Whether the values of a JSON text hold half of a character, as "\\ud800" alone is: no file could hold it."""
    try:
        if HALF.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"has the key {name[:80]!r} twice")
        found[name] = value
    return found


def number(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"has a number of {len(digits)} digits")
    return int(digits)


def bad(what: str, hint: str = AGAIN) -> UnsafeFile:
    return UnsafeFile(what, hint=hint)


class Writer:
    """Writes a safetensors file in pieces; it has its real name only once it is whole and on the disk.

        with Writer(path, [("a", "F16", (2, 3))], {"format": "pt"}) as writer:
            writer.write("a", array)

    Tensors lie in the order given. The bytes are those of the `safetensors` package where that order is its own
    (widest dtype first, then by name), but for metadata: sorted here, in an order of chance there.
    Raises RequestError for tensors that no file can have, that come in another order or not at all, StoreError
    for what the disk refuses; nothing is left behind then.
    """

    def __init__(
        self,
        path: Path,
        tensors: Sequence[tuple[str, str, Sequence[int]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.stack = path, ExitStack()
        self.header, self.tensors = header_for(tensors, metadata)
        self.missing = {name: tensor.bytes for name, tensor in self.tensors.items() if tensor.bytes}

    def __enter__(self) -> Writer:
        total = len(self.header) + sum(self.missing.values())
        with ExitStack() as stack:  # which undoes the claim when the header does not fit the disk
            self.fd = stack.enter_context(atomic(self.path, total))
            put(self.fd, self.header, self.path)
            self.stack = stack.pop_all()
        self.stack.push(self.whole)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool | None:
        return self.stack.__exit__(kind, error, trace)

    def write(self, name: str, array: npt.NDArray[Any]) -> None:
        """The next elements of tensor `name`: of its dtype in DTYPES, in C order and any shape."""
        due, left = next(iter(self.missing.items()), ("nothing", 0))
        if array.size and (name != due or array.nbytes > left):
            raise RequestError(f"{array.nbytes} bytes came for tensor {name}; due are {left} of {due}")
        if array.dtype != DTYPES[self.tensors[name].dtype]:
            raise RequestError(f"tensor {name} is {self.tensors[name].dtype} and {array.dtype} came")
        put(self.fd, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, self.path)
        if array.size:
            self.missing[name] -= array.nbytes
            if not self.missing[name]:
                del self.missing[name]

    def whole(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None and self.missing:
            name, left = next(iter(self.missing.items()))
            raise RequestError(f"{self.path.name} lacks {left} bytes of tensor {name}")


def header_for(
    tensors: Sequence[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Length and JSON, padded to 8 bytes, and the tensors as they will be read again."""
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, dtype, shape in tensors:
        if name in entries or dtype not in DTYPES:
            raise RequestError(f"tensor {name} is there twice, or its dtype {dtype} is unknown")
        begin, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": list(map(int, shape)), "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")
    text += b" " * (-len(text) % 8)
    try:  # what is written here can be read here
        return struct.pack("<Q", len(text)) + text, tensors_of(text, 8 + len(text) + end)
    except UnsafeFile as error:
        raise RequestError(f"such a safetensors file is not possible: {error}") from None


@contextmanager
def atomic(path: Path, size: int) -> Iterator[int]:
    """A descriptor to write `size` bytes to, whose file becomes `path` when all went well."""
    draft = path.with_name(path.name + ".partial")
    with writing(path):
        fd = claimed(draft, path)
    try:
        with writing(path):
            os.ftruncate(fd, 0)  # what a killed process left
            free = shutil.disk_usage(path.parent).free
            if free < size:
                raise StoreError(f"{path} takes {size:,} bytes and {free:,} are free", hint="free some space")
        yield fd
        with writing(path):
            os.fsync(fd)
            name_it(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def claimed(draft: Path, path: Path) -> int:
    """A descriptor of the draft, locked: a second writer of `path` is turned away."""
    if path.is_dir():
        raise StoreError(f"{path} is a folder", hint="choose another name")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == draft.stat().st_ino:  # else its writer gave it its name just now
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    raise StoreError(
        f"{path} is being written by another process", hint="let it finish, or choose another name"
    )


def put(fd: int, data: bytes | memoryview, path: Path) -> None:
    """All of `data`: one call writes at most 2 GiB."""
    rest = memoryview(data)
    with writing(path):
        while rest:
            rest = rest[os.write(fd, rest) :]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}", hint="choose another folder"
        ) from None
