"""Every family's config.json with any of its values made into something else: refused in a line, or a head is made."""

import json

import pytest
import tiny_checkpoints

from edge.convert import gguf
from edge.convert.families import family_of
from edge.errors import ConversionError

# NaN, Infinity and half a surrogate pair are what Python's JSON reads out of a file.
VALUES = [
    None,
    True,
    "x",
    [1],
    {"a": 1},
    0,
    -1,
    1.5,
    3,
    1e300,
    10**12,
    10**19,
    *json.loads('[NaN, Infinity, "\\ud800"]'),
]
SOMETIMES = (
    "activation", "head_dim", "hidden_act", "id2label", "layer_types", "max_window_layers", "num_key_value_heads",
    "num_labels", "partial_rotary_factor", "problem_type", "rope_parameters", "rope_scaling", "rope_theta",
    "sliding_window", "use_sliding_window", "attention_bias", "classifier_activation", "classifier_pooling",
    "conv_kernel_size", "embedding_size", "pooler_hidden_act", "pooler_hidden_size",
)  # fmt: skip
STRETCH = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "attention_factor": 1.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0] * 8,
}  # fmt: skip
CASES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "bert-classifier",
    "roberta",
    "distilbert",
    "electra-classifier",
    "albert",
    "mpnet",
    "deberta-v3-classifier",
    "deberta-v2",
    "modernbert-classifier",
    "qwen2-classifier",
)


def heads_of(config):
    """All that is computed of a configuration before a weight is read."""
    family = family_of(config)
    found = family.read_config(config)
    assert family.weights(found)
    family.notes(found)
    if not hasattr(family, "metadata"):
        return found.context
    family.extra_tensors(found)
    return gguf.head(family.metadata(found), ())


@pytest.mark.parametrize("case", CASES)
def test_a_value_that_no_model_has_is_refused_and_nothing_else_raised(case):
    config = tiny_checkpoints.CASES[case]
    assert heads_of(config)
    refused = []
    for key in {*config, *SOMETIMES} - {"architectures"}:
        for value in VALUES:
            try:
                heads_of({**config, key: value})
            except ConversionError as error:
                refused.append(error.line)
    assert len(refused) > 50
    assert all("\n" not in line and len(line) < 300 for line in refused)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn", "longrope"])
@pytest.mark.parametrize("case", ["llama", "qwen2", "gemma3", "phi3"])
def test_a_stretching_that_is_not_possible_is_refused(case, kind):
    refused = []
    for key in STRETCH:
        for value in VALUES:
            stretch = {"rope_type": kind, **STRETCH, key: value}
            try:
                heads_of({**tiny_checkpoints.CASES[case], "rope_scaling": stretch})
            except ConversionError as error:
                refused.append(error.line)
    assert refused
    assert all("\n" not in line for line in refused)


@pytest.mark.parametrize("case", ["llama", "gpt2", "distilbert"])
def test_more_layers_than_llama_cpp_has_are_refused_before_it_ends_the_process(case):
    config = tiny_checkpoints.CASES[case]
    key = next(key for key in ("num_hidden_layers", "n_layer", "n_layers") if key in config)
    assert heads_of({**config, key: 512})
    with pytest.raises(ConversionError, match=f"{key} is 513"):
        heads_of({**config, key: 513})


def test_heads_that_cannot_rotate_are_refused():
    with pytest.raises(ConversionError, match="heads of 33 elements"):
        heads_of({**tiny_checkpoints.LLAMA, "head_dim": 33})
    with pytest.raises(ConversionError, match="4 attention heads and 3 key-value heads"):
        heads_of({**tiny_checkpoints.LLAMA, "num_key_value_heads": 3})
