"""What the folder of an ONNX model says: ours, one made elsewhere, and the ways in which both go wrong."""

import json

import pytest

from edge import onnx_folder
from edge.errors import ModelNotFound, RequestError, UnsafeFile

OURS = {
    "level": "int8", "task": "classification", "labels": ["bad", "good"], "problem": None, "pooling": "none",
    "normalize": False, "max_tokens": 128, "width": 64,
}  # fmt: skip
BERT = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 64}
LABELS = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}
CLASSIFIER = {**BERT, **LABELS, "max_position_embeddings": 512}
EMBEDDER = {**CLASSIFIER, "architectures": ["BertModel"]}
MEAN = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
MODULES = [
    {"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Normalize")
]


@pytest.fixture
def folder(tmp_path):
    def made(config, **files):
        (tmp_path / "model.onnx").write_bytes(b"graph")
        (tmp_path / "tokenizer.json").write_text("{}")
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        (tmp_path / "1_Pooling").mkdir()
        for name, value in files.items():
            path = "1_Pooling/config" if name == "pooling" else name
            (tmp_path / f"{path}.json").write_text(json.dumps(value))
        return tmp_path

    return made


def test_ours_says_it_in_one_object(folder):
    path = folder({**CLASSIFIER, "edge": OURS})
    (path / "model.onnx.data").write_bytes(b"weights")
    found = onnx_folder.read(path)
    assert (found.level, found.task, found.labels, found.max_tokens, found.width) == (
        "int8", "classification", ("bad", "good"), 128, 64,
    )  # fmt: skip
    assert found.ours
    assert found.bytes == 5 + 7
    assert found.graph == path / "model.onnx"
    assert found.config["hidden_size"] == 64


@pytest.mark.parametrize(
    "change",
    [
        {"task": "everything"},
        {"labels": "good"},
        {"labels": [1, 2]},
        {"labels": []},
        {"labels": ["good", "bad"]},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"width": 10**12},
        {"pooling": "max"},
        {"normalize": 1},
        {"problem": "any"},
        {"level": None},
    ],
)
def test_an_object_that_makes_no_sense_is_refused(folder, change):
    with pytest.raises(UnsafeFile):
        onnx_folder.read(folder({**CLASSIFIER, "edge": OURS | change}))


@pytest.mark.parametrize("edge", [None, [], {}, {"task": "classification"}])
def test_an_object_that_is_none_is_refused(folder, edge):
    with pytest.raises(UnsafeFile, match="makes no sense"):
        onnx_folder.read(folder({**CLASSIFIER, "edge": edge}))


def test_a_classifier_made_elsewhere(folder):
    settings = {"model_max_length": 10**30}  # as transformers writes "no limit"
    found = onnx_folder.read(folder(CLASSIFIER, tokenizer_config=settings))
    assert (found.task, found.labels, found.max_tokens, found.ours) == (
        "classification", ("bad", "good"), 512, False,
    )  # fmt: skip


def test_an_embedder_made_elsewhere(folder):
    path = folder(EMBEDDER, modules=MODULES, pooling=MEAN, sentence_bert_config={"max_seq_length": 128})
    found = onnx_folder.read(path)
    assert (found.task, found.labels, found.pooling, found.normalize) == ("embedding", (), "mean", True)
    assert (found.max_tokens, found.width) == (128, 64)


def test_pooling_as_newer_sentence_transformers_write_it(folder):
    found = onnx_folder.read(folder(EMBEDDER, modules=MODULES[:2], pooling={"pooling_mode": "cls"}))
    assert (found.pooling, found.normalize) == ("cls", False)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"modules": [*MODULES, {"type": "x.models.Dense"}], "pooling": MEAN}, "a Dense module"),
        ({"modules": MODULES}, "no 1_Pooling/config.json"),
        ({"modules": MODULES, "pooling": {"pooling_mode_max_tokens": True}}, "pooling_mode_max_tokens"),
        ({"modules": MODULES, "pooling": {**MEAN, "pooling_mode_cls_token": True}}, "\\+"),
        ({"modules": MODULES, "pooling": {}}, "pools by none"),
    ],
)
def test_pooling_that_is_not_known_is_named(folder, files, words):
    with pytest.raises(RequestError, match=words):
        onnx_folder.read(folder(EMBEDDER, **files))


def test_positions_that_no_text_reaches_do_not_count(folder):
    roberta = {**CLASSIFIER, "model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert onnx_folder.read(folder(roberta)).max_tokens == 512


@pytest.mark.parametrize(
    "change",
    [
        {"id2label": {"0": "bad", "2": "good"}},
        {"id2label": ["bad", "good"]},
        {"id2label": {}},
        {"id2label": {"0": "bad", "1": 1}},
        {"label2id": {"bad": 1, "good": 0}},
        {"id2label": None, "num_labels": -1},
        {"problem_type": "guessing"},
        {"id2label": {"0": "bad", "1": "\ud800"}},
    ],
)
def test_labels_that_contradict_themselves_are_refused(folder, change):
    with pytest.raises(UnsafeFile):
        onnx_folder.read(folder(CLASSIFIER | change))


def test_two_labels_are_what_transformers_leaves_out(folder):
    assert onnx_folder.read(folder(BERT)).labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize("text", ["", "not json", "[]", "[" * 100_000, '{"a": "' + "x" * (5 << 20) + '"}'])
def test_a_config_that_is_no_json_object_is_refused(folder, text):
    with pytest.raises(UnsafeFile):
        onnx_folder.read(folder(text))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_missing_part_is_named(folder, name):
    path = folder(CLASSIFIER)
    (path / name).unlink()
    with pytest.raises(RequestError, match=f"no {name}"):
        onnx_folder.read(path)


def test_of_several_graphs_one_is_to_be_named(folder):
    path = folder(CLASSIFIER)
    (path / "model.onnx").rename(path / "a.onnx")
    assert onnx_folder.read(path).graph.name == "a.onnx"
    (path / "b.onnx").write_bytes(b"other")
    with pytest.raises(RequestError, match=r"2 \.onnx files"):
        onnx_folder.read(path)
    assert onnx_folder.read(path / "b.onnx").graph.name == "b.onnx"


def test_a_graph_in_a_repositorys_folder_for_them_finds_the_rest_above(folder):
    path = folder(CLASSIFIER)
    (path / "onnx").mkdir()
    (path / "model.onnx").rename(path / "onnx" / "model.onnx")
    assert onnx_folder.read(path / "onnx").labels == ("bad", "good")


def test_no_graph_and_no_folder(tmp_path):
    with pytest.raises(RequestError, match=r"no \.onnx file"):
        onnx_folder.read(tmp_path)
    with pytest.raises(ModelNotFound):
        onnx_folder.read(tmp_path / "absent")
    assert not onnx_folder.is_folder(tmp_path)
