"""`edge.convert.onnx`: folders of a checkpoint at every level, proven, or none at all."""

import json
import resource
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_checkpoints

pytest.importorskip("onnxruntime")

from edge import onnx_folder
from edge.convert import proof
from edge.convert.onnx import certificate, computed, folder, graph
from edge.convert.onnx.levels import LEVELS
from edge.convert.onnx.to_onnx import convert, sizes
from edge.convert.safetensors import Writer
from edge.errors import ConversionError, RequestError, StoreError, UnsafeFile
from edge.onnx.session import Session

LOSSY = ["int8w", "int4"]
TEXTS = [([2, 9, 8, 7, 60, 3], [0] * 6), ([2, 40, 3], [0] * 3), ([2, *range(50, 70), 3], [0] * 22)]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Two threads would spend most of the time of models so small on waiting for each other."""
    monkeypatch.setattr(computed, "Session", partial(Session, threads=1))


@pytest.fixture
def source(tmp_path):
    return tiny_checkpoints.write("bert-classifier", tmp_path / "model")


def rewritten(case, path, change=lambda name, array: array, dtype="F32"):
    """The checkpoint of a case with other weights."""
    tiny_checkpoints.write(case, path)
    tensors = {
        tiny_checkpoints.name_in_file(case, name): change(name, array)
        for name, array in tiny_checkpoints.weights(case).items()
    }
    with Writer(
        path / "model.safetensors", [(name, dtype, x.shape) for name, x in tensors.items()], {}
    ) as out:
        for name, array in tensors.items():
            out.write(name, array)
    return path


def sentence_transformer(path, pooling):
    """A folder of sentence-transformers around BERT."""
    tiny_checkpoints.write("bert", path)
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64}))
    return path


def answers(made):
    return computed.answers(computed.session(made.path / "model.onnx"), TEXTS)


def error(ours, theirs):
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in zip(ours, theirs, strict=True))


def test_every_level_is_a_folder_that_says_what_it_is_and_is_near_its_source(source, tmp_path):
    made = convert(source, list(LEVELS), tmp_path / "out")
    whole = answers(made[0])
    assert [one.path.name for one in made] == [f"model-{level}" for level in LEVELS]
    for one, most in zip(made, (1e-6, 0.002, 0.1, 0.05, 0.5), strict=True):
        assert {path.name for path in one.path.iterdir()} == {
            "model.onnx", "config.json", "tokenizer.json", "certificate.json",
        }  # fmt: skip
        said = onnx_folder.read(one.path)
        assert (said.level, said.task, said.labels) == (one.level, "classification", ("bad", "fair", "good"))
        assert (said.max_tokens, said.width, said.ours) == (512, 64, True)
        assert said.bytes == one.bytes == (one.path / "model.onnx").stat().st_size
        kept = json.loads((one.path / "certificate.json").read_text())
        assert kept["comparison"]["logit_error"] == one.certificate.comparison.logit_error < most
        assert error(answers(one), whole) < 2 * most
    # more of the weights than a real model's are in what is never rounded: positions, head
    bits = [one.bits_per_weight for one in made]
    assert bits[0] == pytest.approx(32, abs=0.01)  # shapes and the like count, too
    assert bits[1] < 27
    assert max(bits[2:]) < 22
    assert made[2].certificate.tensor_types["encoder.layer.0.attention.self.query.weight"].startswith("int8")
    assert made[4].certificate.tensor_types["encoder.layer.0.output.dense.weight"] == "int4 by block of 32"
    assert made[4].certificate.tensor_types["classifier.weight"] == "float32"
    assert made[4].certificate.tensor_types["embeddings.word_embeddings.weight"] == "int8 by row"


def test_a_graph_is_valid_onnx_and_holds_the_weights_of_the_checkpoint(source, tmp_path):
    (made,) = convert(source, ["fp32"], tmp_path)
    model = onnx.load(made.path / "model.onnx")
    assert {one.domain: one.version for one in model.opset_import} == graph.OPSETS
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    weights = tiny_checkpoints.weights("bert-classifier")
    table = "embeddings.word_embeddings.weight"
    up = "encoder.layer.0.intermediate.dense.weight"
    assert np.array_equal(stored[table], weights[table])
    assert np.array_equal(stored[f"{up} turned"], weights[up].T)
    shapes = [one.name for one in (*model.graph.input, *model.graph.output)]
    assert shapes == ["input_ids", "attention_mask", "token_type_ids", "logits"]


def test_weights_beyond_a_limit_go_to_a_file_of_their_own_at_aligned_places(source, tmp_path):
    (inside,) = convert(source, ["int4"], tmp_path / "inside")
    (outside,) = convert(source, ["int4"], tmp_path / "outside", largest=10_000)
    model = onnx.load(outside.path / "model.onnx", load_external_data=False)
    kept = [one for one in model.graph.initializer if one.external_data]
    assert len(kept) > 10
    for one in kept:
        entries = {entry.key: entry.value for entry in one.external_data}
        assert entries["location"] == "model.onnx.data"
        assert int(entries["offset"]) % graph.ALIGNMENT == 0
    assert outside.bytes == sum(path.stat().st_size for path in outside.path.glob("model.onnx*"))
    assert len(outside.certificate.data_sha256) == 64
    assert inside.certificate.data_sha256 is None
    assert error(answers(outside), answers(inside)) == 0


def test_the_length_before_a_message_takes_seven_bits_a_byte():
    assert graph.prefix(7, 127) == b"\x3a\x7f"
    assert graph.prefix(5, 300) == b"\x2a\xac\x02"
    message = onnx.GraphProto.FromString(graph.prefix(10, 300) + bytes(b"a" * 300))
    assert message.doc_string == "a" * 300


@pytest.mark.parametrize(
    ("pooling", "way"), [("mean_tokens", "mean"), ("cls_token", "cls"), ("lasttoken", "last")]
)
def test_embeddings_are_pooled_and_of_length_1_padded_or_not(tmp_path, pooling, way):
    source = sentence_transformer(tmp_path / "model", pooling)
    (made,) = convert(source, ["fp32"], tmp_path)
    said = onnx_folder.read(made.path)
    assert (said.task, said.pooling, said.normalize, said.max_tokens) == ("embedding", way, True, 64)
    session = computed.session(made.path / "model.onnx")
    padded = computed.run(session, TEXTS)
    for text, one in zip(TEXTS, padded, strict=True):
        (alone,) = computed.run(session, [text])
        pooled = proof.pool(alone.hidden, way)
        assert np.abs(one.pooled - pooled / np.linalg.norm(pooled)).max() < 1e-6
        assert np.abs(one.hidden - alone.hidden).max() < 1e-5
    assert made.certificate.comparison.cosine > 1 - 1e-6
    assert made.certificate.padded_error < 1e-6


def test_token_types_are_an_input_where_there_are_several_and_count(source, tmp_path):
    (made,) = convert(source, ["fp32"], tmp_path)
    session = computed.session(made.path / "model.onnx")
    ids, types = TEXTS[2]
    one, other = computed.run(session, [(ids, types), (ids, [0] * 11 + [1] * 11)])
    assert np.abs(one.logits - other.logits).max() > 0.01
    single = tiny_checkpoints.write("roberta-classifier", tmp_path / "roberta")
    (made,) = convert(single, ["fp32"], tmp_path)
    names = [entry.name for entry in computed.session(made.path / "model.onnx").graph.inputs]
    assert names == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(("dtype", "bits"), [("F16", np.float16), ("BF16", np.uint16)])
def test_half_checkpoints_compute_what_their_values_are(tmp_path, dtype, bits):
    def narrowed(name, array):
        return array.astype(np.float16) if dtype == "F16" else (array.view(np.uint32) >> 16).astype(bits)

    source = rewritten("bert-classifier", tmp_path / "model", narrowed, dtype)
    exact, half = convert(source, ["fp32", "fp16"], tmp_path)
    assert exact.certificate.comparison.logit_error < 1e-5
    assert half.certificate.comparison.logit_error < (1e-5 if dtype == "F16" else 1e-3)


def test_what_is_not_finite_or_too_large_for_half_is_refused_by_name_and_leaves_nothing(tmp_path):
    query = "encoder.layer.1.attention.self.query.weight"

    def spoiled(value):
        def change(name, array):
            array[3, 4] = value if name == query else array[3, 4]
            return array

        return lambda name, array: change(name, array) if name == query else array

    bad = rewritten("bert-classifier", tmp_path / "bad", spoiled(np.nan))
    with pytest.raises(UnsafeFile, match=query):
        convert(bad, ["fp32", "int8"], tmp_path / "out")
    large = rewritten("bert-classifier", tmp_path / "large", spoiled(70000))
    with pytest.raises(ConversionError, match=query):
        convert(large, ["fp32", "fp16"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_graph_that_computes_something_else_is_not_kept(source, tmp_path, monkeypatch):
    expected = certificate.expected

    def other(*arguments):
        texts, reference = expected(*arguments)
        return texts, replace(reference, logits=reference.logits * 1.001)

    monkeypatch.setattr(certificate, "expected", other)
    with pytest.raises(ConversionError, match="does not compute what its source does: logit error"):
        convert(source, ["fp32"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_interrupted_leaves_no_folder_and_a_killed_process_s_draft_is_cleaned(source, tmp_path):
    def stop(doing, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, ["fp32"], tmp_path / "out", report=stop)
    assert list((tmp_path / "out").iterdir()) == []
    stale = tmp_path / "out" / ".model-fp32.converting"
    stale.mkdir()
    (stale / "model.onnx.data").write_bytes(b"half")
    (made,) = convert(source, ["fp32"], tmp_path / "out", prove=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model-fp32"]
    assert {path.name for path in made.path.iterdir()} == {"model.onnx", "config.json", "tokenizer.json"}
    assert made.certificate is None


def test_folders_that_are_there_or_being_made_are_left_alone(source, tmp_path):
    there = tmp_path / "model-int8"
    there.mkdir()
    with pytest.raises(StoreError, match="model-int8 is there already"):
        convert(source, ["fp32", "int8"], tmp_path)
    assert list(there.iterdir()) == []
    with (
        folder.draft(tmp_path / "model-fp32"),
        pytest.raises(StoreError, match="being made by another process"),
    ):
        convert(source, ["fp32"], tmp_path)


def test_levels_are_compared_on_a_text_of_the_user_s(source, tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("a word\n\nsome other words\nthe end\n" * 20)
    made = convert(source, ["int8", "fp32"], tmp_path, agreement=text)
    first, second = (one.certificate.agreement for one in made)
    assert (first.text, first.lines, first.beside) == ("lines.txt", 60, "fp32")
    assert 0.9 <= first.share <= second.share == 1
    vectors = sentence_transformer(tmp_path / "vectors", "mean_tokens")
    one, _ = convert(vectors, ["int4", "int8w"], tmp_path, agreement=text)
    assert one.certificate.agreement.mean_cosine == pytest.approx(1)


def test_one_score_is_compared_by_its_size_for_it_is_always_the_likeliest(tmp_path):
    source = tiny_checkpoints.write("bert-cross-encoder", tmp_path / "one")
    text = tmp_path / "lines.txt"
    text.write_text("a word\nsome other words\n")
    _, coarse = (one.certificate.agreement for one in convert(source, LOSSY, tmp_path, agreement=text))
    assert coarse.share is None
    assert 0 < coarse.score_error < 1


def test_texts_that_levels_cannot_be_compared_on(source, tmp_path):
    text = tmp_path / "lines.txt"
    for content, error, said in (
        (b"", RequestError, "0 lines"),
        (b"a\n" * (certificate.MOST_LINES + 1), RequestError, "5,001 lines"),
        (b"\xff\xfe\x00", StoreError, "not UTF-8 text at byte 0"),
    ):
        text.write_bytes(content)
        with pytest.raises(error, match=said):
            convert(source, LOSSY, tmp_path, agreement=text)
    with pytest.raises(RequestError, match="larger than 16 MiB"):  # without reading it whole: it has no end
        convert(source, LOSSY, tmp_path, agreement=Path("/dev/zero"))
    with pytest.raises(StoreError, match="cannot be read: Is a directory"):
        convert(source, LOSSY, tmp_path, agreement=tmp_path)
    with pytest.raises(RequestError, match="there is one"):
        convert(source, ["int8"], tmp_path, agreement=text)


def test_a_disk_that_fills_up_while_texts_are_written_is_a_store_error(tmp_path):
    source = tiny_checkpoints.write("bert-classifier", tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "note": "x" * (4 << 20)}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, before[1]))
    try:
        with pytest.raises(StoreError, match="File too large"):
            convert(source, ["fp32"], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_sizes_are_those_of_the_weights_without_writing(source, tmp_path):
    found = sizes(source, list(LEVELS))
    made = convert(source, list(LEVELS), tmp_path, prove=False)
    for size, one in zip(found, made, strict=True):
        assert size.bits_per_weight == one.bits_per_weight
        assert 0 < one.bytes - size.bytes < 40_000  # the nodes, and each weight's name


def test_the_tokenizer_s_truncation_and_padding_do_not_come_along(tmp_path):
    source = tiny_checkpoints.write("roberta-classifier", tmp_path / "model")
    saved = json.loads((source / "tokenizer.json").read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    (source / "tokenizer.json").write_text(json.dumps(saved))
    (source / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
    (made,) = convert(source, ["fp32"], tmp_path)
    kept = json.loads((made.path / "tokenizer.json").read_text())
    assert (kept["truncation"], kept["padding"]) == (None, None)
    assert onnx_folder.read(made.path).max_tokens == 77


def test_a_vocab_txt_becomes_a_tokenizer_of_texts_and_pairs(source, tmp_path):
    from tokenizers import Tokenizer

    (made,) = convert(source, ["fp32"], tmp_path)
    found = Tokenizer.from_file(str(made.path / "tokenizer.json")).encode("a", "b c")
    assert found.tokens == ["[CLS]", "a", "[SEP]", "b", "c", "[SEP]"]
    assert found.type_ids == [0, 0, 0, 1, 1, 1]


def test_a_tokenizer_of_another_model_and_none_are_refused(tmp_path):
    source = tiny_checkpoints.write("roberta-classifier", tmp_path / "model")
    saved = json.loads((source / "tokenizer.json").read_text())
    saved["model"]["vocab"]["more"] = 320
    (source / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(ConversionError, match="id 320 and the model 320 rows"):
        convert(source, ["fp32"], tmp_path)
    (source / "tokenizer.json").unlink()
    with pytest.raises(ConversionError, match=r"no tokenizer\.json"):
        convert(source, ["fp32"], tmp_path)


def test_levels_and_sources_that_are_none_are_refused(source, tmp_path):
    for levels in ([], ["q4_0"], ["fp32", "fp32"]):
        with pytest.raises(RequestError):
            convert(source, levels, tmp_path)
    with pytest.raises(RequestError, match="is a file"):
        convert(source / "config.json", ["fp32"], tmp_path, name="x")
    with pytest.raises(ConversionError, match=r"has no ONNX form|not written as ONNX"):
        convert(tiny_checkpoints.write("gpt2", tmp_path / "gpt2"), ["fp32"], tmp_path)


def test_int8_gives_a_text_the_same_whatever_stands_beside_it(source, tmp_path):
    """Its activations have a scale a token: with one a batch, an outlier in another text would move these logits."""
    (made,) = convert(source, ["int8"], tmp_path / "out")
    session = Session(made.path / "model.onnx", 1)
    rng = np.random.default_rng(5)
    texts = rng.integers(5, 60, (12, 9))

    def logits(ids):
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return session.run({value.name: feeds[value.name] for value in session.graph.inputs}, ["logits"])[0]

    alone = np.concatenate([logits(text[None]) for text in texts])
    np.testing.assert_allclose(logits(texts), alone, atol=1e-5)
