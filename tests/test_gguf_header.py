"""The header guard: good files read exactly, all else refused in one line, soon and with little memory."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import gguf
import hostile
import numpy as np
import pytest
from hostile import F32, HOSTILE, I32, LLAMA, STRING, U8, array, string, tensor, text, u32
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import CHATML, tiny_llama

from edge.errors import BadGGUF, ModelNotFound, StoreError
from edge.gguf_header import TYPES, Array, Header, Tensor, elements, read
from edge.gguf_header.tables import FILE_TYPES

random_files = settings(
    max_examples=150, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(content)
    return path


# Files that are not what they say.


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused(name: str, tmp_path: Path) -> None:
    builder, refusal = HOSTILE[name]
    path = write(tmp_path, builder())
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(BadGGUF) as caught:
        read(path)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refusal in str(caught.value)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert str(caught.value).startswith("model.gguf: ")
    assert str(caught.value).isprintable()  # one line, no escape sequence
    assert len(str(caught.value)) < 250
    assert seconds < 1
    assert peak < 1 << 20


def test_every_hostile_file_has_a_reason() -> None:
    assert len(HOSTILE) > 60
    assert all(builder.__doc__ for builder, _ in HOSTILE.values())


def test_the_costliest_header_within_the_limits_stays_bounded(tmp_path: Path) -> None:
    """As many strings as are allowed, then a lie: no refusal takes longer than this one."""
    strings = array("tokens", STRING, 1 << 21, bytes(8 << 21))
    path = write(tmp_path, hostile.gguf([LLAMA, strings, array("more", STRING, 1, string(""))]))
    began = time.process_time()
    with pytest.raises(BadGGUF, match="2097153"):
        read(path)
    assert time.process_time() - began < 3


def test_a_sparse_terabyte_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = write(tmp_path, hostile.gguf([LLAMA, array("scores", F32, 1 << 37)]))
    os.truncate(path, 1 << 40)
    with pytest.raises(BadGGUF, match="claims 137438953472 elements"):
        read(path)
    path = write(tmp_path, hostile.gguf([LLAMA, hostile.pair("general.name", STRING, string("", 1 << 38))]))
    os.truncate(path, 1 << 40)
    with pytest.raises(BadGGUF, match="134217728 is the limit"):
        read(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        read(tmp_path / "absent.gguf")
    with pytest.raises(ModelNotFound, match="does not exist"):
        read(write(tmp_path, b"") / "below-a-file.gguf")
    with pytest.raises(StoreError, match="is a folder"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(StoreError, match="no regular file"):
        read(tmp_path / "pipe.gguf")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write(tmp_path, hostile.gguf())
    path.chmod(0)
    with pytest.raises(StoreError, match="Permission denied"):
        read(path)


# Good files.


def test_golden(tmp_path: Path) -> None:
    keys = [
        LLAMA,
        u32("llama.block_count", 2),
        u32("general.alignment", 64),
        u32("general.file_type", 15),
        text("tokenizer.chat_template", "{{ x }}\n"),
        array("llama.attention.head_count_kv", I32, 2, b"\4\0\0\0\2\0\0\0"),
        array("tokenizer.ggml.tokens", STRING, 2, string("a") + string(b"\xff")),
        array("tokenizer.ggml.scores", U8, 1025, bytes(range(256)) * 4 + b"\7"),
    ]
    tensors = [tensor("b", (256, 3), 12, offset=192), tensor("a", (16, 2), offset=0)]
    path = write(tmp_path, hostile.gguf(keys, tensors, data=1024))
    header = read(path)
    assert header == Header(
        version=3,
        metadata={
            "general.architecture": "llama",
            "llama.block_count": 2,
            "general.alignment": 64,
            "general.file_type": 15,
            "tokenizer.chat_template": "{{ x }}\n",
            "llama.attention.head_count_kv": (4, 2),
            "tokenizer.ggml.tokens": Array("string", 2, 325),
            "tokenizer.ggml.scores": Array("u8", 1025, 388),
        },
        tensors=(Tensor("b", (256, 3), "Q4_K", 192, 432), Tensor("a", (16, 2), "F32", 0, 128)),
        alignment=64,
        data_offset=1536,
        file_bytes=path.stat().st_size,
    )
    assert header.architecture == "llama"
    assert header.layers == 2
    assert header.parameters == 800
    assert header.quantization == "Q4_K_M"
    assert header.bytes_by_type == {"Q4_K": 432, "F32": 128}
    assert header.chat_template == "{{ x }}\n"
    assert header.split_count == 1
    assert header.per_layer("{arch}.attention.head_count_kv") == (4, 2)
    assert header.per_layer("{arch}.attention.head_count", 8) == (8, 8)
    assert elements(path, "tokenizer.ggml.tokens") == ("a", "\ufffd")
    assert elements(path, "tokenizer.ggml.scores")[-3:] == (254, 255, 7)
    assert elements(path, "llama.attention.head_count_kv") == (4, 2)
    with pytest.raises(BadGGUF, match=r"block_count is int 2 where an array is expected"):
        elements(path, "llama.block_count")


@pytest.mark.parametrize(
    ("pairs", "ask", "refusal"),
    [
        ([text("llama.block_count", "2")], "layers", "llama.block_count is str '2' where int is expected"),
        ([u32("llama.block_count", 0)], "layers", "is 0; 1 to 512 is possible"),
        ([u32("llama.block_count", 2**32 - 1)], "layers", "is 4294967295; 1 to 512 is possible"),
        ([], "layers", "llama.block_count is missing"),
        ([u32("tokenizer.chat_template", 1)], "chat_template", "is int 1 where str is expected"),
        ([hostile.pair("split.count", hostile.BOOL, b"\1")], "split_count", "is bool True where int"),
        ([text("general.file_type", "Q4_K_M")], "quantization", "is str 'Q4_K_M' where int is expected"),
    ],
)
def test_wrong_values_are_refused_when_asked_for(
    pairs: list[bytes], ask: str, refusal: str, tmp_path: Path
) -> None:
    header = read(write(tmp_path, hostile.gguf([LLAMA, *pairs])))
    with pytest.raises(BadGGUF, match=refusal) as caught:
        getattr(header, ask)
    assert caught.value.hint


def test_per_layer_array_of_another_length_is_refused(tmp_path: Path) -> None:
    keys = [LLAMA, u32("llama.block_count", 3), array("llama.heads", I32, 2, bytes(8))]
    with pytest.raises(BadGGUF, match="3 ints are expected, one a layer"):
        read(write(tmp_path, hostile.gguf(keys))).per_layer("{arch}.heads")


def test_numbers_that_are_none(tmp_path: Path) -> None:
    header = read(write(tmp_path, hostile.gguf([LLAMA, hostile.pair("llama.rope", F32, b"\0\0\xc0\x7f")])))
    with pytest.raises(BadGGUF, match="rope is nan, not a number"):
        header.get("{arch}.rope", float)


def test_version_2_and_a_file_without_tensors_are_good(tmp_path: Path) -> None:
    header = read(write(tmp_path, hostile.gguf(tensors=[], version=2, data=0)))
    assert (header.version, header.tensors, header.quantization) == (2, (), "none")


def test_parts_of_a_split_model(tmp_path: Path) -> None:
    count = hostile.pair("split.count", 2, b"\x03\0")
    first = write(tmp_path, hostile.gguf([LLAMA, hostile.pair("split.no", 2, b"\0\0"), count]))
    assert read(first).split_count == 3
    with pytest.raises(BadGGUF, match="part 1 of 3 where part 2 is expected"):
        read(first, part=2)
    second = write(tmp_path, HOSTILE["second_part"][0]())
    assert read(second, part=2).parameters == 32


def test_unknown_file_type_falls_back_to_the_type_of_most_bytes(tmp_path: Path) -> None:
    tensors = [tensor("a", (32, 4), 3), tensor("b", (8,), offset=96)]
    header = read(write(tmp_path, hostile.gguf([LLAMA, u32("general.file_type", 1024)], tensors)))
    assert header.quantization == "Q4_1"


# Against gguf-py.


def test_type_tables_agree_with_gguf_py() -> None:
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        # gguf-py still gives Q8_1 its size of 2023; ggml-common.h asserts two halves and 32 bytes.
        assert TYPES[kind] == (kind.name, block, 36 if kind.name == "Q8_1" else size)
    for level in gguf.LlamaFileType:
        if level is not gguf.LlamaFileType.GUESSED:
            assert FILE_TYPES[level] == level.name.split("_", 1)[1].removesuffix("_MOE")


def assert_same(path: Path) -> None:
    """Our header holds what gguf-py's reader finds in the same file."""
    header, theirs = read(path), gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(header.metadata) == list(fields)
    for key, value in header.metadata.items():
        found = elements(path, key) if isinstance(value, Array) else value
        contents = fields[key].contents()
        expected = tuple(contents) if isinstance(contents, list) else contents
        if found != expected:  # NumPy takes seconds for a vocabulary, and knows that NaN equals NaN
            np.testing.assert_equal(found, expected)
    assert header.data_offset == theirs.data_offset
    assert header.alignment == theirs.alignment
    for ours, other in zip(header.tensors, theirs.tensors, strict=True):
        assert (ours.name, ours.shape) == (other.name, tuple(other.shape.tolist()))
        assert (ours.type, ours.bytes) == (other.tensor_type.name, other.n_bytes)
        assert header.data_offset + ours.offset == other.data_offset


