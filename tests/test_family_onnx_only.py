"""Families without a GGUF form: what of their config.json is refused, and texts of every length in the graph."""

import importlib
import json
import re

import numpy as np
import pytest
import tiny_checkpoints as tiny
from family_files import random_weights

from edge.convert import checkpoint, numpy_ops
from edge.convert.families import deberta, family_of, mpnet, table_names
from edge.convert.onnx.computed import run, session
from edge.convert.onnx.graph import write
from edge.convert.onnx.model import encoder
from edge.convert.safetensors import Writer
from edge.convert.to_gguf import convert
from edge.convert.understood import understand, without_layers
from edge.errors import ConversionError, RequestError

pytest.importorskip("tokenizers")


def read(raw):
    return family_of(raw).read_config(raw)


@pytest.mark.parametrize(
    ("raw", "change", "words"),
    [
        (tiny.ELECTRA, {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (tiny.ELECTRA, {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (tiny.ALBERT, {"num_hidden_groups": 5}, "4 layers of 5 groups"),
        (tiny.ALBERT, {"inner_group_num": 200}, "groups of 200"),
        (tiny.MPNET, {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64"),
        (tiny.DEBERTA, {"pos_att_type": ["p2p", "c2p"]}, "pos_att_type has 'p2p'"),
        (tiny.DEBERTA, {"embedding_size": 32}, "embedding_size is 32"),
        (tiny.DEBERTA, {"conv_kernel_size": 4}, "convolution of 4 tokens"),
        (tiny.DEBERTA, {"conv_kernel_size": 3, "conv_groups": 2}, "in 2 groups"),
        (tiny.DEBERTA, {"conv_kernel_size": 3, "conv_act": "swish"}, "conv_act is 'swish'"),
        (tiny.DEBERTA, {"position_buckets": 64}, "64 buckets of 24 distances"),
        (tiny.classifier(tiny.DEBERTA), {"pooler_hidden_act": "swish"}, "pooler_hidden_act is 'swish'"),
        (tiny.MODERNBERT, {"layer_types": ["full_attention"]}, "layer_types"),
        (tiny.MODERNBERT, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "stretches"),
        (tiny.classifier(tiny.MODERNBERT), {"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
        (tiny.classifier(tiny.MODERNBERT), {"classifier_activation": "silu"}, "classifier_activation"),
        (tiny.classifier(tiny.QWEN2), {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (tiny.classifier(tiny.LLAMA), {"id2label": {"0": "bad", "2": "good"}}, "id2label"),
        (tiny.classifier(tiny.LLAMA), {"problem_type": "guess"}, "problem_type is 'guess'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(raw, change, words):
    assert read(raw)
    with pytest.raises(ConversionError, match=words) as caught:
        read({**raw, **change})
    assert "\n" not in caught.value.line


@pytest.mark.parametrize(
    ("case", "listed"),
    [
        ("modernbert", {"layer_types": ["full_attention", *2 * ["sliding_attention"], "full_attention"]}),
        (
            "modernbert",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                }
            },
        ),
        ("deberta-v3", {"pos_att_type": "p2c|c2p"}),
    ],
)
def test_a_config_json_of_another_version_says_the_same(case, listed):
    raw = tiny.CASES[case]
    older = {"global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"}
    kept = {key: value for key, value in raw.items() if "rope_parameters" not in listed or key not in older}
    assert read({**kept, **listed}) == read(raw)


def test_the_labels_and_what_they_mean_are_kept():
    many = {"problem_type": "multi_label_classification"}
    for base in (tiny.ELECTRA, tiny.DEBERTA, tiny.MODERNBERT, tiny.QWEN3):
        config = read(tiny.classifier(base, **many))
        assert (config.task, config.labels) == ("classification", ("bad", "fair", "good"))
        assert config.problem == many["problem_type"]
        assert read(tiny.tags(base)).task == "tokens"


@pytest.mark.parametrize("case", ["albert-classifier", "qwen2-classifier", "modernbert"])
def test_the_way_to_gguf_ends_in_a_line_that_names_the_other(tmp_path, case):
    with pytest.raises(ConversionError, match="no GGUF form") as caught:
        convert(tiny.write(case, tmp_path / "checkpoint"), ["f16"], tmp_path)
    assert caught.value.line.endswith("convert it with --to onnx")
    assert "\n" not in caught.value.line
    assert not list(tmp_path.glob("*.gguf"))


def test_layers_that_share_their_weights_are_not_pruned(tmp_path):
    with checkpoint.open(tiny.write("albert", tmp_path / "checkpoint")) as original:
        model = understand(original)
        with pytest.raises(RequestError, match="share"):
            without_layers(model, [1])


def test_what_pretraining_leaves_in_a_checkpoint_is_known():
    beside = {
        "electra": ("electra.embeddings.position_ids", "discriminator_predictions.dense.weight"),
        "albert": ("albert.pooler.weight", "predictions.LayerNorm.weight", "sop_classifier.classifier.bias"),
        "mpnet": ("mpnet.pooler.dense.bias", "lm_head.decoder.weight"),
        "deberta": ("deberta.embeddings.position_embeddings.weight", "mask_predictions.classifier.weight"),
        "modernbert": ("head.dense.weight", "decoder.bias"),
    }
    for module, names in beside.items():
        family = importlib.import_module(f"edge.convert.families.{module}")
        known = re.compile("|".join(family.IGNORED))
        assert all(known.fullmatch(name) for name in table_names(family, names)), module


def test_distances_far_apart_share_a_row():
    v3 = read({**tiny.DEBERTA, "max_relative_positions": -1, "position_buckets": 256})
    rows = deberta.row_of_distance(v3)
    assert len(rows) == 1023
    middle = 511
    assert rows[middle - 128 : middle + 129].tolist() == list(range(128, 385))  # one each, near 0
    assert (rows[0], rows[-1]) == (1, 511)
    assert len(set(rows[middle + 300 : middle + 303])) == 1
    assert (np.diff(rows) >= 0).all()
    buckets = mpnet.buckets(512)
    assert buckets[511 - 7 : 511 + 8].tolist() == [*range(23, 16, -1), *range(8)]
    assert set(buckets[511 + 128 :]) == {15}
    assert set(buckets[: 512 - 128]) == {31}


def graph_and_pass(raw, folder, seed=0):
    """The graph of random weights, and the float64 pass of the same."""
    family, config = family_of(raw), read(raw)
    weights = random_weights(family, config, seed)
    names = {name: tiny.stored_name(raw, name) for name in weights}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    table = [(names[name], "F32", values.shape) for name, values in weights.items()]
    with Writer(folder / "model.safetensors", table, {"format": "pt"}) as writer:
        for name, values in weights.items():
            writer.write(names[name], values)
    with checkpoint.open(folder) as original:
        write(encoder(understand(original), "fp32", "t"), folder / "model.onnx")
    wide = {name: values.astype(np.float64) for name, values in weights.items()}
    return session(folder / "model.onnx"), lambda ids: family.forward(
        numpy_ops, wide.__getitem__, config, np.array(ids)
    )


@pytest.mark.parametrize(
    "raw",
    [
        {**tiny.MPNET, "max_position_embeddings": 66},
        {**tiny.DEBERTA, "max_position_embeddings": 64},
        {**tiny.DEBERTA_PARTS_APART, "max_position_embeddings": 64},
        {**tiny.DEBERTA, "conv_kernel_size": 5, "max_position_embeddings": 64},
        {
            **tiny.DEBERTA,
            "max_position_embeddings": 4096,
        },  # a table of as many distances as edge may not name
        {**tiny.MODERNBERT, "max_position_embeddings": 64},
        tiny.tags(tiny.GEMMA2, max_position_embeddings=64, num_hidden_layers=2),
    ],
    ids=["mpnet", "deberta-v3", "deberta-v2", "convolution", "long", "modernbert", "gemma2"],
)
def test_texts_of_one_token_and_of_all_that_fit_in_one_batch(tmp_path, raw):
    made, computed = graph_and_pass(raw, tmp_path / "checkpoint")
    draw = np.random.default_rng(2)
    texts = [(draw.integers(3, 320, count).tolist(), [0] * count) for count in (64, 1, 63, 2, 30)]
    for batch in (texts, texts[1:2], texts[3:]):
        for (ids, _), found in zip(batch, run(made, batch), strict=True):
            hidden, logits = computed(ids)
            theirs, ours = (found.hidden, hidden) if logits is None else (found.logits, logits)
            assert theirs.shape == ours.shape
            assert np.abs(theirs - ours).max() < 1e-4


def test_the_last_token_is_the_last_that_is_not_the_padding_one(tmp_path):
    raw = tiny.classifier(tiny.QWEN2, pad_token_id=7)
    made, computed = graph_and_pass(raw, tmp_path / "checkpoint")
    ended = [5, 9, 7, 11, 7]  # as where a text ends in the token that pads, too
    texts = [(ids, [0] * len(ids)) for ids in (ended, ended[:4], [7], [5, 9, 20, 30, 40, 50])]
    found = [one.logits for one in run(made, texts)]
    for (ids, _), logits in zip(texts, found, strict=True):
        assert np.abs(logits - computed(ids)[1][0]).max() < 1e-4
    assert np.abs(found[0] - found[1]).max() < 1e-6
    assert np.abs(found[0] - found[3]).max() > 1e-2


@pytest.mark.parametrize("way", ["mean", "cls", "last"])
@pytest.mark.parametrize("base", [tiny.MPNET, tiny.ALBERT, tiny.MODERNBERT, tiny.ELECTRA, tiny.DEBERTA])
def test_embeddings_are_pooled_as_sentence_transformers_says(tmp_path, base, way):
    raw = {**base, "sentence_transformers": {"pooling": way, "normalize": True, "reads": 0}}
    made, computed = graph_and_pass(raw, tmp_path / "checkpoint")
    draw = np.random.default_rng(3)
    texts = [(draw.integers(3, 320, count).tolist(), [0] * count) for count in (20, 7)]
    pool = {"mean": lambda x: x.mean(axis=0), "cls": lambda x: x[0], "last": lambda x: x[-1]}[way]
    for (ids, _), found in zip(texts, run(made, texts), strict=True):
        wanted = pool(computed(ids)[0])
        assert np.abs(found.pooled - wanted / np.linalg.norm(wanted)).max() < 1e-5
