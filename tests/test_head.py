"""A trained head: its files, the classifier that it makes of an encoder, and that as one ONNX folder."""

import json

import numpy as np
import pytest
from word_encoders import WIDTH, cross_encoder, embedder

from edge import onnx_folder
from edge.convert.onnx import headed
from edge.convert.safetensors import read_header
from edge.errors import BadONNX, ConversionError, RequestError, StoreError, UnsafeFile
from edge.onnx.encoder import OnnxEncoder
from edge.tasks import head
from edge.tasks.head import HeadedEncoder, LinearHead

LABELS = ("bad", "good", "money")
TEXTS = ["the film is good", "a poor film", "cash", "the rate is awful the card is a loan", "unheard of"]


def some_head(width=WIDTH):
    random = np.random.default_rng(3)
    weight, bias = random.normal(size=(3, width)).astype("f4"), random.normal(size=3).astype("f4")
    return LinearHead(LABELS, weight, bias, {"encoder": {"name": "tiny"}})


@pytest.fixture
def folder(tmp_path):
    """What the store keeps of a trained model, without its record."""
    path = tmp_path / "mine"
    embedder(path / head.ENCODER)
    head.write(path, some_head())
    return path


@pytest.fixture
def model(folder):
    encoder = HeadedEncoder(OnnxEncoder(head.encoder_of(folder)), head.read(folder), "mine", folder)
    yield encoder
    encoder.close()


def test_what_is_written_is_read_and_is_safetensors(folder):
    found = head.read(folder)
    assert found.labels == LABELS
    assert found.facts == {"encoder": {"name": "tiny"}}
    assert (found.weight == some_head().weight).all()
    assert (found.bias == some_head().bias).all()
    tensors = read_header(folder / head.WEIGHTS)
    assert {name: (info.dtype, info.shape) for name, info in tensors.items()} == {
        "weight": ("F32", (3, WIDTH)), "bias": ("F32", (3,)),
    }  # fmt: skip
    assert head.is_headed(folder)
    assert not head.is_headed(folder / head.ENCODER)


def test_it_is_a_classifier_of_texts(model, folder):
    assert (model.about.task, model.about.labels, model.about.name) == ("classification", LABELS, "mine")
    assert model.about.path == folder
    tokens = model.tokenize(TEXTS)
    embeddings = np.stack(model.encoder.run(tokens))
    wanted = embeddings @ some_head().weight.T + some_head().bias
    assert np.allclose(np.stack(model.run(tokens)), wanted, atol=1e-6)
    assert model.run([]) == []


def test_a_head_for_other_embeddings_is_refused(folder, tmp_path):
    encoder = OnnxEncoder(head.encoder_of(folder))
    with pytest.raises(UnsafeFile, match="embeddings of 8 elements, and its encoder gives embedding of 16"):
        HeadedEncoder(encoder, some_head(8), "mine", folder)
    with pytest.raises(UnsafeFile, match="gives classification"):
        HeadedEncoder(OnnxEncoder(cross_encoder(tmp_path / "cross")), some_head(), "mine", folder)


@pytest.mark.parametrize(
    "change", [[], {}, {"labels": ["one"]}, {"labels": ["a", "a", "b"]}, {"labels": [1, 2, 3]}]
)
def test_a_json_that_makes_no_sense_is_refused(folder, change):
    (folder / head.HEAD).write_text(json.dumps(change))
    with pytest.raises(UnsafeFile) as error:
        head.read(folder)
    assert "train it again" in error.value.line


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"labels": '])
def test_a_json_that_is_none_is_refused(folder, text):
    (folder / head.HEAD).write_text(text)
    with pytest.raises(UnsafeFile, match="cannot be read"):
        head.read(folder)


