"""The rates of ONNX Runtime: what is timed is what a conversion writes, and computes what it says."""

from itertools import pairwise

import numpy as np
import onnx
import pytest

from edge.convert.onnx.levels import LEVELS as CONVERTED
from edge.convert.onnx.values import Handle
from edge.errors import EngineError
from edge.measure import onnx as measured
from edge.measure.onnx import LEVELS, WEIGHTS, WIDTHS, model, onnx_rates
from edge.measure.onnx_parts import CASES, TEXTS, TOKENS, WIDTH, derived, onnx_parts
from edge.onnx.session import onnxruntime


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(measured, "WIDTHS", (64, 128, 64))
    monkeypatch.setattr(measured, "WEIGHTS", 2 * 64 * 128)
    monkeypatch.setattr(measured, "SECONDS", 0.05)


class Written:
    """Takes a conversion's nodes down: operator and attributes."""

    def __init__(self):
        self.nodes = []

    def node(self, operator, inputs, outputs=1, domain="", **attributes):
        self.nodes.append((domain, operator, attributes))
        return [f"{operator}{len(self.nodes)}"]

    def weight(self, name, parts, make):
        return [f"{name}{suffix}" for suffix, *_ in parts]

    def constant(self, value, dtype):
        return f"constant {value}"

    def once(self, name, make):
        return make()

    def kept(self, handle, how):
        pass


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_timed_is_what_a_conversion_writes(level, monkeypatch):
    monkeypatch.setattr(measured, "WIDTHS", (768, 768))
    graph = Written()
    weight = Handle("w", (768, 768), lambda: np.zeros((768, 768), np.float32))
    CONVERTED[level].product(graph, "x", weight, None)
    made = onnx.load_from_string(model(LEVELS[level][1])).graph.node
    nodes = [
        (
            node.domain,
            node.op_type,
            {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute},
        )
        for node in made
    ]
    assert nodes == graph.nodes
    assert LEVELS[level][0] == CONVERTED[level].bits


def test_every_level_is_timed_with_one_row_and_with_many():
    found = onnx_rates(1)
    assert [(one.type, one.rows) for one in found] == [
        (level, rows) for level in ("fp32", "int8", "int4") for rows in (1, 128, 512)
    ]
    for one in found:
        assert one.threads == 1
        assert one.width == 64
        assert 0 < one.seconds < 1
        assert one.spread >= 0
        assert one.gops > 0


def test_the_weights_are_counted_as_they_are():
    assert sum(a * b for a, b in pairwise(WIDTHS)) == WEIGHTS
    assert WEIGHTS * 4 > 32 << 20  # in fp32 more than a desktop's cache


@pytest.mark.parametrize("level", LEVELS)
def test_the_model_gives_finite_numbers(level):
    session = onnxruntime().InferenceSession(model(LEVELS[level][1]), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.random.default_rng(0).standard_normal((3, 64), np.float32)})
    assert y.shape == (3, 64)
    assert np.isfinite(y).all()
    assert y.std() > 0


def test_a_level_that_this_runtime_does_not_know_is_left_out(monkeypatch):
    def unknown(add, weight, x, width, out):
        return add("MatMulNobody", [x])

    monkeypatch.setitem(measured.LEVELS, "int8", (8.0, unknown))
    assert {one.type for one in onnx_rates(1)} == {"fp32", "int4"}


def test_without_onnxruntime_there_are_no_rates(monkeypatch):
    def missing():
        raise EngineError("onnxruntime does not load")

    monkeypatch.setattr(measured, "onnxruntime", missing)
    assert onnx_rates(1) == ()


def test_every_part_beside_the_matrices_takes_some_time():
    found = {part.name: part.seconds for part in onnx_parts()}
    assert set(found) == {"add", "gelu", "norm", "round", "score", "look", "node"}
    assert all(found[name] > 0 for name in ("add", "gelu", "norm", "round", "node"))
    assert found["score"] + found["look"] > 0


def test_two_sizes_of_heads_tell_a_score_from_its_elements():
    looked = TEXTS * TOKENS * TOKENS * WIDTH
    times = {f"heads of {size}": looked / size * (3.0 + 0.5 * size) for size in (32, 64)}
    found = {part.name: part.seconds for part in derived(dict.fromkeys(CASES, 1.0) | times)}
    assert (found["score"], found["look"]) == (pytest.approx(3.0), pytest.approx(0.5))
