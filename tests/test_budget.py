"""The longest context that fits a budget, and control groups as the benchmark of it makes them."""

from dataclasses import replace

import pytest
from tiny import tiny_llama

from edge.bench import memory_group
from edge.bench.memory import Cell, errors
from edge.errors import DoesNotFit, RequestError
from edge.machine import Chosen, host
from edge.machine.system import here
from edge.planner import plan

GIB = 1 << 30


@pytest.fixture
def model(tmp_path):
    return str(tiny_llama(tmp_path / "tiny.gguf", ctx=8192))


def machine(available=8 * GIB):
    found = host()
    return replace(
        found,
        memory=replace(found.memory, available_bytes=available),
        chosen=Chosen("llama.cpp-cpu", "for the test", ()),
    )


def test_auto_is_all_the_model_was_trained_for_where_that_fits(model):
    decided = plan(model, ctx="auto", on=machine())
    assert (decided.context, decided.fits) == (8192, True)
    assert "context 8192: all the model was trained for fits" in decided.reasons


@pytest.mark.parametrize("settings", [{}, {"parallel": 4}, {"sequences": 3}, {"mmap": False}])
@pytest.mark.parametrize("context", [256, 1000, 2048, 5000])
def test_auto_is_the_longest_that_fits(model, settings, context):
    enough = plan(model, ctx=context, on=machine(), **settings).memory.total_bytes
    decided = plan(model, ctx="auto", memory=enough, on=machine(), **settings)
    assert decided.fits
    assert decided.context >= context // 256 * 256
    assert decided.memory.total_bytes <= enough
    assert any(
        reason.startswith(f"context {decided.context}: the longest that") for reason in decided.reasons
    )
    longer = plan(model, ctx=decided.context + 256, kv="f16", on=machine(), **settings)
    assert longer.memory.total_bytes > enough


def test_the_budget_is_the_least_of_what_is_available_and_what_is_given(model):
    enough = plan(model, ctx=2048, on=machine()).memory.total_bytes
    for memory, available in ((enough, GIB), (GIB, enough)):
        decided = plan(model, ctx="auto", memory=memory, on=machine(available))
        assert (decided.context, decided.memory.available_bytes) == (2048, enough)


def test_what_is_loaded_beside_shortens_the_context(model):
    enough = plan(model, ctx=4096, on=machine()).memory.total_bytes
    alone, beside = (plan(model, ctx="auto", memory=enough, beside=n, on=machine()) for n in (0, 1 << 20))
    assert beside.context < alone.context == 4096


def test_where_no_context_fits_the_least_is_named(model):
    decided = plan(model, ctx="auto", memory="1MiB", on=machine())
    assert not decided.fits
    with pytest.raises(DoesNotFit) as refused:
        decided.require_fit()
    assert refused.value.hint.startswith("even the shortest context takes ")


def test_another_word_than_auto_is_refused(model):
    with pytest.raises(RequestError, match="'most' is not a context"):
        plan(model, ctx="most", on=machine())


def test_errors_over_all_cells():
    cells = [Cell("a", "F16", 512, 1, "f16", True, 100 + n, 100, None) for n in range(20)]
    found = errors(cells)
    assert (found.cells, found.low, found.high) == (20, 0.0, pytest.approx(0.19))
    assert (found.median, found.p95) == (pytest.approx(0.095), pytest.approx(0.18))


def test_a_process_is_measured_and_limited_in_a_group_of_its_own():
    import subprocess
    import sys

    take = [sys.executable, "-c", "b = bytearray(64 << 20)"]
    try:
        with memory_group.group() as own:
            assert subprocess.run(own.command(take)).returncode == 0
            assert own.peak() > 64 << 20
            own.limit(40 << 20)
            assert subprocess.run(own.command(take)).returncode == -9
            assert own.killed() == 1
            folder = own.folder
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    assert not folder.exists()


def test_without_control_groups_there_is_no_group(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_group, "here", lambda: replace(here(), root=tmp_path))
    with pytest.raises(OSError, match="no control group"), memory_group.group():
        pass


def test_auto_takes_fewer_bits_where_f16_fits_no_context(tmp_path):
    """Between what the shortest context takes in f16 and in fewer bits."""
    wide = str(tiny_llama(tmp_path / "wide.gguf", embd=128, layers=4, kv_heads=4, ctx=8192))
    half, fewer = (
        plan(wide, ctx=256, parallel=16, kv=kv, on=machine()).memory.total_bytes for kv in ("f16", "q4_0")
    )
    decided = plan(wide, ctx="auto", parallel=16, memory=(half + fewer) // 2, on=machine())
    assert decided.fits
    assert decided.kv != "f16"
    assert f"context {decided.context}: the longest that fits" in " ".join(decided.reasons)
