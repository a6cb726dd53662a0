"""Encoders as ONNX folders: ours and ones made elsewhere, batches, threads, parts that do not fit each other."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_encoders import TEXTS, as_onnx, expected

from edge.engine.tokenizer import TextTokenizer, shares
from edge.errors import BadONNX, EngineError, RequestError, UnsafeFile
from edge.onnx.encoder import OnnxEncoder

pytest.importorskip("tokenizers")
WIDTH, ROWS = 8, 320


@pytest.mark.parametrize(
    "case", ["bert-classifier", "bert-tokens", "roberta-classifier", "distilbert-classifier"]
)
def test_it_gives_what_the_checkpoint_does_whatever_is_in_the_batch(case):
    encoder = OnnxEncoder(as_onnx(case), threads=1)
    tokens = encoder.tokenize(TEXTS)
    wanted = expected(case, tokens)
    for batch in (range(len(TEXTS)), [3], [1, 1, 2]):
        for at, row in zip(batch, encoder.run([tokens[at] for at in batch]), strict=True):
            assert row.dtype == np.float32
            assert np.abs(row - wanted[at]).max() < 1e-4
    assert encoder.about.labels == ("bad", "fair", "good")
    assert encoder.about.backend == "onnxruntime-cpu"
    assert encoder.run([]) == []


def test_threads_share_one():
    encoder = OnnxEncoder(as_onnx("bert-classifier"), threads=1)
    tokens = encoder.tokenize(TEXTS)
    wanted = encoder.run(tokens)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoder.run(tokens), range(12)):
            assert np.array_equal(found, wanted)
    encoder.close()
    encoder.close()
    with pytest.raises(EngineError, match="closed"):
        encoder.run(tokens)


def test_pairs_are_told_apart():
    encoder = OnnxEncoder(as_onnx("bert-classifier"), threads=1)
    (pair,) = encoder.tokenize(["a ferry"], ["left"])
    assert set(pair.types) == {0, 1}
    assert np.abs(encoder.run([pair])[0] - expected("bert-classifier", [pair])[0]).max() < 1e-4


def hostile_tokenizer(**parts):
    told = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": told} | parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[GONE]"}},
        {
            "pre_tokenizer": {
                "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False,
            }
        },
    ],
    ids=["raises", "panics"],
)  # fmt: skip
def test_a_tokenizer_that_fails_at_a_text_is_one_line(parts):
    tokenizer = TextTokenizer(hostile_tokenizer(**parts), "tokenizer.json")
    with pytest.raises(UnsafeFile, match="is no tokenizer"):
        tokenizer.tokenize(["a" * 40 + "b"], None, 64, spans=False)


def test_a_graph_of_more_tokens_than_any_text_is_refused(tmp_path):
    foreign(tmp_path, labels=2, rank=2, output="logits", architectures=["BertForSequenceClassification"])
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 40
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BadONNX, match="reads 1,099,511,627,776 tokens"):
        OnnxEncoder(tmp_path, threads=1)


def foreign(
    folder, *, output="last_hidden_state", rank=3, labels=0, inputs=("input_ids", "attention_mask"), **config
):
    """A folder as others export them: an embedding table, and what is asked for of its rows."""
    columns = labels or WIDTH
    table = np.random.default_rng(0).standard_normal((ROWS, columns)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", inputs[0]], ["rows"])]
    if rank == 2:
        nodes.append(helper.make_node("ReduceMean", ["rows", "axis"], [output], keepdims=0))
    else:
        nodes.append(helper.make_node("Identity", ["rows"], [output]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    shutil.copy(as_onnx("bert-classifier") / "tokenizer.json", folder)
    fields = {"model_type": "bert", "vocab_size": ROWS, "hidden_size": WIDTH, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(fields | {"architectures": ["BertModel"]} | config))
    return table


def say_pooling(folder, **way):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(way))
    kinds = [
        {"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Normalize")
    ]
    (folder / "modules.json").write_text(json.dumps(kinds))


@pytest.mark.parametrize("way", ["mean_tokens", "cls_token", "lasttoken"])
def test_hidden_states_of_others_are_pooled_over_a_texts_own_tokens(tmp_path, way):
    table = foreign(tmp_path)
    say_pooling(tmp_path, **{f"pooling_mode_{way}": True})
    encoder = OnnxEncoder(tmp_path, threads=1)
    assert (encoder.about.task, encoder.about.width, encoder.about.max_tokens) == ("embedding", WIDTH, 64)
    tokens = encoder.tokenize(TEXTS)
    for one, row in zip(tokens, encoder.run(tokens), strict=True):
        rows = table[one.ids]
        wanted = {"mean_tokens": rows.mean(0), "cls_token": rows[0], "lasttoken": rows[-1]}[way]
        assert np.allclose(row, wanted / np.linalg.norm(wanted), atol=1e-6)


def test_embeddings_that_the_graph_makes_are_taken_as_they_are(tmp_path):
    table = foreign(tmp_path, output="sentence_embedding", rank=2)
    encoder = OnnxEncoder(tmp_path, threads=1)
    (tokens,) = encoder.tokenize(["ab"])
    assert np.allclose(encoder.run([tokens])[0], table[tokens.ids].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("made", "words", "error"),
    [
        ({}, "one vector a text", RequestError),
        ({"inputs": ("input_ids", "pixels")}, "'pixels'", RequestError),
        ({"inputs": ("ids",)}, "'ids'", RequestError),
        ({"vocab_size": 100}, "a model of 100", UnsafeFile),
        (
            {"architectures": ["BertForSequenceClassification"], "output": "logits", "rank": 2, "labels": 3},
            "2 labels in config.json and a graph that gives 3",
            UnsafeFile,
        ),
        (
            {"architectures": ["BertForTokenClassification"], "output": "logits", "rank": 2, "labels": 2},
            "logits|does not give",
            BadONNX,
        ),
        ({"architectures": ["LlamaForCausalLM"]}, "writes text", RequestError),
        ({"output": "pooled", "architectures": ["BertForSequenceClassification"]}, "2-dim|8|logits", UnsafeFile),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_each_other_are_refused_at_load(tmp_path, made, words, error):
    foreign(tmp_path, **made)
    with pytest.raises(error, match=words):
        OnnxEncoder(tmp_path, threads=1)


def test_nan_in_the_weights_is_said(tmp_path):
    foreign(tmp_path, output="sentence_embedding", rank=2)
    model = onnx.load(tmp_path / "model.onnx")
    broken = numpy_helper.to_array(model.graph.initializer[0]).copy()
    broken[:] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "table"))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="NaN"):
        OnnxEncoder(tmp_path, threads=1)


@pytest.mark.parametrize("text", ["", "{}", "[" * 9999, '{"model": {"type": "Evil"}}'])
def test_a_tokenizer_that_is_none_is_refused(tmp_path, text):
    foreign(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UnsafeFile, match="no tokenizer"):
        OnnxEncoder(tmp_path)


def test_long_texts_and_pairs_are_cut_as_the_library_cuts_them():
    from tokenizers import Tokenizer

    path = as_onnx("bert-classifier") / "tokenizer.json"
    ours, theirs = TextTokenizer(path.read_text(), "t"), Tokenizer.from_file(str(path))
    theirs.no_padding()
    draw = np.random.default_rng(0)
    for most in (5, 8, 9, 16):
        theirs.enable_truncation(most)
        for _ in range(40):
            first, second = (" ".join("abc"[: draw.integers(1, 4)] * draw.integers(0, 9)) for _ in "ab")
            (pair,) = ours.tokenize([first], [second], most, spans=False)
            assert pair.ids.tolist() == theirs.encode(first, second).ids
            (one,) = ours.tokenize([first], None, most, spans=True)
            assert one.ids.tolist() == theirs.encode(first).ids
    with pytest.raises(RequestError, match="too few tokens"):
        shares([3, 3], 1)
