"""The Gemma family: written by its table, llama.cpp computes what the float64 pass computes."""

import gguf
import numpy as np
import pytest
from tiny import add_tokenizer

from edge import gguf_header
from edge.convert import numpy_ops
from edge.convert.families import gemma
from edge.convert.proof import file_logits

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 24,
    "vocab_size": 320,
}
GEMMA2 = {**SMALL, "architectures": ["Gemma2ForCausalLM"], "num_hidden_layers": 3, "rope_theta": 10000.0}
GEMMA3 = {**SMALL, "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 7}
FULL, SLIDING = "full_attention", "sliding_attention"
OF_5 = {
    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
    SLIDING: {"rope_type": "default", "rope_theta": 2e4},
}
VARIANTS = {
    "gemma 2": GEMMA2,
    "gemma 2 with soft caps that bite": {
        **GEMMA2, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0,
    },
    "gemma 2 27b's layers, whose scale is another": {
        **GEMMA2, "num_hidden_layers": 46, "query_pre_attn_scalar": 16,
    },
    "gemma 2 with stretched rope": {**GEMMA2, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "gemma 3 of 1b and less": GEMMA3,
    "gemma 3 of 4b and more": {**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "gemma 3 with other bases": {**GEMMA3, "rope_theta": 5e5, "rope_local_base_freq": 2e4},
    "gemma 3 by transformers 5": {**GEMMA3, "rope_parameters": OF_5, "_sliding_window_pattern": 6},
    "gemma 3 with a period of its own": {**GEMMA3, "sliding_window_pattern": 3},
    "gemma 3 with listed layers": {**GEMMA3, "layer_types": [FULL, SLIDING, SLIDING, FULL, FULL, SLIDING, FULL]},
    "gemma 3 without a window": {**GEMMA3, "sliding_window_pattern": 1},
    "gemma 3 with a final cap": {**GEMMA3, "final_logit_softcapping": 2.0},
    "gemma 3 with an output of its own": {**GEMMA3, "tie_word_embeddings": False},
}  # fmt: skip


def random_weights(config, seed=0):
    draw = np.random.default_rng(seed)

    def values(weight):
        if "post_feedforward" in weight.source:  # quiet: llama.cpp's GELU is a table in f16
            return 0.1 * draw.standard_normal(weight.shape) - 0.8
        if "norm" in weight.source:
            return 0.1 * draw.standard_normal(weight.shape)
        return draw.standard_normal(weight.shape) / np.sqrt(weight.shape[-1])

    return {weight.source: values(weight).astype(np.float32) for weight in gemma.weights(config)}


def write(path, config, weights):
    """The f32 file, by the gguf package."""
    architecture = config.gguf_architecture
    writer = gguf.GGUFWriter(path, architecture)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in gemma.metadata(config).items():
        add[type(value)](f"{architecture}.{key}", value)
    add_tokenizer(writer, config.vocabulary, "smollm")
    for weight in gemma.weights(config):
        values = weights[weight.source]
        writer.add_tensor(weight.target, weight.layout.to_gguf(values) if weight.layout else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def relative(theirs, ours):
    return np.abs(theirs - ours).max() / np.abs(ours).max()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_llama_cpp_computes_what_the_reference_does_beyond_the_window(tmp_path, variant):
    config = gemma.read_config(variant)
    weights = random_weights(config)
    ids = np.random.default_rng(1).integers(3, 260, 100)
    path = write(tmp_path / "f32.gguf", config, weights)
    _, logits = gemma.forward(numpy_ops, lambda name: weights[name].astype(np.float64), config, ids)
    assert relative(file_logits(path, ids), logits) < 1e-3


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_file_says_its_configuration(tmp_path, variant):
    config = gemma.read_config(variant)
    path = write(tmp_path / "f32.gguf", config, random_weights(config))
    assert gemma.read_config(gemma.config_json(gguf_header.read(path), None)) == config