def test_tiny_model_reads_as_gguf_py_reads_it(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "tiny.gguf")
    assert_same(path)
    assert read(path).chat_template == CHATML


names = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=15)
values = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.floats(width=32),
    st.text(st.characters(codec="utf-8"), max_size=300),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=1100),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=300), min_size=1, max_size=20),
    st.lists(st.booleans(), min_size=1, max_size=20),
)
shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4)
dtypes = st.sampled_from([np.float32, np.float16, np.float64, np.int8, np.int32])


@random_files
@given(
    metadata=st.dictionaries(names.map("x.{}".format), values, max_size=8),
    tensors=st.dictionaries(names, st.tuples(shapes, dtypes), min_size=1, max_size=6),
    alignment=st.sampled_from([None, 8, 32, 256]),
)
def test_random_good_files_read_as_gguf_py_reads_them(metadata, tensors, alignment, tmp_path: Path) -> None:
    path = tmp_path / "random.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, value in metadata.items():
        kind = gguf.GGUFValueType.get_type(value)
        if kind is gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kind)
    for name, (shape, dtype) in tensors.items():
        writer.add_tensor(name, np.zeros(shape, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_same(path)


# Damage: refused or harmless, never anything else.


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_llama(tmp_path_factory.mktemp("good") / "tiny.gguf", layers=1, embd=32, heads=2).read_bytes()


def refused_or_read(path: Path) -> None:
    began = time.process_time()
    try:
        header = read(path)
        header.layers, header.quantization, header.chat_template, header.split_count  # noqa: B018
        header.per_layer("{arch}.attention.head_count_kv")
    except BadGGUF:
        pass
    assert time.process_time() - began < 1


@random_files
@given(data=st.data())
def test_flipped_bytes(data: st.DataObject, good: bytes, tmp_path: Path) -> None:
    content = bytearray(good)
    header_bytes = read(write(tmp_path, good)).data_offset
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header_bytes - 1))] ^= data.draw(st.integers(1, 255))
    refused_or_read(write(tmp_path, bytes(content)))


