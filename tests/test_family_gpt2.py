"""GPT-2: written by its table, llama.cpp computes what the float64 pass computes."""

import math
import re

import gguf
import numpy as np
import pytest
from family_files import config_of_file, f32_file, float64, random_weights, relative

from edge import gguf_header
from edge.convert import numpy_ops
from edge.convert.families import family_of, family_of_gguf, gpt2, table_names
from edge.convert.proof import file_logits
from edge.errors import ConversionError

BASE = {
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "n_embd": 64,
    "n_head": 4,
    "n_inner": None,
    "n_layer": 2,
    "n_positions": 256,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": 320,
}
VARIANTS = {
    "gpt-2": BASE,
    "another inner width": {**BASE, "n_inner": 96, "tie_word_embeddings": True},
    "an output of its own": {**BASE, "tie_word_embeddings": False},
    "the same gelu by another name": {**BASE, "activation_function": "gelu_pytorch_tanh"},
}


@pytest.mark.parametrize("raw", VARIANTS.values(), ids=VARIANTS)
def test_llama_cpp_computes_what_the_reference_does_and_the_file_tells_its_config(tmp_path, raw):
    config = gpt2.read_config(raw)
    weights = random_weights(gpt2, config)
    ids = np.random.default_rng(1).integers(3, 260, 200)
    path = f32_file(tmp_path / "f32.gguf", gpt2, config, weights)
    _, logits = gpt2.forward(numpy_ops, float64(weights), config, ids)
    assert relative(file_logits(path, ids), logits) < 1e-3
    assert config_of_file(path, gpt2) == config
    assert family_of(raw) is family_of_gguf(gguf_header.read(path).architecture) is gpt2


def test_names_with_and_without_the_prefix_mean_the_same():
    names = [
        weight.source for weight in gpt2.weights(gpt2.read_config({**BASE, "tie_word_embeddings": False}))
    ]
    assert {"wte.weight", "h.0.attn.c_attn.weight", "lm_head.weight"} < set(names)
    saved = [name if name == "lm_head.weight" else f"transformer.{name}" for name in names]
    assert table_names(gpt2, saved) == dict(zip(names, saved, strict=True))
    assert table_names(gpt2, names) == dict(zip(names, names, strict=True))


def test_the_masks_of_old_checkpoints_are_ignored_and_no_bias_is():
    ignored = re.compile("|".join(gpt2.IGNORED))
    assert all(map(ignored.fullmatch, ("h.0.attn.bias", "h.11.attn.masked_bias")))
    assert not any(ignored.fullmatch(weight.source) for weight in gpt2.weights(gpt2.read_config(BASE)))


def test_projections_are_transposed_and_back():
    for weight in gpt2.weights(gpt2.read_config(BASE)):
        if weight.layout:
            values = np.random.default_rng(0).standard_normal(weight.shape)
            there = weight.layout.to_gguf(values)
            assert there.shape == weight.target_shape == weight.shape[::-1]
            assert there.flags.c_contiguous
            assert np.array_equal(weight.layout.to_checkpoint(there), values)


def test_a_file_by_llama_cpps_own_converter_tells_its_config(tmp_path):
    """It always writes four times the width, and no vocabulary size."""
    config = gpt2.read_config(BASE)
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "gpt2")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-5)
    for weight in gpt2.weights(config):
        writer.add_tensor(weight.target, np.zeros(weight.target_shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert config_of_file(tmp_path / "theirs.gguf", gpt2) == config


def test_the_table_has_as_many_weights_as_the_real_model():
    shape = {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}
    table = gpt2.weights(gpt2.read_config({**BASE, **shape}))
    assert sum(math.prod(weight.shape) for weight in table) == 124_439_808


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_embd": None}, "no usable n_embd"),
        ({"n_head": 5}, "n_embd 64 is no multiple of n_head 5"),
        ({"layer_norm_epsilon": "small"}, "no usable layer_norm_epsilon"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(change, words):
    with pytest.raises(ConversionError, match=words):
        gpt2.read_config({**BASE, **change})
