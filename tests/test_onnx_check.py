"""Hostile and damaged ONNX files, made field by field: each is refused before ONNX Runtime opens it."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.errors import BadONNX, EngineError, ModelNotFound
from edge.onnx import check as checks
from edge.onnx.check import check
from edge.onnx.session import Session

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def weight(name="w", shape=(4, 3)):
    return numpy_helper.from_array(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), name)


def graph_of(nodes, weights, name="g"):
    return helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", FLOAT, ["texts", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["texts", 3])],
        weights,
    )


def model_of(nodes=None, weights=None, **fields):
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    fields = {"opset_imports": [helper.make_opsetid("", 20)], "ir_version": 10} | fields
    return helper.make_model(graph_of(nodes, weights or [weight()]), **fields)


def external(tensor, **entries):
    """The tensor with its bytes said to be elsewhere."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.fixture
def written(tmp_path):
    def write(model, name="model.onnx"):
        path = tmp_path / name
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return write


def test_a_plain_model_passes_and_runs(written):
    path = written(model_of())
    graph = check(path)
    assert [(value.name, value.type, value.shape) for value in graph.inputs] == [("x", "float32", (None, 4))]
    assert [(value.name, value.shape) for value in graph.outputs] == [("y", (None, 3))]
    assert graph.data == ()
    session = Session(path, threads=1)
    (found,) = session.run({"x": np.ones((2, 4), np.float32)})
    assert found.tolist() == [[18.0, 22.0, 26.0]] * 2
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run({"x": np.ones((2, 4), np.float32)})


def test_weights_in_plain_files_beside_it_pass_and_run(written, tmp_path):
    raw = weight().raw_data
    (tmp_path / "w.data").write_bytes(b"\0" * 64 + raw)
    (tmp_path / "model.onnx.data").write_bytes(raw)
    other = external(weight("v"), location="model.onnx.data")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    path = written(model_of(nodes, [external(weight(), location="w.data", offset=64, length=48), other]))
    assert sorted(file.name for file in check(path).data) == ["model.onnx.data", "w.data"]
    (found,) = Session(path, threads=1).run({"x": np.ones((1, 4), np.float32)})
    assert found.tolist() == [[36.0, 44.0, 52.0]]


@pytest.mark.parametrize("levels", [1, 40, 255])
def test_every_beginning_of_a_file_is_refused(written, levels):
    whole = model_of().SerializeToString()
    with pytest.raises(BadONNX):
        check(written(whole[: len(whole) * levels // 256]))


def test_no_byte_that_is_changed_leads_to_anything_but_a_refusal_or_a_model(written):
    whole = model_of().SerializeToString()
    refused = 0
    for at in range(len(whole)):
        for byte in (0, 0x7F, 0xFF):
            try:
                check(written(whole[:at] + bytes([byte]) + whole[at + 1 :]))
            except BadONNX:
                refused += 1
    assert refused > len(whole) / 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS"),
        (b"<!DOCTYPE html><html>", "server"),
        (b'{"error": "not found"}', "server"),
        (b"\xff" * 100, "protobuf"),
        (b"GGUF" + b"\0" * 60, "protobuf|no ONNX model"),
        (b"\x0b" * 50, "protobuf"),
    ],
)
def test_what_is_no_model_is_refused(written, text, words):
    with pytest.raises(BadONNX, match=words) as caught:
        check(written(text))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (helper.make_node("Exfiltrate", ["x"], ["y"]), "operator 'Exfiltrate'"),
        (helper.make_node("MatMul", ["x", "w"], ["y"], domain="com.evil"), "'com.evil'"),
        (helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft.nchwc"), "nchwc"),
        (helper.make_node("TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml"), r"ai\.onnx\.ml"),
        (helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft"), "EPContext"),
    ],
)
def test_an_operator_that_is_not_onnx_runtimes_own_is_named(written, node, words):
    with pytest.raises(BadONNX, match=words):
        check(written(model_of([node])))


def inside(inner):
    """The node in a branch of an If."""
    branch = helper.make_graph([inner], "branch", [], [helper.make_tensor_value_info("z", FLOAT, None)])
    return helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)


def test_subgraphs_are_looked_into(written):
    with pytest.raises(BadONNX, match="Exfiltrate"):
        check(written(model_of([inside(inside(helper.make_node("Exfiltrate", ["x"], ["z"])))])))
    value = external(weight("v"), location="../v")
    constant = helper.make_node("Constant", [], ["z"], value=value)
    with pytest.raises(BadONNX, match=r"\.\./v"):
        check(written(model_of([inside(constant)])))


def test_subgraphs_without_end_are_refused(written):
    node = helper.make_node("Identity", ["x"], ["z"])
    for _ in range(checks.DEEPEST + 2):
        graph = helper.make_graph([node], "b", [], [])
        node = helper.make_node("Scan", ["x"], ["z"], body=graph)
    with pytest.raises(BadONNX, match="deep"):
        check(written(model_of([node])))


def test_what_need_not_end_is_refused(written):
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [])
    with pytest.raises(BadONNX, match="Loop, which need not end"):
        check(written(model_of([inside(helper.make_node("Loop", ["x"], ["z"], body=body))])))


def test_a_weight_of_a_million_axes_is_refused_at_once(written):
    many = TensorProto(name="w", data_type=FLOAT, dims=[1 << 62] * 1_000_000)
    with pytest.raises(BadONNX, match="more than 64 axes"):
        check(written(model_of(weights=[many])))


