"""Files that pretend to be models, built in code: `HOSTILE` maps a name to (builder, part of the refusal).

A builder's docstring says what the lie has done or would do to a reader that believes it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {}
U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
HUGE = 2**64 - 1


def hostile(refusal: str) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Register a builder in HOSTILE under its own name."""

    def register(builder: Callable[[], bytes]) -> Callable[[], bytes]:
        HOSTILE[builder.__name__] = (builder, refusal)
        return builder

    return register


# The pieces of a GGUF file, each able to lie.


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def text(key: str, value: str | bytes) -> bytes:
    return pair(key, STRING, string(value))


def u32(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def array(key: str, kind: int, count: int, values: bytes = b"") -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, count) + values)


def tensor(name: str | bytes = "a", shape: Sequence[int] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


LLAMA = text("general.architecture", "llama")


def gguf(
    keys: Sequence[bytes] = (LLAMA,),
    tensors: Sequence[bytes] | None = None,
    *,
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
    data: int = 256,
) -> bytes:
    """A file of these pieces with `data` bytes of tensor data; as it stands, a good one."""
    tensors = [tensor()] if tensors is None else tensors
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*keys, *tensors])
    return header + bytes(-len(header) % 32 + data)


# Not GGUF at all.


@hostile("is empty")
def empty() -> bytes:
    """A download that never began."""
    return b""


@hostile("web page")
def web_page() -> bytes:
    """A login page saved under the model's name."""
    return b"\n<!DOCTYPE html><html><title>Sign in</title></html>"


@hostile("JSON")
def server_error() -> bytes:
    """An API's error body saved under the model's name."""
    return b'{"error": "Access to this model is restricted"}'


@hostile("Git-LFS pointer")
def lfs_pointer() -> bytes:
    """A clone without git-lfs: 130 bytes that stand for gigabytes."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 98362432\n"


@hostile("safetensors")
def safetensors() -> bytes:
    """A renamed safetensors file."""
    return struct.pack("<Q", 2) + b"{}"


@hostile("zip archive or a PyTorch pickle")
def pytorch_zip() -> bytes:
    """A renamed PyTorch file, which runs code when loaded (CVE-2025-32434)."""
    return b"PK\x03\x04" + bytes(60)


@hostile("pickle")
def bare_pickle() -> bytes:
    """A renamed pickle, which runs code when loaded."""
    return b"\x80\x04\x95" + bytes(60)


@hostile("GGJT")
def ggjt() -> bytes:
    """A llama.cpp file from before August 2023."""
    return b"tjgg" + struct.pack("<I", 3) + bytes(60)


@hostile("GGML")
def ggml() -> bytes:
    """The first llama.cpp files."""
    return b"lmgg" + bytes(60)


@hostile("zeros")
def reserved_space() -> bytes:
    """A downloader that reserves the size first and then died."""
    return bytes(4096)


@hostile("begins with b'MZ")
def wrong_magic() -> bytes:
    """A program under a model's name."""
    return b"MZ\x90\x00" + bytes(60)


# The preamble.


@hostile("ends at byte")
def magic_only() -> bytes:
    """Cut inside the first 24 bytes."""
    return b"GGUF\x03\x00"


@hostile("version 99")
def version_99() -> bytes:
    """A version nobody defined: its layout is unknown."""
    return gguf(version=99)


@hostile("version 1")
def version_1() -> bytes:
    """32-bit lengths: every later field would be misread."""
    return gguf(version=1)


@hostile("big-endian")
def big_endian() -> bytes:
    """Every number reversed."""
    return b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(60)


@hostile("claims 18446744073709551615 tensors")
def tensor_count_max() -> bytes:
    """An allocation of count * sizeof wraps round (CVE-2024-21836)."""
    return gguf(tensor_count=HUGE)


@hostile("claims 18446744073709551615 metadata keys")
def key_count_max() -> bytes:
    """An allocation of count * sizeof wraps round (CVE-2024-23605)."""
    return gguf(key_count=HUGE)


@hostile("cannot hold")
def more_tensors_than_bytes() -> bytes:
    """Plausible as a number, not for a file of this size."""
    return gguf(tensor_count=1000)


@hostile("4096 is the limit")
def too_many_keys() -> bytes:
    """A hundred thousand real keys: slow, and for nothing."""
    return gguf([pair(f"k{index:05}", U8, b"\0") for index in range(100_000)])


# Metadata.


@hostile("ends at byte")
def key_past_the_end() -> bytes:
    """A heap overread of the key's length (CVE-2024-23496)."""
    return gguf([string("general.architecture", length=2**40)])


@hostile("ends at byte 18446744073709551")
def key_length_max() -> bytes:
    """length + 1 for the final zero wraps round to an empty buffer (CVE-2024-23496)."""
    return gguf([string("general.architecture", length=HUGE)])


@hostile("ends at byte")
def string_past_the_end() -> bytes:
    """A value's length that leaves the file; gguf-py's reader accepted it."""
    return gguf([LLAMA, pair("general.name", STRING, string("x", length=10_000))])


