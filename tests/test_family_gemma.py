"""The Gemma family: written by its table, llama.cpp computes what the float64 pass computes."""

import re

import gguf
import numpy as np
import pytest
from tiny import add_tokenizer

from edge import gguf_header
from edge.convert import numpy_ops
from edge.convert.families import gemma
from edge.convert.proof import file_logits
from edge.errors import ConversionError

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


def write(path, config, weights, silent=(), more=()):
    """The f32 file, by the gguf package; keys left out of it or added to it."""
    architecture = config.gguf_architecture
    writer = gguf.GGUFWriter(path, architecture)
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    fields = {key: value for key, value in gemma.metadata(config).items() if key not in silent}
    for key, value in {**fields, **dict(more)}.items():
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
    ids = np.random.default_rng(1).integers(3, 260, 60)
    path = write(tmp_path / "f32.gguf", config, weights)
    _, logits = gemma.forward(numpy_ops, lambda name: weights[name].astype(np.float64), config, ids)
    assert relative(file_logits(path, ids), logits) < 1e-3


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_file_says_its_configuration(tmp_path, variant):
    config = gemma.read_config(variant)
    path = write(tmp_path / "f32.gguf", config, random_weights(config))
    assert gemma.read_config(gemma.config_json(gguf_header.read(path), None)) == config


def test_a_published_file_leaves_out_what_llama_cpp_takes_by_itself(tmp_path):
    config = gemma.read_config({**GEMMA3, "num_hidden_layers": 12})
    silent = {"rope.freq_base_swa", "rope.dimension_count", "vocab_size"}
    path = write(tmp_path / "f32.gguf", config, random_weights(config), silent)
    assert gemma.read_config(gemma.config_json(gguf_header.read(path), None)) == config
    config = gemma.read_config({**GEMMA2, "sliding_window": 4096})
    silent |= {
        "attention.sliding_window",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "rope.freq_base",
    }
    path = write(tmp_path / "f32.gguf", config, random_weights(config), silent)
    assert gemma.read_config(gemma.config_json(gguf_header.read(path), None)) == config


def test_the_silence_of_a_published_config_means_transformers_defaults():
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    config = gemma.read_config({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    assert (config.heads, config.kv_heads, config.head_size) == (8, 4, 256)
    assert (config.vocabulary, config.context, config.query_scalar) == (262208, 131072, 256)
    assert (config.rope.base, config.local_rope.base, config.sliding.index(False)) == (1e6, 1e4, 5)


def test_a_model_that_sees_pictures_gives_its_language_model(tmp_path):
    raw = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": GEMMA3}
    config, alone = gemma.read_config(raw), gemma.read_config(GEMMA3)
    assert [weight.target for weight in gemma.weights(config)] == [
        weight.target for weight in gemma.weights(alone)
    ]
    assert gemma.weights(config)[0].source == "language_model.model.embed_tokens.weight"
    assert gemma.notes(config) == ("the file holds the language model: it sees no pictures",)
    assert gemma.notes(alone) == ()
    assert gemma.metadata(config) == gemma.metadata(alone)
    known = re.compile("|".join(gemma.IGNORED))
    assert known.fullmatch("vision_tower.vision_model.post_layernorm.bias")
    assert known.fullmatch("multi_modal_projector.mm_input_projection_weight")
    assert not known.fullmatch("language_model.model.norm.weight")


def test_norms_have_one_added_and_taken_away():
    norm = next(weight for weight in gemma.weights(gemma.read_config(GEMMA3)) if "q_norm" in weight.source)
    values = np.array([-0.5, 0.0, 0.25], np.float32)
    assert norm.layout.to_gguf(values).tolist() == [0.5, 1.0, 1.25]
    assert norm.layout.to_checkpoint(norm.layout.to_gguf(values)).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("base", "change", "words"),
    [
        (GEMMA2, {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar is 16, where .* gemma2 of 3 layers takes 32"),
        (GEMMA2, {"attn_logit_softcapping": None}, "attn_logit_softcapping is None"),
        (GEMMA2, {"final_logit_softcapping": None}, "final_logit_softcapping is None"),
        (GEMMA2, {"tie_word_embeddings": False}, "not tied to the embedding"),
        (GEMMA2, {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        (GEMMA2, {"sliding_window": None}, "no usable sliding_window"),
        (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0: llama.cpp's gemma3"),
        (GEMMA3, {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        (GEMMA3, {"attention_bias": True}, "attention_bias is true"),
        (GEMMA3, {"layer_types": [FULL]}, "layer_types is not a list of 7"),
        (GEMMA3, {"layer_types": ["chunked_attention"] * 7}, "layer_types is not a list of 7"),
        (GEMMA3, {"rope_parameters": {FULL: OF_5[FULL], SLIDING: OF_5[FULL]}}, "scale their rope in another way"),
        (GEMMA3, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
        (GEMMA3, {"architectures": ["Gemma3ForConditionalGeneration"]}, "no text_config"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_compute_differently_is_refused(base, change, words):
    with pytest.raises(ConversionError, match=words):
        gemma.read_config({**base, **change})


def test_a_file_that_config_json_has_no_words_for_is_refused(tmp_path):
    config = gemma.read_config(GEMMA2)
    more = {"rope.freq_base_swa": 5e5}
    path = write(tmp_path / "f32.gguf", config, random_weights(config), more=more)
    with pytest.raises(ConversionError, match="freq_base_swa is 500000"):
        gemma.config_json(gguf_header.read(path), None)
    more = {"attention.sliding_window_pattern": [True]}
    path = write(tmp_path / "f32.gguf", config, random_weights(config), more=more)
    with pytest.raises(ConversionError, match="does not say it of 3 layers"):
        gemma.config_json(gguf_header.read(path), None)
