"""Reading GGUF weights as float32: every type, in pieces, from one file or several."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from edge.convert import gguf_source
from edge.convert.ggml_types import dequantize, to_float
from edge.errors import BadGGUF, ConversionError, ModelNotFound, UnsafeFile

QUANTIZED = [
    kind
    for kind in Type
    if gguf.GGML_QUANT_SIZES[kind][0] > 1 and kind not in (Type.Q8_1, Type.Q8_K, Type.Q1_0)
]


def write(path, tensors, **keys):
    """A GGUF file of these tensors: arrays, or (bytes as a (rows, row bytes) array, type)."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        writer.add_uint16(key.replace("_", "."), value)
    for name, tensor in tensors.items():
        values, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks_of(kind, rows, columns):
    """Random blocks whose scales are small finite numbers: quantized where gguf can, else patched."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(int(kind))
    try:
        return gguf.quantize(draw.standard_normal((rows, columns)).astype(np.float32), kind)
    except NotImplementedError:
        return draw.integers(0, 0x30, (rows, columns // elements * size), dtype=np.uint8)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_every_quantized_type_reads_as_the_gguf_package_has_it(tmp_path, kind):
    data = blocks_of(kind, 5, 512)
    path = write(tmp_path / "model.gguf", {"w": (data, kind)})
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(data, kind)
    assert np.isfinite(expected).all()
    assert expected.any()
    with gguf_source.open(path) as source:
        assert source.types == {"w": kind.name}
        assert source.shape("w") == (5, 512)
        assert np.array_equal(source.float32("w"), expected)
        pieces = list(source.chunks("w", 2 * 512 * 4 + 100))
        assert [len(piece) for piece in pieces] == [2, 2, 1]
        assert np.array_equal(np.concatenate(pieces), expected)
        assert source.raw("w").tobytes() == data.tobytes()


def test_floats_are_exact_and_a_large_tensor_comes_in_blocks(tmp_path):
    draw = np.random.default_rng(0)
    wide = draw.standard_normal((3, 300_000)).astype(np.float32)
    half = draw.standard_normal((64, 32)).astype(np.float16)
    brain = gguf.quantize(wide[:, :64], Type.BF16)
    path = write(
        tmp_path / "model.gguf",
        {"wide": wide, "half": half, "brain": (brain, Type.BF16), "double": wide[0, :7].astype(np.float64)},
    )
    with gguf_source.open(path) as source:
        assert np.array_equal(source.float32("wide"), wide)
        assert np.array_equal(source.float32("half"), half.astype(np.float32))
        assert np.array_equal(source.float32("brain"), gguf.dequantize(brain, Type.BF16))
        assert np.array_equal(source.float32("double"), wide[0, :7])
        assert [len(piece) for piece in source.chunks("half", 1, rows=24)] == [24, 24, 16]
        (vector,) = source.chunks("double", 1)
        assert vector.shape == (1, 7)


def test_a_model_in_two_files_is_one(tmp_path):
    first, second = (np.full((2, 4), value, np.float32) for value in (1, 2))
    parts = {"split_count": 2}
    path = write(tmp_path / "m-00001-of-00002.gguf", {"a": first}, **parts, split_no=0)
    with pytest.raises(ModelNotFound, match=r"m-00002-of-00002\.gguf"):
        gguf_source.open(path)
    write(tmp_path / "m-00002-of-00002.gguf", {"b": second}, **parts, split_no=1)
    with gguf_source.open(path) as source:
        assert [tensor.name for tensor in source.header.tensors] == ["a", "b"]
        assert np.array_equal(source.float32("a"), first)
        assert np.array_equal(source.float32("b"), second)
    write(tmp_path / "m-00002-of-00002.gguf", {"a": second}, **parts, split_no=1)
    with pytest.raises(BadGGUF, match="tensor a is in two parts"):
        gguf_source.open(path)
    with pytest.raises(BadGGUF, match="does not say which"):
        gguf_source.open(path.rename(tmp_path / "renamed.gguf"))


def test_what_is_no_weight_is_refused(tmp_path):
    spoilt = np.ones((4, 8), np.float32)
    spoilt[2, 3] = np.inf
    path = write(
        tmp_path / "m.gguf",
        {"ints": np.arange(8, dtype=np.int32), "spoilt": spoilt, "far": np.array([1.0, -1e300])},
    )
    with gguf_source.open(path) as source:
        with pytest.raises(BadGGUF, match=r"m\.gguf has no tensor other"):
            source.float32("other")
        with pytest.raises(UnsafeFile, match="ints is I32, not floats"):
            source.float32("ints")
        with pytest.raises(
            UnsafeFile, match=r"spoilt has a value that is NaN or infinite, the first at \[2, 3\]"
        ):
            list(source.chunks("spoilt", 32))
        with pytest.raises(UnsafeFile, match=r"far has .* at \[1\]"):
            source.float32("far")
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(BadGGUF, match="ended at byte"):
            source.float32("far")
    with pytest.raises(BadGGUF):
        gguf_source.open(path)


def test_types_that_ggml_only_computes_with_have_no_values():
    with pytest.raises(ConversionError, match="no way to read the type Q8_K"):
        to_float("Q8_K")
    with pytest.raises(ValueError, match="36 bytes of Q4_0 are not 32 elements"):
        dequantize(np.zeros(36, np.uint8), "Q4_0", np.empty(32, np.float32))
