"""Safetensors files and checkpoint folders that pretend, built in code.

`FILES` maps a name to (builder of the bytes, part of the refusal), `FOLDERS` to (builder into a folder, part of
the refusal). A builder's docstring says what the lie has done or would do to a reader that believes it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.convert.checkpoint import INDEX

FILES: dict[str, tuple[Callable[[], bytes], str]] = {}
FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def file(refusal: str) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Register a builder in FILES under its own name."""

    def register(builder: Callable[[], bytes]) -> Callable[[], bytes]:
        FILES[builder.__name__] = (builder, refusal)
        return builder

    return register


def folder(refusal: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register a builder in FOLDERS under its own name."""

    def register(builder: Callable[[Path], None]) -> Callable[[Path], None]:
        FOLDERS[builder.__name__] = (builder, refusal)
        return builder

    return register


# The pieces, each able to lie.


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def safetensors(header: Any = None, data: int = 24, *, length: int | None = None) -> bytes:
    """A file of this header (an object, or the text itself) and `data` bytes; as it stands, a good one."""
    header = {"a": entry()} if header is None else header
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def one(data: int = 24, **lies: Any) -> bytes:
    return safetensors({"a": entry(**lies)}, data)


def sharded(path: Path, places: Any, **held: list[str]) -> None:
    """A checkpoint whose index says `places`; `first` and `second` are the tensors that the shards hold."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text("{}")
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for shard, key in zip(SHARDS, ("first", "second"), strict=True):
        if key in held:
            tensors = {name: entry(offsets=(24 * at, 24 * at + 24)) for at, name in enumerate(held[key])}
            (path / shard).write_bytes(safetensors(tensors, 24 * len(tensors)))


def single(path: Path, config: bytes = b"{}") -> None:
    (path / "model.safetensors").write_bytes(safetensors())
    (path / "config.json").write_bytes(config)


# Not safetensors at all.


@file("is empty")
def empty() -> bytes:
    """A download that never began."""
    return b""


@file("too few for a header")
def seven_bytes() -> bytes:
    """Cut inside the length."""
    return b"\x02\0\0\0\0\0\0"


@file("web page")
def web_page() -> bytes:
    """A login page saved under the model's name."""
    return b"\n<!DOCTYPE html><html><title>Sign in</title></html>"


@file("JSON, perhaps")
def server_error() -> bytes:
    """An API's error body saved under the model's name."""
    return b'{"error": "Access to this model is restricted"}'


@file("Git-LFS pointer")
def lfs_pointer() -> bytes:
    """A clone without git-lfs: 130 bytes that stand for gigabytes."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 98362432\n"


@file("zip archive or a PyTorch pickle")
def pytorch_zip() -> bytes:
    """A renamed PyTorch file, which runs code when loaded, weights_only or not (CVE-2025-32434)."""
    return b"PK\x03\x04" + bytes(60)


@file("Python pickle")
def bare_pickle() -> bytes:
    """A renamed pickle, which runs code when loaded."""
    return b"\x80\x04\x95" + bytes(60)


@file("a GGUF file")
def gguf() -> bytes:
    """A renamed GGUF file."""
    return b"GGUF\x03\0\0\0" + bytes(60)


@file("gzip")
def gzip() -> bytes:
    """A compressed file."""
    return b"\x1f\x8b\x08" + bytes(60)


@file("zeros")
def reserved_space() -> bytes:
    """A downloader that reserved the size first and then died."""
    return bytes(4096)


@file("begins with b'[1, '")
def header_a_list() -> bytes:
    """A reader that looks names up in it raises what nobody catches."""
    return safetensors(b"[1, 2]")


# The header as a text.


@file("ends at byte 18446744073709551623 and the file has")
def length_max() -> bytes:
    """8 + length wraps round to 7."""
    return safetensors(length=2**64 - 1)


@file("ends at byte")
def length_past_the_end() -> bytes:
    """A terabyte allocated for a claim."""
    return safetensors(length=2**40)


@file("100000000 is the limit")
def length_past_the_limit() -> bytes:
    """Real bytes, and minutes of parsing."""
    return safetensors(length=100_000_001, data=100_000_001)


@file("not JSON")
def length_too_short() -> bytes:
    """The header is cut: the rest of it would be read as weights."""
    return safetensors(length=20)


@file("not JSON")
def length_too_long() -> bytes:
    """Weights are read as text."""
    return safetensors({"a": entry()}, length=80)


@file("not UTF-8")
def not_utf8() -> bytes:
    """Readers that decode it raise what nobody catches."""
    return safetensors(b'{"\xff":{}}')


@file("not JSON")
def utf16() -> bytes:
    """json.loads guesses encodings of bytes; another reader sees other names."""
    return safetensors("{}".encode("utf-16-le"), data=0)


@file("not JSON")
def two_objects() -> bytes:
    """One reader takes the first, another refuses."""
    return safetensors(b"{}{}", data=0)


@file("the key 'a' twice")
def tensor_twice() -> bytes:
    """One reader takes the first, the other the last: what was checked is not what runs."""
    text = json.dumps(entry())
    return safetensors(f'{{"a":{text},"a":{text}}}'.encode())


@file("the key 'dtype' twice")
def dtype_twice() -> bytes:
    """The same, one level below."""
    return safetensors(b'{"a":{"dtype":"F32","dtype":"I32","shape":[6],"data_offsets":[0,24]}}')


@file("the key 'k99999' twice")
def last_of_many_keys_twice() -> bytes:
    """A search for the twin that is quadratic takes minutes."""
    keys = ",".join(f'"k{key}":1' for key in range(100_000))
    return safetensors(f'{{{keys},"k99999":1}}'.encode())


@file("nested too deeply")
def nested() -> bytes:
    """A reader that recurses runs out of stack."""
    return safetensors(b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}")


@file("commas and brackets; 1048576 is the limit")
def two_million_values() -> bytes:
    """6 MB of header that become 400 MB of Python objects."""
    return safetensors(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}")


@file("a number of 1000000 digits")
def number_of_a_million_digits() -> bytes:
    """Decimal to binary is quadratic: minutes for one number."""
    return safetensors(b'{"a":' + b"9" * 1_000_000 + b"}")


@file("not an object of strings")
def metadata_a_number() -> bytes:
    """A getter that trusts the type."""
    return safetensors({"__metadata__": {"format": 1}, "a": entry()})


@file("not an object of strings")
def metadata_a_list() -> bytes:
    """The same, one level above."""
    return safetensors({"__metadata__": ["pt"], "a": entry()})


# Tensors.


@file("not a name")
def name_a_path() -> bytes:
    """A converter that writes one file a tensor would write this one."""
    return safetensors({"../../etc/passwd": entry()})


@file("not a name")
def name_with_escapes() -> bytes:
    """Printed to a terminal it would set its title."""
    return safetensors({"\x1b]0;owned\x07": entry()})


@file("not a name")
def name_with_zero() -> bytes:
    """C sees a name that ends at the zero: two tensors become one."""
    return safetensors({"a\0b": entry()})


@file("half of a character")
def name_half_a_character() -> bytes:
    """A lone surrogate is legal JSON and cannot be encoded: writing or printing it raises."""
    return safetensors({"\ud800": entry()})


@file("not a name")
def name_empty() -> bytes:
    """A tensor without a name."""
    return safetensors({"": entry()})


@file("not a name")
def name_of_a_megabyte() -> bytes:
    """It would be in every message."""
    return safetensors({"x" * (1 << 20): entry()})


@file("not described by dtype, shape and data_offsets")
def entry_incomplete() -> bytes:
    """A reader that indexes it raises what nobody catches."""
    return safetensors({"a": {"dtype": "F32", "shape": [6]}})


@file("not described by dtype, shape and data_offsets")
def entry_a_number() -> bytes:
    """The same with no object at all."""
    return safetensors({"a": 7})


@file("dtype 'F33'")
def dtype_unknown() -> bytes:
    """An element without a size."""
    return one(dtype="F33")


@file("dtype 'F4'")
def dtype_of_half_a_byte() -> bytes:
    """Exists in the format; its size is no whole number of bytes."""
    return one(dtype="F4", shape=[48])


@file("dtype \"['F32']\"")
def dtype_a_list() -> bytes:
    """Not hashable: a table look-up raises TypeError."""
    return one(dtype=["F32"])


@file("has shape")
def dimension_negative() -> bytes:
    """-2 times -3 elements are 6."""
    return one(shape=[-2, -3])


@file("has shape")
def dimension_2_to_63() -> bytes:
    """-2^63 when read as signed."""
    return one(shape=[2**63, 0], offsets=[0, 0], data=0)


@file("takes 73786976294838206464 bytes")
def dimensions_wrap() -> bytes:
    """2^32 * 2^32 elements wrap round to none."""
    return one(shape=[2**32, 2**32], offsets=[0, 0], data=0)


@file("has shape")
def dimension_a_float() -> bytes:
    """2.0 is equal to 2, and no size."""
    return one(shape=[2.0, 3.0])


@file("has shape")
def dimension_a_bool() -> bytes:
    """True is an int to Python."""
    return one(shape=[True, 6])


@file("has shape")
def shape_a_string() -> bytes:
    """A sequence of something else."""
    return one(shape="23")


@file("not up to 8 sizes")
def dimensions_100() -> bytes:
    """NumPy ends at 64, llama.cpp at 4."""
    return one(shape=[1] * 99 + [6])


@file("takes 24 bytes as F32 [2, 3] and has 20")
def shape_too_large() -> bytes:
    """The last row is read from the next tensor."""
    return one(offsets=[0, 20], data=20)


@file("takes 24 bytes as F32 [2, 3] and has 28")
def shape_too_small() -> bytes:
    """Four bytes are nobody's: a place to hide a second file in."""
    return one(offsets=[0, 28], data=28)


@file("has -24")
def offsets_reversed() -> bytes:
    """A length of -24, or of 2^64 - 24."""
    return one(offsets=[24, 0])


@file("has offsets")
def offset_negative() -> bytes:
    """The header itself, read as weights."""
    return one(offsets=[-24, 0])


@file("has offsets")
def offsets_of_three() -> bytes:
    """Unpacking it raises what nobody catches."""
    return one(offsets=[0, 12, 24])


@file("a hole")
def offset_past_the_end() -> bytes:
    """A heap leak: whatever lies behind the buffer becomes weights."""
    return one(offsets=[2**40, 2**40 + 24])


@file("the file has")
def cut_by_one_byte() -> bytes:
    """A download that ended early."""
    return one(data=23)


@file("1 bytes follow the last tensor")
def one_byte_more() -> bytes:
    """A file that is also something else: a zip archive is read from its end."""
    return one(data=25)


@file("inside a which ends at")
def tensors_overlap() -> bytes:
    """One tensor's bytes used as another's: a small file that unpacks to a large one."""
    return safetensors({"a": entry(), "b": entry(offsets=(12, 36))}, 36)


@file("inside a which ends at")
def tensors_the_same() -> bytes:
    """A thousand tensors of the same gigabyte."""
    return safetensors({"a": entry(), "b": entry()})


@file("a hole")
def hole() -> bytes:
    """Bytes that no tensor reads and no check covers."""
    return safetensors({"a": entry(), "b": entry(offsets=(32, 56))}, 56)


@file("a hole")
def hole_at_the_start() -> bytes:
    """The same before the first tensor."""
    return one(offsets=[8, 32], data=32)


# Folders.


@folder("no model.safetensors")
def nothing(path: Path) -> None:
    """An empty folder."""


@folder("no config.json")
def no_config(path: Path) -> None:
    """Weights that nothing describes."""
    single(path)
    (path / "config.json").unlink()


@folder("only as pickles")
def only_pickles(path: Path) -> None:
    """A checkpoint from before safetensors: loading it can run code (CVE-2025-32434)."""
    (path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


@folder("neither model.safetensors nor")
def shards_without_index(path: Path) -> None:
    """Which shards belong together is a guess."""
    (path / SHARDS[0]).write_bytes(safetensors())


@folder("config.json is not JSON")
def config_cut(path: Path) -> None:
    """A download that ended early."""
    single(path, b'{"architectures": [')


@folder("config.json is not a JSON object")
def config_a_list(path: Path) -> None:
    """A getter that trusts the type."""
    single(path, b"[]")


@folder("half of a character")
def config_half_a_character(path: Path) -> None:
    """A label that no file and no terminal could hold."""
    single(path, rb'{"id2label": {"0": "bad\ud800"}}')


@folder("the key 'hidden_size' twice")
def config_key_twice(path: Path) -> None:
    """Which of the two is used depends on the reader."""
    single(path, b'{"hidden_size": 4, "hidden_size": 8}')


@folder("nested too deeply")
def config_nested(path: Path) -> None:
    """A reader that recurses runs out of stack."""
    single(path, b'{"a":' * 400_000)


@folder("33554432 is the limit")
def config_huge(path: Path) -> None:
    """Memory that grows with a file nobody needs."""
    single(path, b"{}" + b" " * (33 << 20))


@folder("config.json is a link that leads out")
def config_a_link(path: Path) -> None:
    """A link in an unpacked archive brings a file of this machine into what is published."""
    single(path)
    (path.parent / "secret.json").write_text("{}")
    (path / "config.json").unlink()
    (path / "config.json").symlink_to("../secret.json")


@folder("tokenizer.json is a link that leads out")
def tokenizer_a_link(path: Path) -> None:
    """The same with a file that is copied into the model."""
    single(path)
    (path / "tokenizer.json").symlink_to("/etc/passwd")


@folder("model.safetensors: it is")
def weights_a_pickle(path: Path) -> None:
    """A renamed pickle."""
    single(path)
    (path / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(60))


@folder("has no weight_map")
def index_without_map(path: Path) -> None:
    """An index of nothing."""
    sharded(path, [], first=["a"])


@folder("not the names of a tensor and a file")
def index_names_a_parent(path: Path) -> None:
    """A path that leaves the folder reads another model's weights, or a device."""
    sharded(path, {"a": "../" + SHARDS[0]})


@folder("not the names of a tensor and a file")
def index_names_a_root(path: Path) -> None:
    """The same with an absolute path."""
    sharded(path, {"a": "/dev/zero.safetensors"})


@folder("not the names of a tensor and a file")
def index_names_a_number(path: Path) -> None:
    """Joined to a path it raises what nobody catches."""
    sharded(path, {"a": 7})


@folder("a pickle, which is never opened")
def index_names_a_pickle(path: Path) -> None:
    """An index that is safe by its name alone."""
    sharded(path, {"a": "pytorch_model-00001-of-00002.bin"})


@folder("not a safetensors file")
def index_names_a_text(path: Path) -> None:
    """A file of another kind."""
    sharded(path, {"a": "config.json"})


@folder("model-00002-of-00002.safetensors is missing; model.safetensors.index.json puts 1 tensors there")
def shard_missing(path: Path) -> None:
    """A download that skipped one file."""
    sharded(path, {"a": SHARDS[0], "b": SHARDS[1]}, first=["a"])


@folder("model-00002-of-00002.safetensors is there and")
def shard_not_in_the_index(path: Path) -> None:
    """Half a model under the index of another."""
    sharded(path, {"a": SHARDS[0]}, first=["a"], second=["b"])


@folder("tensor b is in no shard; model.safetensors.index.json says model-00001")
def tensor_missing(path: Path) -> None:
    """A model that computes with what is there."""
    sharded(path, {"a": SHARDS[0], "b": SHARDS[0]}, first=["a"])


@folder("tensor b is in model-00002-of-00002.safetensors; model.safetensors.index.json says model-00001")
def tensor_in_another_shard(path: Path) -> None:
    """Shards of two saves of the model, mixed."""
    sharded(path, {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]}, first=["a"], second=["b", "c"])


@folder("tensor a is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors")
def tensor_in_two_shards(path: Path) -> None:
    """Which of the two is used depends on the reader."""
    sharded(path, {"a": SHARDS[0], "b": SHARDS[1]}, first=["a"], second=["a", "b"])


@folder("holds tensor b, which model.safetensors.index.json does not name")
def tensor_not_in_the_index(path: Path) -> None:
    """Weights that one reader uses and another never sees."""
    sharded(path, {"a": SHARDS[0]}, first=["a", "b"])
