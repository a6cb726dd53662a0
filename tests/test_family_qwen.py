"""Qwen2 and Qwen3: written by their table, llama.cpp computes what the float64 pass computes."""

import math

import numpy as np
import pytest
from family_files import config_of_file, f32_file, float64, random_weights, relative

from edge import gguf_header
from edge.convert import numpy_ops
from edge.convert.families import family_of, family_of_gguf, qwen
from edge.convert.proof import file_logits
from edge.errors import ConversionError

BASE = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "vocab_size": 320,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 64,
    "max_window_layers": 2,
}
QWEN3 = {**BASE, "architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "attention_bias": False}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS = {
    "qwen2.5": BASE,
    "qwen2.5 0.5B's tied output": {**BASE, "tie_word_embeddings": True},
    "qwen2 without groups": {**BASE, "num_key_value_heads": None},
    "qwen3": QWEN3,
    "qwen3 0.6B's tied output": {**QWEN3, "tie_word_embeddings": True},
    "linear rope": {**QWEN3, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "yarn as qwen2.5's card has it": {**BASE, "rope_scaling": YARN},
    "yarn with slow and fast pairs": {**QWEN3, "rope_theta": 10000.0, "rope_scaling": YARN},
    "yarn with its own attention factor": {
        **QWEN3,
        "rope_parameters": {**YARN, "rope_theta": 10000.0, "attention_factor": 1.3},
    },
}


@pytest.mark.parametrize("raw", VARIANTS.values(), ids=VARIANTS)
def test_llama_cpp_computes_what_the_reference_does_and_the_file_tells_its_config(tmp_path, raw):
    config = qwen.read_config(raw)
    weights = random_weights(qwen, config)
    ids = np.random.default_rng(1).integers(3, 260, 200)
    path = f32_file(tmp_path / "f32.gguf", qwen, config, weights)
    _, logits = qwen.forward(numpy_ops, float64(weights), config, ids)
    assert relative(file_logits(path, ids), logits) < 1e-3
    assert config_of_file(path, qwen) == config
    assert family_of(raw) is family_of_gguf(gguf_header.read(path).architecture) is qwen


def test_a_window_counts_only_where_it_is_used():
    unused = {**BASE, "sliding_window": 4, "num_hidden_layers": 1, "max_window_layers": 0}
    used = {**unused, "use_sliding_window": True}
    weights = random_weights(qwen, qwen.read_config(unused))
    ids = np.arange(10, 40)
    far, near = ids.copy(), ids.copy()
    far[20], near[27] = 5, 5

    def last(raw, tokens):
        return qwen.forward(numpy_ops, weights.__getitem__, qwen.read_config(raw), tokens)[1][-1]

    assert np.array_equal(last(used, ids), last(used, far))
    assert not np.array_equal(last(used, ids), last(used, near))
    assert not np.array_equal(last(unused, ids), last(unused, far))


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        ({"use_sliding_window": False, "max_window_layers": 0}, (None, None)),
        ({"max_window_layers": 2}, (None, None)),
        ({"max_window_layers": 1}, (None, 64)),
        ({"sliding_window": None, "max_window_layers": 0}, (None, None)),
        ({"layer_types": ["sliding_attention", "full_attention"]}, (64, None)),
    ],
)
def test_a_file_promises_no_context_beyond_a_window_that_gguf_cannot_carry(change, windows):
    config = qwen.read_config({**BASE, "use_sliding_window": True, **change})
    assert config.windows == windows
    assert qwen.metadata(config)["context_length"] == (64 if 64 in windows else 512)
    assert len(qwen.notes(config)) == (64 in windows)


def test_a_1m_model_promises_the_chunk_within_which_attention_is_plain():
    chunks = {"chunk_size": 128, "local_size": 32, "original_max_position_embeddings": 128}
    config = qwen.read_config({**BASE, "dual_chunk_attention_config": chunks})
    assert qwen.metadata(config)["context_length"] == 96
    assert "context is 96 tokens, not 512" in qwen.notes(config)[0]


def test_yarn_widens_the_context_that_a_config_left_as_it_was():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert qwen.read_config({**BASE, "rope_scaling": scaling}).context == 2048


REAL = {  # the models' published config.json, as far as shapes go → their number of weights
    "Qwen2.5-0.5B": (
        {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_hidden_layers": 24},
        {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
        494_032_768,
    ),
    "Qwen2.5-7B": (
        {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28},
        {"num_key_value_heads": 4, "vocab_size": 152064},
        7_615_616_512,
    ),
    "Qwen3-0.6B": (
        {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 28},
        {"num_key_value_heads": 8, "vocab_size": 151936, "head_dim": 128, "tie_word_embeddings": True},
        596_049_920,
    ),
    "Qwen3-8B": (
        {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_hidden_layers": 36},
        {"num_key_value_heads": 8, "vocab_size": 151936, "head_dim": 128},
        8_190_735_360,
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_the_table_has_as_many_weights_as_the_real_model(name):
    sizes, more, published = REAL[name]
    base = QWEN3 if name.startswith("Qwen3") else BASE
    table = qwen.weights(qwen.read_config({**base, **sizes, **more}))
    assert sum(math.prod(weight.shape) for weight in table) == published


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "no usable hidden_size"),
        ({"num_key_value_heads": 3}, "4 attention heads and 3 key-value heads"),
        ({"num_key_value_heads": "two"}, "no usable num_key_value_heads"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"head_dim": 32}, "4 heads of 32 are not as wide as the model, 64"),
        ({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, "attention_bias is true"),
        ({"use_sliding_window": True, "layer_types": ["full_attention"]}, "which of 2 layers have a window"),
        ({"use_sliding_window": True, "max_window_layers": "all"}, "which of 2 layers have a window"),
        ({"dual_chunk_attention_config": {"chunk_size": 32, "local_size": 32}}, "is not possible"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "no usable original_max_position_embeddings",
        ),
        ({"rope_scaling": {**YARN, "beta_fast": 16}}, "has beta_fast 16"),
        ({"rope_scaling": {**YARN, "truncate": False}}, "has truncate False"),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, "is not possible"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(change, words):
    with pytest.raises(ConversionError, match=words):
        qwen.read_config({**BASE, **change})
