"""Phi-3: written by its table, llama.cpp computes what the float64 pass computes, short and long."""

import math

import gguf
import numpy as np
import pytest
from family_files import config_of_file, f32_file, float64, random_weights, relative

from edge import gguf_header
from edge.convert import numpy_ops
from edge.convert.families import family_of, family_of_gguf, phi3
from edge.convert.proof import file_logits
from edge.errors import ConversionError

BASE = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 2048,
    "original_max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "vocab_size": 320,
    "sliding_window": None,
}
FACTORS = {
    "type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.9, 2.3],
    "long_factor": [1.0, 1.0800000429153442, 2.5, 5.0, 11.0, 24.0, 41.5, 63.1],
}
LONG = {**BASE, "original_max_position_embeddings": 300, "rope_scaling": FACTORS}
PHI4 = {
    **LONG,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {key: value[:6] if key != "type" else value for key, value in FACTORS.items()},
}
VARIANTS = {
    "phi-3 mini 4k": BASE,
    "phi-3 medium's groups": {**BASE, "num_key_value_heads": 2},
    "phi-3 mini 128k, phi-3.5 mini": {**LONG, "sliding_window": 4096},
    "128k as it was first called": {**LONG, "rope_scaling": {**FACTORS, "type": "su"}},
    "rope_parameters of transformers 5": {
        **LONG,
        "rope_scaling": None,
        "rope_parameters": {**FACTORS, "rope_theta": 5e4, "attention_factor": 1.25},
    },
    "phi-4 mini": PHI4,
}


@pytest.mark.parametrize("tokens", [200, 400])
@pytest.mark.parametrize("raw", VARIANTS.values(), ids=VARIANTS)
def test_llama_cpp_computes_what_the_reference_does_and_the_file_tells_its_config(tmp_path, raw, tokens):
    """400 tokens are beyond the original context, which picks the long divisors on both sides."""
    config = phi3.read_config(raw)
    weights = random_weights(phi3, config)
    ids = np.random.default_rng(1).integers(3, 260, tokens)
    path = f32_file(tmp_path / "f32.gguf", phi3, config, weights)
    _, logits = phi3.forward(numpy_ops, float64(weights), config, ids)
    assert relative(file_logits(path, ids), logits) < 1e-3
    back = config_of_file(path, phi3)
    assert phi3.metadata(back) == phi3.metadata(config)
    if config.window is None:  # one wider than the context changes nothing, and does not come back
        assert back == config
    assert family_of(raw) is family_of_gguf(gguf_header.read(path).architecture) is phi3


def test_short_and_long_divisors_differ_and_the_length_of_the_text_decides():
    config = phi3.read_config(LONG)
    short, long = config.longrope.frequencies(16, 300), config.longrope.frequencies(16, 301)
    assert np.allclose(short / long, np.array(FACTORS["long_factor"]) / FACTORS["short_factor"])
    assert config.longrope.scale == pytest.approx(np.sqrt(1 + np.log(2048 / 300) / np.log(300)))


def test_a_file_by_llama_cpps_own_converter_tells_its_config(tmp_path):
    """It writes no head sizes, states the window, and names the divisors' tensors the same."""
    config = phi3.read_config(LONG)
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "phi3")
    writer.add_context_length(2048)
    writer.add_rope_scaling_orig_ctx_len(300)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_sliding_window(1024)
    writer.add_rope_scaling_attn_factors(config.longrope.scale)
    for name, values in phi3.extra_tensors(config).items():
        writer.add_tensor(name, values)
    for weight in phi3.weights(config):
        writer.add_tensor(weight.target, np.zeros(weight.shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert config_of_file(path, phi3) == phi3.read_config({**LONG, "sliding_window": 1024})


def test_a_file_promises_no_context_beyond_a_window_that_llama_cpp_leaves_out():
    config = phi3.read_config({**BASE, "sliding_window": 2047})
    assert phi3.metadata(config)["context_length"] == 2047
    (note,) = phi3.notes(config)
    assert "context is 2047 tokens, not 2048" in note
    assert phi3.notes(phi3.read_config(BASE)) == ()
    (note,) = phi3.notes(phi3.read_config(LONG))
    assert "a context above 300 tokens" in note


def test_a_share_of_rotated_elements_survives_being_cut_to_an_int():
    for head_size in range(2, 257, 2):
        for rotated in range(2, head_size + 1, 2):
            assert int(head_size * phi3.share(rotated, head_size)) == rotated


def test_a_window_hides_what_is_farther_away():
    config = phi3.read_config({**BASE, "sliding_window": 4, "num_hidden_layers": 1})
    weights = random_weights(phi3, config)
    ids = np.arange(10, 40)
    far, near = ids.copy(), ids.copy()
    far[20], near[27] = 5, 5

    def last(tokens):
        return phi3.forward(numpy_ops, weights.__getitem__, config, tokens)[1][-1]

    assert np.array_equal(last(ids), last(far))
    assert not np.array_equal(last(ids), last(near))


@pytest.mark.parametrize(
    ("sizes", "published"),
    [
        ({"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064}, 3_821_079_552),
        (
            {
                "num_attention_heads": 24,
                "num_key_value_heads": 8,
                "vocab_size": 200064,
                "tie_word_embeddings": True,
            },
            3_836_021_760,
        ),
    ],
    ids=["Phi-3-mini", "Phi-4-mini"],
)
def test_the_table_has_as_many_weights_as_the_real_model(sizes, published):
    shape = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32}
    table = phi3.weights(phi3.read_config({**BASE, **shape, **sizes}))
    assert sum(math.prod(weight.shape) for weight in table) == published


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "no usable hidden_size"),
        ({"num_key_value_heads": 3}, "4 attention heads and 3 key-value heads"),
        ({"sliding_window": "wide"}, "no usable sliding_window"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 32}, "4 heads of 32 are not as wide as the model, 64"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor is 0.2"),  # of 16: an odd 3
        ({"partial_rotary_factor": 0.1}, "partial_rotary_factor is 0.1"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling 'linear'"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0] * 8}}, "lacks a usable 'short_factor'"),
        ({"rope_scaling": {**FACTORS, "short_factor": [1.0] * 7}}, "7 short and 8 long rope factors"),
        ({"rope_scaling": {**FACTORS, "short_factor": [0.0] * 8}}, "8 of each are needed, above 0"),
        ({"rope_scaling": FACTORS, "original_max_position_embeddings": None}, "no usable original"),
        ({"rope_theta": "wide"}, "no usable rope_theta"),
        ({"rope_scaling": "longrope"}, "rope scaling is 'longrope'"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(change, words):
    with pytest.raises(ConversionError) as caught:
        phi3.read_config({**BASE, **change})
    assert words in f"{caught.value} {caught.value.hint}"
