"""Safetensors files: read exactly, refused in one line, written as the `safetensors` package writes them."""

from __future__ import annotations

import fcntl
import os
import struct
import time
import tracemalloc
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hostile_checkpoints import FILES, entry, safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.convert.safetensors import DTYPES, TensorInfo, Writer, read_header
from edge.errors import ModelNotFound, RequestError, StoreError, UnsafeFile

random_files = settings(
    max_examples=100, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# Files that are not what they say.


@pytest.mark.parametrize("name", FILES)
def test_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    builder, refusal = FILES[name]
    path = write(tmp_path, builder())
    began = time.process_time()
    with pytest.raises(UnsafeFile) as caught:
        read_header(path)
    seconds = time.process_time() - began
    tracemalloc.start()  # makes it several times slower
    with pytest.raises(UnsafeFile):
        read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refusal in str(caught.value)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert str(caught.value).startswith("model.safetensors: ")
    assert caught.value.line.isprintable()  # one line, no escape sequence
    assert len(str(caught.value)) < 250
    assert seconds < 2
    assert peak < 64 << 20


def test_every_hostile_file_has_a_reason() -> None:
    assert len(FILES) > 50
    assert all(builder.__doc__ for builder, _ in FILES.values())


def test_a_sparse_terabyte_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = write(tmp_path, safetensors(length=99_999_999))
    os.truncate(path, 1 << 40)
    with pytest.raises(UnsafeFile, match="not JSON"):
        read_header(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.PTH", "a.ckpt", "a.pkl"])
def test_pickles_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(safetensors())
    with pytest.raises(UnsafeFile, match="never opened") as caught:
        read_header(tmp_path / name)
    assert "safetensors" in caught.value.hint
    assert "CVE-2025-32434" in caught.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(StoreError, match="is a folder"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(StoreError, match="no regular file"):
        read_header(tmp_path / "pipe.safetensors")


# Good files.


def test_golden(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", [2, 3], [8, 20]),
        "scalar": entry("F64", [], [0, 8]),
        "none": entry("I8", [0, 3], [20, 20]),
    }
    tensors = read_header(write(tmp_path, safetensors(header, 20)))
    start = (tmp_path / "model.safetensors").stat().st_size - 20
    assert list(tensors.values()) == [
        TensorInfo("scalar", "F64", (), start, 8),
        TensorInfo("b", "BF16", (2, 3), start + 8, 12),
        TensorInfo("none", "I8", (0, 3), start + 20, 0),
    ]
    assert read_header(write(tmp_path, safetensors({}, 0))) == {}


@pytest.mark.parametrize("magic", [b"\x80\x02", b"\x1f\x8b"])
def test_a_length_that_looks_like_another_format_is_good(magic: bytes, tmp_path: Path) -> None:
    length = int.from_bytes(magic, "little")
    path = write(tmp_path, struct.pack("<Q", length) + b"{}" + b" " * (length - 2))
    assert read_header(path) == {}


def test_written_as_the_package_writes(tmp_path: Path) -> None:
    """The expected bytes are those of safetensors 0.8.0 for the same three tensors and metadata."""
    path = tmp_path / "a.safetensors"
    tensors = [("b", "F32", (2, 3)), ("é", "F16", ()), ("a", "I8", (0, 3))]
    with Writer(path, tensors, {"a": "é\u2028\x01"}) as writer:
        writer.write("b", np.arange(3, dtype="f4"))
        assert not path.exists()
        writer.write("b", np.arange(3, 6, dtype="f4"))
        writer.write("é", np.array(1.5, "f2"))
    header = (
        '{"__metadata__":{"a":"é\u2028\\u0001"},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
        '"é":{"dtype":"F16","shape":[],"data_offsets":[24,26]},'
        '"a":{"dtype":"I8","shape":[0,3],"data_offsets":[26,26]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    data = struct.pack("<6fe", 0, 1, 2, 3, 4, 5, 1.5)
    assert path.read_bytes() == struct.pack("<Q", len(header)) + header + data
    assert names_in(tmp_path) == ["a.safetensors"]


def test_metadata_is_sorted(tmp_path: Path) -> None:
    for keys in ("ab", "ba"):
        with Writer(tmp_path / keys, [], dict.fromkeys(keys, "")):
            pass
    assert (tmp_path / "ab").read_bytes() == (tmp_path / "ba").read_bytes()


# Writing that fails leaves nothing.


@pytest.mark.parametrize(
    ("tensors", "refusal"),
    [
        ([("a", "F32", (2,)), ("a", "F32", (2,))], "there twice"),
        ([("a", "F31", (2,))], "F31 is unknown"),
        ([("a", "F32", (-2,))], "shape"),
        ([("a", "F32", (2,) * 9)], "shape"),
        ([("../a", "F32", (2,))], "not a name"),
        ([("a\ud800", "F32", (2,))], "not UTF-8"),
        ([("__metadata__", "F32", (2,))], "not an object of strings"),
    ],
)
def test_tensors_that_no_file_can_have(tensors, refusal: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=refusal):
        Writer(tmp_path / "a.safetensors", tensors)


TWO = [("a", "F32", (2,)), ("b", "F16", (1,))]


@pytest.mark.parametrize(
    ("pieces", "refusal"),
    [
        ([], "lacks 8 bytes of tensor a"),
        ([("a", np.zeros(2, "f4"))], "lacks 2 bytes of tensor b"),
        ([("b", np.zeros(1, "f2"))], "2 bytes came for tensor b; due are 8 of a"),
        ([("a", np.zeros(3, "f4"))], "12 bytes came for tensor a; due are 8 of a"),
        ([("a", np.zeros(1, "f8"))], "tensor a is F32 and float64 came"),
        ([("a", np.zeros(2, ">f4"))], "tensor a is F32 and >f4 came"),
        ([("c", np.zeros(2, "f4"))], "8 bytes came for tensor c"),
        (
            [("a", np.zeros(2, "f4")), ("b", np.zeros(1, "f2")), ("b", np.zeros(1, "f2"))],
            "due are 0 of nothing",
        ),
    ],
)
def test_wrong_pieces_leave_what_was_there(pieces, refusal: str, tmp_path: Path) -> None:
    path = write(tmp_path, b"before")

    def convert() -> None:
        with Writer(path, TWO) as writer:
            for name, array in pieces:
                writer.write(name, array)

    with pytest.raises(RequestError, match=refusal):
        convert()
    assert path.read_bytes() == b"before"
    assert names_in(tmp_path) == ["model.safetensors"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "a.safetensors", TWO):
        raise KeyboardInterrupt
    assert names_in(tmp_path) == []


def test_a_rest_of_a_killed_write_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors.partial").write_bytes(b"x" * 9999)
    with Writer(tmp_path / "a.safetensors", [("a", "U8", (1,))]) as writer:
        writer.write("a", np.ones(1, "u1"))
    assert read_header(tmp_path / "a.safetensors")["a"].bytes == 1
    assert names_in(tmp_path) == ["a.safetensors"]


def test_a_second_writer_is_turned_away(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with Writer(path, [("a", "U8", (1,))]) as writer:
        with pytest.raises(StoreError, match="being written by another process"), Writer(path, []):
            pass
        writer.write("a", np.ones(1, "u1"))
    assert read_header(path)["a"].bytes == 1


def test_a_draft_that_just_got_its_name_is_not_written_to(tmp_path: Path, monkeypatch) -> None:
    """Between opening the draft and locking it, its writer may have renamed it."""
    path, draft = tmp_path / "a.safetensors", tmp_path / "a.safetensors.partial"
    draft.write_bytes(b"whole")
    real = fcntl.flock

    def rename_first(fd: int, operation: int) -> None:
        draft.rename(path)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", rename_first)
    with pytest.raises(StoreError, match="being written"), Writer(path, []):
        pass
    assert path.read_bytes() == b"whole"


def test_disks_that_refuse(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(StoreError, match="No such file"), Writer(tmp_path / "absent" / "a.safetensors", []):
        pass
    with pytest.raises(StoreError, match="is a folder"), Writer(tmp_path, []):
        pass
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(StoreError, match="takes 130 bytes and 10 are free"), Writer(tmp_path / "a", TWO):
        pass
    assert names_in(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"), Writer(tmp_path / "a.safetensors", []):
        pass
    tmp_path.chmod(0o700)


# Random files.

names = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=15)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@random_files
@given(
    tensors=st.dictionaries(names, st.tuples(st.sampled_from(list(DTYPES)), shapes), max_size=6),
    metadata=st.none() | st.dictionaries(names, st.text(st.characters(codec="utf-8")), max_size=3),
    pieces=st.integers(1, 7),
)
def test_what_is_written_is_read(tensors, metadata, pieces: int, tmp_path: Path) -> None:
    path, rng = tmp_path / "random.safetensors", np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 256, int(np.prod(shape)) * DTYPES[dtype].itemsize, dtype=np.uint8).view(
            DTYPES[dtype]
        )
        for name, (dtype, shape) in tensors.items()
    }
    with Writer(path, [(name, *kind) for name, kind in tensors.items()], metadata) as writer:
        for name, array in arrays.items():
            for piece in np.array_split(array, pieces):
                writer.write(name, piece)
    found, content = read_header(path), path.read_bytes()
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == tensors
    for name, info in found.items():
        assert content[info.offset : info.offset + info.bytes] == arrays[name].tobytes()


GOOD = safetensors(
    {"__metadata__": {"format": "pt"}, "a": entry(), "b.weight": entry("BF16", [4, 2], [24, 40])}, data=40
)


def refused_or_read(path: Path) -> None:
    began = time.process_time()
    with suppress(UnsafeFile):
        read_header(path)
    assert time.process_time() - began < 1


@random_files
@given(data=st.data())
def test_flipped_bytes(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(GOOD) - 41))] ^= data.draw(st.integers(1, 255))
    refused_or_read(write(tmp_path, bytes(content)))


@random_files
@given(cut=st.integers(0, len(GOOD) - 1))
def test_cut_files_are_refused(cut: int, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile):
        read_header(write(tmp_path, GOOD[:cut]))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@random_files
@given(
    dtype=json_values | st.just("F32"),
    shape=json_values | st.just([6]),
    offsets=json_values | st.just([0, 24]),
)
def test_any_json_for_an_entry(dtype, shape, offsets, tmp_path: Path) -> None:
    refused_or_read(write(tmp_path, safetensors({"a": entry(dtype, shape, offsets)})))
