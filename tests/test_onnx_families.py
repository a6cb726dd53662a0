"""The graph of every family and head computes what transformers does, padding or not (goldens/make.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints

pytest.importorskip("onnxruntime")

from edge.convert import checkpoint
from edge.convert.onnx.computed import run, session
from edge.convert.onnx.graph import write
from edge.convert.onnx.model import encoder
from edge.convert.understood import understand

GOLDENS = Path(__file__).parent / "goldens"
CASES = [
    case
    for case, config in tiny_checkpoints.CASES.items()
    if not config["architectures"][0].endswith(("ForCausalLM", "LMHeadModel"))
]


def graph_of(case, folder, level):
    with checkpoint.open(tiny_checkpoints.write(case, folder / "checkpoint")) as original:
        write(encoder(understand(original), level, case), folder / "model.onnx")
    return session(folder / "model.onnx")


def text(case, count):
    config = tiny_checkpoints.CASES[case]
    return tiny_checkpoints.ids(config)[:count].tolist(), tiny_checkpoints.types(config, count).tolist()


def difference(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max()


@pytest.mark.parametrize("case", CASES)
def test_the_graph_computes_what_transformers_does(tmp_path, case):
    golden = json.loads((GOLDENS / f"{case}.json").read_text())
    whole, short = (text(case, count) for count in (len(golden["ids"]), tiny_checkpoints.SHORT))
    made = graph_of(case, tmp_path, "fp32")
    alone, padded = run(made, [whole])[0], run(made, [whole, short])
    if "head" in golden:
        rows = golden["head"] if alone.logits.ndim > 1 else golden["head"][0]
        beginning = golden["short"] if alone.logits.ndim > 1 else golden["short"][0]
        assert difference(alone.logits, np.array(rows)) < 1e-4
        assert difference(padded[0].logits, np.array(rows)) < 1e-4
        assert difference(padded[1].logits, np.array(beginning)) < 1e-4
    else:
        begin, last = np.array(golden["begin"]), np.array(golden["last"])
        for hidden in (alone.hidden, padded[0].hidden):
            assert difference(hidden[:, : begin.shape[1]], begin) < 1e-4
            assert difference(hidden[-1], last) < 1e-4
        assert difference(padded[1].hidden[-1], np.array(golden["short"])) < 1e-4


@pytest.mark.parametrize("level", ["fp16", "int8", "int8w", "int4"])
@pytest.mark.parametrize("case", ["deberta-v2-convolution", "modernbert-classifier", "qwen3-classifier"])
def test_every_level_answers_alike(tmp_path, case, level):
    golden = json.loads((GOLDENS / f"{case}.json").read_text())
    (found,) = run(graph_of(case, tmp_path, level), [text(case, len(golden["ids"]))])
    bound = {"fp16": 5e-3, "int8": 0.3, "int8w": 0.1, "int4": 1.0}[level]
    assert 0 < difference(found.logits, np.array(golden["head"][0])) < bound