@random_files
@given(at=st.integers(0, 9000), number=st.integers(0, 2**64 - 1), width=st.sampled_from([4, 8]))
@example(at=8, number=2**63, width=8)
def test_overwritten_numbers(at: int, number: int, width: int, good: bytes, tmp_path: Path) -> None:
    overwritten = (number % (1 << 8 * width)).to_bytes(width, "little")
    refused_or_read(write(tmp_path, good[:at] + overwritten + good[at + width :]))


@random_files
@given(part=st.floats(0, 1, exclude_max=True))
def test_cut_files_are_refused(part: float, good: bytes, tmp_path: Path) -> None:
    # The last tensor fills its place, so every cut takes away a byte that counts.
    with pytest.raises(BadGGUF):
        read(write(tmp_path, good[: int(part * len(good))]))


@random_files
@given(content=st.binary(max_size=400))
def test_noise_after_the_magic(content: bytes, tmp_path: Path) -> None:
    refused_or_read(write(tmp_path, b"GGUF\x03\0\0\0" + content))


# The model that people run.


@pytest.mark.model
def test_default_model(default_model: Path) -> None:
    began = time.process_time()
    header = read(default_model)
    assert time.process_time() - began < 0.5  # 25 ms on an idle laptop
    assert (header.architecture, header.layers, header.quantization) == ("llama", 30, "Q4_1")
    assert header.parameters == 134_515_008
    assert header.bytes_by_type == {"Q4_1": 66_355_200, "Q8_0": 30_081_024, "F32": 140_544}
    assert header.metadata["tokenizer.ggml.tokens"] == Array("string", 49_152, 1107)
    assert header.per_layer("{arch}.attention.head_count_kv") == (3,) * 30
    last = max(header.tensors, key=lambda tensor: tensor.offset)
    assert header.data_offset + last.offset + last.bytes <= header.file_bytes
    tokens = elements(default_model, "tokenizer.ggml.tokens")
    assert (len(tokens), tokens[1], tokens[2]) == (49_152, "<|im_start|>", "<|im_end|>")


@pytest.mark.model
@pytest.mark.slow
def test_default_model_reads_as_gguf_py_reads_it(default_model: Path) -> None:
    assert_same(default_model)