def test_functions_of_its_own_are_refused(written):
    own = helper.make_function("", "MatMul", ["a"], ["b"], [], [helper.make_opsetid("", 20)])
    with pytest.raises(BadONNX, match="local functions"):
        check(written(model_of(functions=[own])))


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "folder/w",
        "..",
        ".hidden",
        "",
        "a\\b",
        "w\0",
        "*/_ORT_MEM_ADDR_/*",
        "file:w",
        "x" * 300,
    ],
)
def test_weights_outside_of_the_folder_are_refused(written, name):
    with pytest.raises(BadONNX, match="plain file"):
        check(written(model_of(weights=[external(weight(), location=name)])))


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "folder", "pipe", "absent"])
def test_weights_that_are_not_a_file_of_one_name_are_refused(written, tmp_path, kind):
    secret, target = tmp_path / "elsewhere", tmp_path / "w.data"
    secret.write_bytes(weight().raw_data)
    if kind == "symlink":
        target.symlink_to(secret)
    elif kind == "hardlink":
        os.link(secret, target)
    elif kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    with pytest.raises(
        BadONNX, match={"hardlink": "second name", "absent": "missing"}.get(kind, "link or no file")
    ):
        check(written(model_of(weights=[external(weight(), location="w.data")])))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": 1}, "ends at byte 49"),
        ({"offset": -4}, "ends at byte"),
        ({"offset": 10**30}, "ends at byte"),
        ({"length": 47}, "47 bytes"),
        ({"length": 10**12}, "takes 48"),
        ({"offset": "0x0"}, "begins nowhere"),
    ],
)
def test_weights_beyond_the_end_of_their_file_are_refused(written, tmp_path, entries, words):
    (tmp_path / "w.data").write_bytes(weight().raw_data)
    with pytest.raises(BadONNX, match=words):
        check(written(model_of(weights=[external(weight(), location="w.data", **entries)])))


def test_bytes_here_and_elsewhere_are_refused(written, tmp_path):
    (tmp_path / "w.data").write_bytes(weight().raw_data)
    both = external(weight(), location="w.data")
    both.raw_data = weight().raw_data
    with pytest.raises(BadONNX, match="two ways"):
        check(written(model_of(weights=[both])))
    half = weight()
    half.external_data.add(key="location", value="w.data")
    with pytest.raises(BadONNX, match="two ways"):
        check(written(model_of(weights=[half])))


@pytest.mark.parametrize("shape", [(4, 4), (4, 2), (1 << 40, 1 << 30), (-1, 12), (0,)])
def test_a_shape_that_its_bytes_do_not_fill_is_refused(written, shape):
    wrong = weight()
    del wrong.dims[:]
    wrong.dims.extend(shape)
    with pytest.raises(BadONNX, match="'w'"):
        check(written(model_of(weights=[wrong])))


def test_a_huge_shape_without_bytes_is_refused(written):
    empty = TensorProto(name="w", data_type=FLOAT, dims=[1 << 30])
    with pytest.raises(BadONNX, match="0 bytes"):
        check(written(model_of(weights=[empty])))


def test_weights_as_lists_of_numbers_pass(written):
    listed = helper.make_tensor("w", FLOAT, (4, 3), [float(at) for at in range(12)])
    assert not listed.raw_data
    assert check(written(model_of(weights=[listed]))).inputs[0].name == "x"


@pytest.mark.parametrize("change", ["sparse", "training", "segment", "type", "metadata", "version", "opset"])
def test_what_no_model_of_text_has_is_refused(written, change, monkeypatch):
    model = model_of()
    if change == "sparse":
        model.graph.sparse_initializer.add(dims=[3])
    elif change == "training":
        model.training_info.add()
    elif change == "segment":
        model.graph.initializer[0].segment.begin = 0
    elif change == "type":
        model.graph.initializer[0].data_type = 99
    elif change == "metadata":
        monkeypatch.setattr(checks, "MOST_METADATA", 1000)
        model.metadata_props.add(key="a", value="x" * 1001)
    elif change == "version":
        model.ir_version = 0
    else:
        del model.opset_import[:]
    with pytest.raises(BadONNX):
        check(written(model))


def test_two_graphs_are_refused(written):
    one = model_of().SerializeToString()
    other = onnx.ModelProto(
        graph=graph_of([helper.make_node("Exfiltrate", ["x"], ["y"])], [])
    ).SerializeToString()
    with pytest.raises(BadONNX, match=r"two graphs|Exfiltrate"):
        check(written(one + other))


@pytest.mark.parametrize("change", [{"ir_version": 999}, {"opset_imports": [helper.make_opsetid("", 999)]}])
def test_a_version_that_onnx_runtime_does_not_know_is_one_line(written, change, capfd):
    with pytest.raises(BadONNX, match="does not load") as caught:
        Session(written(model_of(**change)), threads=1)
    assert "\n" not in caught.value.line
    assert "/onnxruntime/" not in caught.value.line
    assert capfd.readouterr().err == ""


def test_a_failure_while_it_runs_is_one_line(written, capfd):
    session = Session(written(model_of()), threads=1)
    with pytest.raises(EngineError, match="ONNX Runtime failed") as caught:
        session.run({"x": np.ones((2, 5), np.float32)})
    assert "\n" not in caught.value.line
    assert capfd.readouterr().err == ""


def test_no_file_and_no_regular_file(tmp_path):
    with pytest.raises(ModelNotFound):
        check(tmp_path / "absent.onnx")
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(BadONNX, match="regular"):
        check(tmp_path / "pipe.onnx")


def test_more_fields_than_a_model_has_are_refused(written, monkeypatch):
    monkeypatch.setattr("edge.onnx.wire.MOST_FIELDS", 10)
    with pytest.raises(BadONNX, match="more than 10 fields"):
        check(written(model_of()))