@hostile("65535 is the limit")
def long_key() -> bytes:
    """The specification allows a key 65,535 bytes."""
    return gguf([LLAMA, pair("k" * 70_000, U8, b"\0")])


@hostile("not UTF-8")
def key_not_utf8() -> bytes:
    """Readers that decode it raise what nobody catches."""
    return gguf([LLAMA, pair(b"general.\xff\xfe", U8, b"\0")])


@hostile("not UTF-8")
def value_not_utf8() -> bytes:
    """The same in a value."""
    return gguf([LLAMA, text("general.name", b"\xc3\x28")])


@hostile("not a name")
def key_with_escapes() -> bytes:
    """Printed to a terminal it would clear the screen."""
    return gguf([LLAMA, pair("\x1b[2Jgeneral.name", U8, b"\0")])


@hostile("not a name")
def key_empty() -> bytes:
    """A key without a name."""
    return gguf([LLAMA, pair("", U8, b"\0")])


@hostile("is there twice")
def key_twice() -> bytes:
    """One reader takes the first, the other the last: what was checked is not what runs."""
    return gguf([LLAMA, text("general.architecture", "gpt2")])


@hostile("value type 13")
def value_type_13() -> bytes:
    """An index past the end of a table of type sizes."""
    return gguf([LLAMA, pair("general.name", 13, bytes(8))])


@hostile("bool of value 2")
def bool_2() -> bytes:
    """A C++ bool that is neither true nor false is undefined behaviour."""
    return gguf([LLAMA, pair("tokenizer.ggml.add_bos_token", BOOL, b"\x02")])


@hostile("bools of other values")
def bools_in_array() -> bytes:
    """The same, hidden in an array."""
    return gguf([LLAMA, array("llama.flags", BOOL, 3, b"\x00\x01\x07")])


@hostile("claims 1099511627776 elements")
def array_2_to_40() -> bytes:
    """A terabyte allocated, or 20 s in a loop, for a claim (CVE-2024-21825)."""
    return gguf([LLAMA, array("tokenizer.ggml.scores", F32, 2**40)])


@hostile("claims 1099511627776 elements")
def strings_2_to_40() -> bytes:
    """The same with strings."""
    return gguf([LLAMA, array("tokenizer.ggml.tokens", STRING, 2**40)])


@hostile("claims 2305843009213693952 elements")
def array_size_wraps() -> bytes:
    """2^61 elements of 8 bytes wrap round to zero bytes (CVE-2024-21825)."""
    return gguf([LLAMA, array("llama.numbers", U64, 2**61)])


@hostile("2097152 is the limit")
def millions_of_empty_strings() -> bytes:
    """24 MB that hold what they claim and keep a loop busy."""
    return gguf([LLAMA, array("tokenizer.ggml.tokens", STRING, 3_000_000, bytes(8 * 3_000_000))])


@hostile("ends at byte")
def token_past_the_end() -> bytes:
    """One token of a vocabulary leads out of the file."""
    return gguf([LLAMA, array("tokenizer.ggml.tokens", STRING, 2, string("a") + string("b", length=2**62))])


@hostile("ends at byte")
def token_length_max() -> bytes:
    """A length that is -1 when read as signed: the reader goes backwards."""
    return gguf([LLAMA, array("tokenizer.ggml.tokens", STRING, 3, string("a") + string("", length=HUGE))])


@hostile("array of arrays")
def nested_arrays() -> bytes:
    """A reader that recurses runs out of stack."""
    return gguf([LLAMA, array("a", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 10_000)])


@hostile("value type 77")
def array_of_type_77() -> bytes:
    """An unknown element type has no size to step by."""
    return gguf([LLAMA, array("a", 77, 1, bytes(8))])


@hostile("general.architecture is missing")
def no_architecture() -> bytes:
    """Nothing says how the tensors are to be used."""
    return gguf([text("general.name", "x")])


@hostile("general.architecture is int")
def architecture_a_number() -> bytes:
    """A getter that trusts the type reads a number as a pointer to text."""
    return gguf([u32("general.architecture", 1)])


@hostile("not a name")
def architecture_a_path() -> bytes:
    """The architecture names keys, and in some programs files."""
    return gguf([text("general.architecture", "../../etc/passwd")])


@hostile("part 2 of 3")
def second_part() -> bytes:
    """A part without its first has no metadata."""
    return gguf([pair("split.no", 2, b"\x01\0"), pair("split.count", 2, b"\x03\0")])


@hostile("general.alignment is 0")
def alignment_0() -> bytes:
    """A division by zero."""
    return gguf([LLAMA, u32("general.alignment", 0)])


@hostile("general.alignment is 13")
def alignment_13() -> bytes:
    """Rounding by masks needs a power of two."""
    return gguf([LLAMA, u32("general.alignment", 13)])


