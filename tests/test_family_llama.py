"""The Llama family: written by its table, llama.cpp computes what the float64 pass computes."""

import numpy as np
import pytest
from family_files import f32_file, float64, random_weights, relative

from edge import gguf_header
from edge.convert import numpy_ops
from edge.convert.families import llama
from edge.convert.families.weight import rope_rows
from edge.convert.proof import file_logits
from edge.errors import ConversionError

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 320,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "llama 2 70B's groups": {},
    "llama 2 7B, a key for every query": {"num_key_value_heads": None},
    "llama 3's stretched rope": {"rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "code llama's base": {"rope_theta": 1000000.0},
    "linear rope": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "rope_parameters of transformers 5": {"rope_parameters": {"rope_theta": 5e4, **LLAMA3}},
    "smollm2's tied output": {"tie_word_embeddings": True},
    "heads wider than the model divided": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_llama_cpp_computes_what_the_reference_does(tmp_path, variant):
    config = llama.read_config(
        {key: value for key, value in {**BASE, **variant}.items() if value is not None}
    )
    weights = random_weights(llama, config)
    ids = np.random.default_rng(1).integers(3, 260, 200)
    path = f32_file(tmp_path / "f32.gguf", llama, config, weights)
    _, logits = llama.forward(numpy_ops, float64(weights), config, ids)
    assert relative(file_logits(path, ids), logits) < 1e-3
    assert gguf_header.read(path).architecture == "llama"


def test_a_window_hides_what_is_farther_away():
    config = llama.read_config({**BASE, "sliding_window": 4, "num_hidden_layers": 1})
    weights = random_weights(llama, config)
    ids = np.arange(10, 40)
    changed = ids.copy()
    changed[20] = 5

    def last(tokens):
        return llama.forward(numpy_ops, weights.__getitem__, config, tokens)[1][-1]

    assert np.array_equal(last(ids), last(changed))
    changed[27] = 5
    assert not np.array_equal(last(ids), last(changed))


def test_a_file_promises_no_context_beyond_a_window_that_gguf_cannot_carry():
    config = llama.read_config({**BASE, "sliding_window": 100})
    assert llama.metadata(config)["context_length"] == 100
    (note,) = llama.notes(config)
    assert "context is 100 tokens, not 512" in note
    assert llama.notes(llama.read_config(BASE)) == ()


def test_the_order_of_rope_rows_has_an_inverse():
    rows = np.arange(48.0).reshape(12, 4)
    layout = rope_rows(6)
    assert layout.to_gguf(rows)[:, 0].tolist() == [0, 12, 4, 16, 8, 20, 24, 36, 28, 40, 32, 44]
    assert np.array_equal(layout.to_checkpoint(layout.to_gguf(rows)), rows)
    bias = np.arange(12.0)
    assert np.array_equal(layout.to_checkpoint(layout.to_gguf(bias)), bias)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "no usable hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rms_norm_eps": "small"}, "no usable rms_norm_eps"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(change, words):
    with pytest.raises(ConversionError, match=words):
        llama.read_config({**BASE, **change})
