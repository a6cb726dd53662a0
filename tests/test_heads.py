"""A head in a file's metadata: kept by every level, read back with suspicion, applied as transformers applies it."""

import gguf
import numpy as np
import pytest
from family_files import f32_file, random_weights

from edge.convert.families import family_of
from edge.engine import heads
from edge.engine.binding import llama
from edge.errors import BadGGUF

DISTILBERT = {
    "architectures": ["DistilBertForSequenceClassification"],
    "dim": 64,
    "hidden_dim": 96,
    "max_position_embeddings": 32,
    "n_heads": 4,
    "n_layers": 1,
    "vocab_size": 320,
    "num_labels": 5,
}


@pytest.fixture
def classifier(tmp_path):
    family = family_of(DISTILBERT)
    config = family.read_config(DISTILBERT)
    weights = random_weights(family, config)
    return f32_file(tmp_path / "f32.gguf", family, config, weights), weights


def metadata_file(path, **fields):
    """A file of a head's keys alone."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_uint32("bert.embedding_length", 4)
    for key, value in fields.items():
        name = f"edge.head.{key.replace('__', '.')}"
        writer.add_string(name, value) if isinstance(value, str) else writer.add_array(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_head_comes_back_as_it_was(classifier):
    path, weights = classifier
    head = heads.read(path)
    assert head.activation == "relu"
    for ours, name in (
        (head.dense, "pre_classifier.weight"),
        (head.dense_bias, "pre_classifier.bias"),
        (head.output, "classifier.weight"),
        (head.output_bias, "classifier.bias"),
    ):
        assert np.array_equal(ours, weights[name])


def test_quantizing_by_llama_cpp_keeps_it(classifier, tmp_path):
    path, weights = classifier
    params = llama().llama_model_quantize_default_params()
    params.ftype = llama().LLAMA_FTYPE_MOSTLY_Q4_0
    assert not llama().llama_model_quantize(bytes(path), bytes(tmp_path / "q4_0.gguf"), params)
    assert np.array_equal(heads.read(tmp_path / "q4_0.gguf").dense, weights["pre_classifier.weight"])


def test_applied_it_is_two_layers_with_a_function_between(classifier):
    path, weights = classifier
    hidden = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    inner = hidden @ weights["pre_classifier.weight"].T + weights["pre_classifier.bias"]
    assert (inner < 0).any()
    logits = np.maximum(inner, 0) @ weights["classifier.weight"].T + weights["classifier.bias"]
    assert np.allclose(heads.apply(heads.read(path), hidden), logits, rtol=1e-5, atol=1e-6)


def test_a_head_of_one_layer():
    output, bias = np.arange(8.0).reshape(2, 4), np.array([1.0, -1.0])
    assert heads.apply(heads.Head(output, bias), np.ones(4)).tolist() == [7.0, 21.0]


def test_a_file_without_one_has_none(tmp_path):
    assert heads.read(metadata_file(tmp_path / "none.gguf")) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"output__weight": [1.0] * 7, "output__bias": [0.0, 0.0]}, "7 elements, not 2 rows of 4"),
        ({"output__weight": [1.0] * 8}, "absent|missing|output.bias"),
        ({"output__weight": "weights", "output__bias": [0.0, 0.0]}, "an array is expected"),
        ({"output__weight": ["a"] * 8, "output__bias": [0.0, 0.0]}, "not numbers"),
        ({"output__weight": [float("nan")] * 8, "output__bias": [0.0, 0.0]}, "NaN or infinite"),
        (
            {"output__weight": [1.0] * 8, "output__bias": [0.0, 0.0], "activation": "exec"},
            "activation is 'exec'",
        ),
        (
            {
                "output__weight": [1.0] * 8,
                "output__bias": [0.0, 0.0],
                "dense__weight": [1.0] * 8,
                "dense__bias": [0.0, 0.0],
            },
            "dense.bias has 2 elements, not 4",
        ),
    ],
)
def test_a_damaged_head_is_refused(tmp_path, fields, words):
    with pytest.raises(BadGGUF, match=words):
        heads.read(metadata_file(tmp_path / "bad.gguf", **fields))
