"""A host is measured through llama.cpp itself, in a process of its own, and nothing is left of it."""

import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from edge import gguf_header, rates
from edge.errors import EngineError, StoreError
from edge.machine import host
from edge.measure import blocks, measure, process
from edge.measure.bandwidth import bandwidth
from edge.measure.kernels import MODEL, ROWS, Session
from edge.measure.made import Shape, write
from edge.measure.run import running
from edge.measure.samples import interleaved, pace, spread
from edge.measure.whole import counts_of, fastest


@pytest.mark.parametrize("kind", blocks.kinds())
def test_blocks_of_every_type_are_finite_numbers(kind):
    from edge.convert.ggml_types import dequantize

    made = np.frombuffer(blocks.weights(kind, blocks.TILE), np.uint8)
    assert len(made) == blocks.size_of(kind, 1, blocks.TILE)
    out = np.full(blocks.TILE, np.nan, np.float32)
    if kind == "F32":
        out = made.view(np.float32)
    else:
        dequantize(made.copy(), kind, out)
    assert np.isfinite(out).all()
    assert 1e-4 < np.abs(out).max() < 100


def test_a_made_model_is_a_sound_file_that_llama_cpp_runs(tmp_path):
    kinds = ["F32", "Q4_0", "IQ1_M", "F32"]
    path = write(tmp_path / "made.gguf", kinds, Shape(256, 256, 4, 1), 64)
    header = gguf_header.read(path)
    assert [tensor.type for tensor in header.tensors if "ffn_up" in tensor.name] == kinds
    with running(path, 64, 8) as run:
        run.threads(1)
        assert run.step(8, 0) > 0
        assert run.step(1, 8) > 0
        with pytest.raises(EngineError, match="failed to decode"):
            run.step(1, 3)  # a position that is taken


def test_rates_of_two_types_on_one_thread(tmp_path):
    session = Session(tmp_path, ["Q4_0", "Q5_1"], [1])
    try:
        found = interleaved(session.calls, seconds=0.5, least=2, most=3, warm=False)
    finally:
        session.close()
    kernels, layers, attention, start = session.derived(found)
    assert {(one.type, one.threads, one.rows) for one in kernels} == {
        (kind, 1, rows) for kind in ("Q4_0", "Q5_1") for rows in ROWS
    }
    assert all(one.seconds > 0 for one in kernels)
    assert {one.width for one in layers} == {64, MODEL.width}
    assert {one.rows for one in attention} == {1, max(ROWS)}
    assert start >= 0


def test_memory_is_read_by_each_count_of_threads_with_little_to_spare():
    for one, count in zip(bandwidth((1, 3), 64 << 20, seconds=0.02), (1, 3), strict=True):
        assert one.threads == count
        assert 0 < one.low <= one.gbs <= one.high


def test_calls_take_turns_and_a_slow_one_has_fewer():
    clock = []
    found = interleaved({"a": lambda: clock.append("a"), "b": lambda: clock.append("b")}, seconds=60, most=3)
    assert clock == ["a", "b"] * 4
    assert {key: len(times) for key, times in found.items()} == {"a": 3, "b": 3}


def test_when_the_time_is_over_each_call_was_made_once():
    assert interleaved({"a": lambda: 1.0}, seconds=0, warm=False) == {"a": [1.0]}


def test_a_disturbed_repetition_moves_neither_pace_nor_spread():
    assert pace([1.0, 1.0, 1.0, 1.0, 50.0]) == 1.0
    assert spread([1.0, 1.0, 1.0, 1.0, 50.0]) == 0.0
    assert spread([1.0]) is None
    assert pace([2.0]) == 2.0
    assert spread([1.0, 1.0, 2.0, 3.0, 3.0]) == 1.0


@pytest.mark.parametrize(
    ("cores", "counts"),
    [(1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (6, (1, 2, 3, 4, 6)), (7, (1, 2, 3, 4, 6, 7))],
)
def test_the_threads_that_are_tried(cores, counts):
    assert counts_of(cores) == counts


def test_fewer_threads_are_taken_where_more_are_hardly_faster():
    assert fastest({1: 0.5, 2: 0.99, 4: 1.0, 8: 0.7}) == 2
    assert fastest({1: 1.0}) == 1


def test_an_error_of_the_measuring_process_is_passed_on():
    says = 'print(\'{"error": "no kernels", "hint": "update"}\')'
    with pytest.raises(EngineError, match="no kernels"):
        process.listen([sys.executable, "-c", says], print)


@pytest.mark.parametrize(
    "code", ["import os; os.abort()", "raise SystemExit(3)", "print('{')", "print('[]')"]
)
def test_a_crash_of_the_measuring_process_is_an_error_here(code):
    with pytest.raises(EngineError, match="the measurement ended"):
        process.listen([sys.executable, "-c", code], print)


def test_a_measuring_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(process, "SECONDS", 0.2)
    with pytest.raises(EngineError, match=r"took over 0\.2 s"):
        process.listen([sys.executable, "-c", "import time; time.sleep(30)"], print)


def test_a_measuring_process_that_is_killed_is_no_bug_of_llama_cpp():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(EngineError, match="was killed") as caught:
        process.listen([sys.executable, "-c", code], print)
    assert "memory" in caught.value.hint


def test_no_place_for_its_files_is_said(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(StoreError, match="cannot be measured"):
        measure()


@pytest.mark.slow
def test_the_whole_of_one_type_is_kept_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "numpy.py").write_text("raise SystemExit('whatever lies where it is called')")
    said = []
    found = measure(said.append, kinds=("Q4_0",), seconds=0.2)
    assert said
    assert list(Path(tmp_path / "tmp").iterdir()) == []
    assert {kernel.type for kernel in found.kernels} == {"Q4_0"}
    assert {kernel.threads for kernel in found.kernels} <= set(range(1, (os.cpu_count() or 1) + 1))
    rates.save(found)
    loaded = rates.load(host())
    assert loaded is not None
    assert asdict(loaded)["kernels"] == asdict(found)["kernels"]
