"""Every level of the installed llama.cpp, made in this process."""

import numpy as np
import pytest
from tiny import tiny_llama

from edge import gguf_header
from edge.convert.proof import file_logits
from edge.convert.quantize import LEVELS, Settings, levels, quantize
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


def test_the_installed_llama_cpp_has_every_level():
    assert set(levels()) == set(LEVELS)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_is_written_and_llama_cpp_decodes_it(source, tmp_path, level, importance):
    settings = Settings(importance=importance if level in NEEDS_IMPORTANCE else {})
    path = quantize(source, tmp_path / f"{level}.gguf", level, settings)
    header = gguf_header.read(path)
    assert header.quantization.lower() == level
    assert np.isfinite(file_logits(path, [5, 6, 7])).all()
    assert path.stat().st_size <= source.stat().st_size * 1.01


def test_threads_and_buffer_do_not_change_the_bytes(source, tmp_path):
    one = quantize(source, tmp_path / "one.gguf", "q4_k_m", Settings(threads=1))
    two = quantize(source, tmp_path / "two.gguf", "q4_k_m", Settings(threads=2, max_buffer=1 << 20))
    assert one.read_bytes() == two.read_bytes()


def test_importance_changes_the_bytes(source, tmp_path, importance):
    plain = quantize(source, tmp_path / "plain.gguf", "q4_k_m")
    weighed = quantize(source, tmp_path / "weighed.gguf", "q4_k_m", Settings(importance=importance))
    assert plain.read_bytes() != weighed.read_bytes()
    assert plain.stat().st_size < weighed.stat().st_size + 4096


def types(path):
    return {tensor.name: tensor.type for tensor in gguf_header.read(path).tensors}


def test_single_tensors_take_the_type_they_are_given(source, tmp_path):
    settings = Settings(tensor_types=[("ffn_down", "q8_0")], output_type="q6_K", embedding_type="q5_0")
    made = types(quantize(source, tmp_path / "mixed.gguf", "q4_k_m", settings))
    assert made["blk.0.ffn_down.weight"] == "Q8_0"
    assert made["output.weight"] == "Q6_K"
    assert made["token_embd.weight"] == "Q5_0"
    assert made["blk.0.attn_q.weight"] == "Q4_K"


def test_layers_can_be_left_out(tmp_path):
    source = tiny_llama(tmp_path / "deep.gguf", layers=3)
    header = gguf_header.read(quantize(source, tmp_path / "pruned.gguf", "f16", Settings(prune_layers=[1])))
    assert header.layers == 2
    assert not any(tensor.name.startswith("blk.2.") for tensor in header.tensors)


def test_a_refusal_leaves_nothing_and_says_why(source, tmp_path):
    with pytest.raises(ConversionError, match="did not quantize wide") as refused:
        quantize(source, tmp_path / "small.gguf", "iq1_s")
    assert "importance matrix" in str(refused.value)
    assert "===" not in refused.value.line
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_refused(source, tmp_path):
    with pytest.raises(RequestError, match="'q9_9' is not a level"):
        quantize(source, tmp_path / "x.gguf", "q9_9")
    with pytest.raises(RequestError, match="'q9_9' is no tensor type"):
        quantize(source, tmp_path / "x.gguf", "q8_0", Settings(output_type="q9_9"))
