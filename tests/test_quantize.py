"""Every level of the installed llama.cpp, made in this process from a GGUF file of floats."""

import ctypes

import numpy as np
import pytest
from tiny import tiny_llama
from tiny_mixture import mixture

from edge import gguf_header
from edge.convert.proof import file_logits
from edge.convert.quantize import LEVELS, Settings, levels
from edge.convert.to_gguf import DEFAULT, convert
from edge.engine.binding import llama
from edge.errors import ConversionError, RequestError

NEEDS_IMPORTANCE = {"iq3_xs", "iq3_xxs", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Rows of 256, so that no level falls back."""
    return tiny_llama(tmp_path_factory.mktemp("wide") / "wide.gguf", embd=256, layers=1)


@pytest.fixture(scope="module")
def importance(source):
    header = gguf_header.read(source)
    draw = np.random.default_rng(0)
    return {
        tensor.name: draw.uniform(0.5, 1.5, tensor.shape[0]).astype(np.float32)
        for tensor in header.tensors
        if len(tensor.shape) == 2
    }


def quantize(source, folder, level, settings=DEFAULT):
    (made,) = convert(source, [level], folder, settings=settings, prove=False)
    return made.path


def tensors(path):
    """Name → (type, bytes)."""
    header, data = gguf_header.read(path), path.read_bytes()
    start = {tensor.name: header.data_offset + tensor.offset for tensor in header.tensors}
    return {
        tensor.name: (tensor.type, data[start[tensor.name] : start[tensor.name] + tensor.bytes])
        for tensor in header.tensors
    }


def llama_quantize(source, target, level, importance):
    """The same by llama.cpp's own quantizer, which reads and writes files."""
    lib = llama()
    params = lib.llama_model_quantize_default_params()
    params.ftype = levels()[level]
    rows = [
        (name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), values.size)
        for name, values in importance.items()
    ]
    if rows:
        array = (lib.llama_model_imatrix_data * (len(rows) + 1))(*rows, (None, None, 0))
        params.imatrix = ctypes.cast(array, type(params.imatrix))
    assert lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    return target


def test_the_installed_llama_cpp_has_every_level():
    assert set(levels()) == set(LEVELS)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_has_the_bytes_of_llama_cpps_own_quantizer(source, tmp_path, level, importance):
    weights = importance if level in NEEDS_IMPORTANCE else {}
    path = quantize(source, tmp_path / "ours", level, Settings(importance=weights))
    header = gguf_header.read(path)
    assert header.quantization.lower() == level
    assert tensors(path) == tensors(llama_quantize(source, tmp_path / "theirs.gguf", level, weights))
    assert np.isfinite(file_logits(path, [5, 6, 7])).all()


def test_threads_and_buffer_do_not_change_the_bytes(source, tmp_path):
    one = quantize(source, tmp_path / "one", "q4_k_m", Settings(threads=1))
    two = quantize(source, tmp_path / "two", "q4_k_m", Settings(threads=2, max_buffer=1 << 14))
    assert one.read_bytes() == two.read_bytes()


def test_importance_changes_the_bytes(source, tmp_path, importance):
    plain = quantize(source, tmp_path / "plain", "q4_k_m")
    weighed = quantize(source, tmp_path / "weighed", "q4_k_m", Settings(importance=importance))
    assert plain.read_bytes() != weighed.read_bytes()


def test_single_tensors_take_the_type_they_are_given(source, tmp_path):
    settings = Settings(tensor_types=[("ffn_down", "q8_0")], output_type="q6_K", embedding_type="q5_0")
    made = tensors(quantize(source, tmp_path, "q4_k_m", settings))
    assert made["blk.0.ffn_down.weight"][0] == "Q8_0"
    assert made["output.weight"][0] == "Q6_K"
    assert made["token_embd.weight"][0] == "Q5_0"
    assert made["blk.0.attn_q.weight"][0] == "Q4_K"


def test_rows_that_a_type_does_not_divide_fall_back_and_are_named(tmp_path):
    source = tiny_llama(tmp_path / "narrow.gguf", embd=64, layers=1)
    (made,) = convert(source, ["q4_k_m"], tmp_path, prove=False)
    assert "blk.0.attn_q.weight" in made.fell_back
    assert tensors(made.path)["blk.0.attn_q.weight"][0] == "Q5_0"


@pytest.mark.parametrize(
    ("level", "settings", "error", "words"),
    [
        ("q9_9", Settings(), RequestError, "'q9_9' is not a level"),
        ("q8_0", Settings(output_type="q9_9"), RequestError, "'q9_9' is no tensor type"),
        ("q8_0", Settings(tensor_types=[("(", "q8_0")]), ConversionError, "makes no q8_0 of it"),
        ("q8_0", Settings(prune_layers=[0]), RequestError, "layers are left out of checkpoints"),
        ("iq1_s", Settings(), ConversionError, "needs an importance matrix"),
        (
            "q4_0",
            Settings(importance={"blk.0.attn_q.weight": np.ones(8, np.float32)}),
            ConversionError,
            "8 columns",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(source, tmp_path, level, settings, error, words):
    with pytest.raises(error, match=words) as refused:
        quantize(source, tmp_path, level, settings)
    assert "\n" not in refused.value.line
    assert "===" not in refused.value.line
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_does_not_divide_the_rows_is_refused_before_llama_cpp_aborts(tmp_path):
    source = tiny_llama(tmp_path / "narrow.gguf", embd=64, layers=1)
    with pytest.raises(RequestError, match=r"q6_K does not divide token_embd\.weight's rows of 64"):
        quantize(source, tmp_path / "out", "q4_0", Settings(embedding_type="q6_K"))


def test_a_level_that_needs_importance_is_refused_before_others_are_made(source, tmp_path):
    steps = []
    with pytest.raises(ConversionError, match="needs an importance matrix"):
        convert(source, ["q8_0", "iq1_s"], tmp_path, prove=False, report=lambda *step: steps.append(step))
    assert steps == []


@pytest.mark.parametrize("level", ["q4_0", "iq4_nl", "q8_0"])
def test_experts_with_an_importance_each_have_the_bytes_of_llama_cpps_own_quantizer(tmp_path, level):
    source = mixture(tmp_path / "moe.gguf", experts=4, used=2)
    draw = np.random.default_rng(0)
    weights = {
        tensor.name: draw.uniform(0.1, 9, tensor.shape[0] * (*tensor.shape, 1)[2]).astype(np.float32)
        for tensor in gguf_header.read(source).tensors
        if len(tensor.shape) > 1
    }
    for buffer in (16 << 20, 4096):  # which experts then share, or one of them does not fit
        folder = tmp_path / str(buffer)
        path = quantize(source, folder, level, Settings(importance=weights, max_buffer=buffer))
        assert tensors(path) == tensors(llama_quantize(source, folder / "theirs.gguf", level, weights))