def test_labels_and_rows_must_agree(folder):
    (folder / head.HEAD).write_text(json.dumps({"labels": ["a", "b"]}))
    with pytest.raises(UnsafeFile, match="a row for each of 2 labels"):
        head.read(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(folder, value):
    damaged = some_head()
    damaged.weight[1, 2] = value
    head.write(folder, damaged)
    with pytest.raises(UnsafeFile, match="NaN or infinite"):
        head.read(folder)


def file_of(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return len(text).to_bytes(8, "little") + text + data


def place(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        file_of(b"{"),
        file_of([]),
        file_of({"weight": 1}),
        file_of({"weight": place([2], 0, 8)}, b"1234"),
        file_of({"weight": place([2], 0, 4)}, b"1234"),
        file_of({"weight": place([1], 0, 4, "F16")}, b"1234"),
        file_of({"weight": place([-1], 0, -4)}),
        file_of({"weight": place([1], 4, 8)}, b"12345678"),
        file_of({"weight": place([1], 0, 4)}, b"12345678"),
        file_of({"weight": place(["1"], 0, 4)}, b"1234"),
        file_of({"weight": place([1, 1], 0, 4)}, b"1234"),
    ],
)
def test_tensors_that_are_none_are_refused(folder, content):
    (folder / head.WEIGHTS).write_bytes(content)
    with pytest.raises(UnsafeFile):
        head.read(folder)


def test_one_onnx_folder_computes_the_same(folder, model, tmp_path):
    made = headed.export(folder, tmp_path / "out", name="mine")
    assert made.path == tmp_path / "out" / "mine-fp32"
    with_onnx = OnnxEncoder(made.path)
    assert (with_onnx.about.task, with_onnx.about.labels, with_onnx.about.level) == (
        "classification",
        LABELS,
        "fp32",
    )
    assert with_onnx.about.problem == model.about.problem
    assert with_onnx.about.max_tokens == model.about.max_tokens
    tokens = model.tokenize(TEXTS)
    assert np.allclose(np.stack(with_onnx.run(tokens)), np.stack(model.run(tokens)), atol=1e-6)
    written = json.loads((made.path / "certificate.json").read_text())
    assert written["comparison"]["logit_error"] < 1e-6
    assert set(written["source"]) == {"head.json", "head.safetensors", "encoder/model.onnx"}
    assert not list(made.path.glob("lock"))
    with pytest.raises(StoreError, match="is there already"):
        headed.export(folder, tmp_path / "out", name="mine")


def test_weights_beside_the_graph_go_with_it(folder, model, tmp_path):
    import onnx

    graph = folder / head.ENCODER / onnx_folder.GRAPH
    loaded = onnx.load(graph)
    onnx.save(loaded, graph, save_as_external_data=True, location=onnx_folder.DATA, size_threshold=64)
    assert (folder / head.ENCODER / onnx_folder.DATA).exists()
    made = headed.export(folder, tmp_path, name="apart")
    tokens = model.tokenize(TEXTS)
    assert np.allclose(np.stack(OnnxEncoder(made.path).run(tokens)), np.stack(model.run(tokens)), atol=1e-6)
    assert made.certificate.data_sha256


def test_it_has_the_level_of_its_encoder(folder, tmp_path):
    with pytest.raises(RequestError, match="trained on an encoder at fp32, so it cannot be written at int8"):
        headed.export(folder, tmp_path, name="mine", levels=["int8"])
    assert headed.export(folder, tmp_path, name="mine", levels=["fp32"], prove=False).certificate is None


def test_a_graph_that_computes_something_else_is_refused(folder, tmp_path, monkeypatch):
    whole = headed.joined

    def wrong(source, trained):
        return whole(source, LinearHead(trained.labels, trained.weight * 1.001, trained.bias, {}))

    monkeypatch.setattr(headed, "joined", wrong)
    with pytest.raises(ConversionError, match="does not compute what mine does"):
        headed.export(folder, tmp_path / "out", name="mine")
    assert list((tmp_path / "out").iterdir()) == []


def test_encoders_that_have_no_graph_of_ours_are_refused(folder, tmp_path):
    with pytest.raises(RequestError, match="GGUF encoder"):
        headed.ours(tmp_path / "encoder.gguf")
    config = folder / head.ENCODER / "config.json"
    config.write_text(
        json.dumps({key: value for key, value in json.loads(config.read_text()).items() if key != "edge"})
    )
    with pytest.raises(RequestError, match="made elsewhere"):
        headed.export(folder, tmp_path, name="mine")


def test_a_damaged_encoder_and_a_name_that_leads_elsewhere_are_refused(folder, tmp_path):
    with pytest.raises(RequestError, match="cannot begin files' names"):
        headed.export(folder, tmp_path / "out", name="../mine")
    graph = folder / head.ENCODER / onnx_folder.GRAPH
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    with pytest.raises(BadONNX):
        headed.export(folder, tmp_path / "out", name="mine")
    assert not (tmp_path / "out").exists()


def test_a_gguf_encoder_is_opened_by_its_first_part(tmp_path):
    (tmp_path / head.ENCODER).mkdir()
    for part in (2, 1):
        (tmp_path / head.ENCODER / f"x-0000{part}-of-00002.gguf").touch()
    assert head.encoder_of(tmp_path).name == "x-00001-of-00002.gguf"