@hostile("general.alignment is 2147483648")
def alignment_2_to_31() -> bytes:
    """Padding to it overflows 32 bits."""
    return gguf([LLAMA, u32("general.alignment", 2**31)])


@hostile("general.alignment is str")
def alignment_a_string() -> bytes:
    """A getter that aborts on the wrong type."""
    return gguf([LLAMA, text("general.alignment", "32")])


# Tensors.


@hostile("5 dimensions")
def five_dimensions() -> bytes:
    """A write past an array of four (CVE-2024-21802)."""
    return gguf(tensors=[tensor(shape=(2, 2, 2, 2, 2))])


@hostile("4294967295 dimensions")
def dimensions_max() -> bytes:
    """The same with 2^32 - 1 (CVE-2024-21802)."""
    return gguf(tensors=[string("a") + struct.pack("<I", 2**32 - 1) + bytes(64)])


@hostile("0 dimensions")
def no_dimensions() -> bytes:
    """A tensor without a shape."""
    return gguf(tensors=[tensor(shape=())])


@hostile("no elements")
def zero_dimension() -> bytes:
    """A size of zero divides, and points nowhere; gguf-py's reader accepted it."""
    return gguf(tensors=[tensor(shape=(32, 0))])


@hostile("more than 2^63 elements")
def dimensions_wrap() -> bytes:
    """2^32 * 2^32 wraps round to 0 elements (CVE-2026-33298)."""
    return gguf(tensors=[tensor(shape=(2**32, 2**32))])


@hostile("more than 2^63 elements")
def dimension_negative() -> bytes:
    """-1 when read as signed (CVE-2024-21802)."""
    return gguf(tensors=[tensor(shape=(32, HUGE))])


@hostile("ends at byte")
def bytes_wrap() -> bytes:
    """(2^42 + 1) rows of 2^20: the elements fit 63 bits, their bytes wrap 64 (CVE-2026-33298)."""
    return gguf(tensors=[tensor(shape=(2**20, 2**42 + 1))])


@hostile("ends at byte")
def sizes_sum_wraps() -> bytes:
    """Two tensors of 2^63 bytes sum to an allocation of 0 (CVE-2025-53630, CVE-2026-27940)."""
    return gguf(tensors=[tensor("a", (2**61,)), tensor("b", (2**61,), offset=2**63)])


@hostile("type 99")
def type_99() -> bytes:
    """An index past the end of a table of types."""
    return gguf(tensors=[tensor(kind=99)])


@hostile("type 4,")
def type_removed() -> bytes:
    """Q4_2 was removed: its block size is 0 in ggml's table, a division by zero."""
    return gguf(tensors=[tensor(kind=4)])


@hostile("rows of 31")
def row_not_whole_blocks() -> bytes:
    """The last block of each row is read past its end."""
    return gguf(tensors=[tensor(shape=(31,), kind=2)])


@hostile("rows of 16")
def rows_split_a_block() -> bytes:
    """32 elements make one block, but two rows share it."""
    return gguf(tensors=[tensor(shape=(16, 2), kind=2)])


@hostile("is there twice")
def tensor_twice() -> bytes:
    """Which of the two is loaded depends on the reader."""
    return gguf(tensors=[tensor("a"), tensor("a", offset=128)])


@hostile("inside a which ends at 128")
def tensors_overlap() -> bytes:
    """One tensor's bytes used as another's; gguf-py's reader accepted it."""
    return gguf(tensors=[tensor("a"), tensor("b", offset=96)])


@hostile("not a multiple of 32")
def offset_misaligned() -> bytes:
    """SIMD loads fault on it."""
    return gguf(tensors=[tensor(offset=4)])


@hostile("ends at byte")
def offset_past_the_end() -> bytes:
    """A heap leak: whatever lies behind the buffer becomes weights (CVE-2026-7482)."""
    return gguf(tensors=[tensor(offset=2**40)])


@hostile("ends at byte")
def cut_by_one_byte() -> bytes:
    """A download that ended early: the last weights would be read past the end."""
    return gguf(data=127)


@hostile("63 is the limit")
def tensor_name_64() -> bytes:
    """GGML keeps names in 64 bytes with their zero."""
    return gguf(tensors=[tensor("x" * 64)])


@hostile("not a name")
def tensor_name_a_path() -> bytes:
    """A converter that writes one file a tensor would write this one; gguf-py's reader accepted it."""
    return gguf(tensors=[tensor("../../etc/passwd")])


@hostile("not a name")
def tensor_name_with_escapes() -> bytes:
    """Printed to a terminal it would set its title."""
    return gguf(tensors=[tensor("\x1b]0;owned\x07")])


@hostile("not a name")
def tensor_name_with_zero() -> bytes:
    """C sees a name that ends at the zero, Python one that does not: two tensors become one."""
    return gguf(tensors=[tensor("a\0b")])


@hostile("not UTF-8")
def tensor_name_not_utf8() -> bytes:
    """Readers that decode it raise what nobody catches."""
    return gguf(tensors=[tensor(b"\xff\xff")])
