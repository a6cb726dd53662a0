"""Tuning: what is tried in turns, what is picked of it, and what is kept."""

import json
from dataclasses import replace

import pytest
from tiny import tiny_llama

from edge import gguf_header, tuned
from edge.bench import record
from edge.bench import tune as bench
from edge.bench.tune import compete, finding, option, planned, share, sizes, surely_off, tolerance, tune
from edge.cli import run
from edge.errors import DoesNotFit, RequestError
from edge.machine import host
from edge.measure.run import Run
from edge.memory import BATCH, kv_bytes
from edge.planner import plan

ROUND = 4  # turns that the recorded rates stand for


def recorded(rates, spread=0.0):
    """Options as a machine gave them: name → tokens a second, its repetitions so far apart."""
    return [
        option(name, [rate * (1 + spread * (turn / (ROUND - 1) - 0.5)) for turn in range(ROUND)])
        for name, rate in rates.items()
    ]


@pytest.mark.parametrize(
    ("rates", "spread", "pick"),
    [
        # Raspberry Pi 5, tg128 of a 0.5B model: two threads saturate its memory
        ({"1": 22.0, "2": 33.8, "3": 29.4, "4": 27.0}, 0.0, "2"),
        # six fast and eight slow cores: the slow ones hold the fast ones up
        ({"1": 5.1, "4": 14.0, "6": 17.2, "8": 15.9, "14": 12.3}, 0.02, "6"),
        ({"1": 10.0}, 0.5, "1"),
        # within 1 % the fewer threads
        ({"2": 99.2, "4": 100.0}, 0.0, "2"),
        ({"2": 98.0, "4": 100.0}, 0.0, "4"),
        # as far as the best itself swings, but not beyond 3 %
        ({"2": 98.0, "4": 100.0}, 0.1, "2"),
        ({"2": 96.0, "4": 100.0}, 0.9, "4"),
        ({"1": 50.0, "2": 50.0, "3": 50.0}, 0.3, "1"),
    ],
)
def test_the_most_modest_that_comes_near_the_best(rates, spread, pick):
    found = finding("threads", recorded(rates, spread))
    assert found.pick == pick


def test_a_wide_spread_allows_three_percent_and_no_more():
    (wide,) = recorded({"1": 100.0}, 2.0)
    (narrow,) = recorded({"1": 100.0}, 0.0)
    assert (tolerance(wide), tolerance(narrow)) == (0.03, 0.01)


def test_what_is_surely_behind_has_three_turns_and_an_exhaustive_run_leaves_nothing_out():
    def calls():
        return {"slow": lambda: 1.0, "a": lambda: 9.0, "b": lambda: 9.0}

    turns = {one.name: one.turns for one in compete(calls())}
    assert turns == {"slow": 3, "a": 7, "b": 7}
    assert {one.turns for one in compete(calls(), exhaustive=True)} == {7}
    # alone at the head after three rounds: no more are needed
    assert {one.turns for one in compete({"a": lambda: 1.0, "b": lambda: 2.0})} == {3}


def test_a_pick_is_worth_what_it_reaches_where_everything_is_measured_again():
    assert share("2", recorded({"1": 90.0, "2": 95.0, "3": 100.0})) == pytest.approx(0.95)


def test_guessing_is_switched_off_only_where_it_lost_every_turn():
    apart, near = (finding("ahead", recorded({"on": on, "off": 100.0}, 0.1)) for on in (80.0, 94.0))
    assert (near.pick, surely_off(near), surely_off(apart)) == ("off", False, True)


@pytest.mark.parametrize(
    ("prompt", "found"), [(512, [512, 256, 128, 64]), (100, [128, 64]), (64, [64]), (20, [64])]
)
def test_batches_are_those_that_differ_for_a_prompt(prompt, found):
    assert sizes(prompt) == found


def test_what_was_found_is_what_the_next_plan_goes_by(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    model = str(tiny_llama(tmp_path / "tiny.gguf", ctx=256))
    found = tune(model, ctx=200).tuned
    settings = [one.setting for one in found.findings]
    assert settings == ["prefill threads", "decode threads", "batch", "keys and values", "guessing ahead"]
    assert all(one.median > 0 and one.turns >= 3 for each in found.findings for one in each.tried)
    assert found.findings[3].pick == "f16"
    tuned.save(found)
    decided = plan(model, ctx=200)
    assert (decided.threads.prefill, decided.threads.decode) == (found.prefill_threads, found.decode_threads)
    assert decided.batch == found.batch
    assert any("edge bench tune" in reason for reason in decided.reasons)


def test_a_busy_machines_figures_are_shown_and_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    model = str(tiny_llama(tmp_path / "tiny.gguf", ctx=256))
    for marks, code in ((("busy: other processes used 40 % of the CPUs",), 1), ((), 0)):
        monkeypatch.setattr(record, "marks", lambda *_, found=marks: found)
        assert run(["bench", "tune", model]) == code
        shown = capsys.readouterr()
        assert json.loads(shown.out.splitlines()[-1])["benchmark"] == "tune"
        assert shown.err.count("nothing is kept") == len(marks)
        kept = tuned.load(host(), tmp_path / "tiny.gguf")
        assert (kept is None) == bool(marks)


@pytest.mark.parametrize(("ctx", "said"), [(64, "too short to tune"), (1 << 20, "out of range")])
def test_a_context_that_is_no_use(tmp_path, ctx, said):
    model = str(tiny_llama(tmp_path / "tiny.gguf", ctx=256))
    with pytest.raises(RequestError, match=said):
        planned(model, ctx)


def test_only_what_takes_turns_is_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    opened, most = set(), []

    class Counted(Run):
        def __init__(self, *words, **settings):
            super().__init__(*words, **settings)
            opened.add(self)
            most.append(len(opened))

        def close(self):
            super().close()
            opened.remove(self)

    monkeypatch.setattr(bench, "Run", Counted)
    # heads of 32, whose keys and values can be kept in all types
    tune(str(tiny_llama(tmp_path / "tiny.gguf", ctx=256, embd=128)), ctx=200)
    # threads; batches of 256, 128 and 64; keys and values in f16, q8_0 and q4_0
    assert most == [1, 1, 2, 3, 1, 2, 3]
    assert not opened


@pytest.fixture
def available(monkeypatch):
    """Sets how much memory plans find."""

    def so_much(count):
        found = host()
        memory = replace(found.memory, available_bytes=count)
        monkeypatch.setattr("edge.planner.host", lambda: replace(found, memory=memory))

    return so_much


@pytest.mark.parametrize("before", [None, 64])  # the batch that an earlier tuning found
def test_contexts_that_are_open_together_have_to_fit_together(tmp_path, monkeypatch, available, before):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    model = str(tiny_llama(tmp_path / "tiny.gguf", ctx=8192, embd=128))
    if before:
        tuned.save(replace(tune(model, ctx=200).tuned, batch=before))
    one = plan(model, ctx=4096).memory
    assert plan(model, ctx=4096).batch == (before or BATCH)
    available(one.total_bytes + one.kv_bytes)
    plan(model, ctx=4096).require_fit()
    with pytest.raises(DoesNotFit, match="several are open to take turns") as refused:
        planned(model, 4096)
    fitting = int(refused.value.hint.rpartition(" ")[2])
    assert planned(model, fitting).context == fitting
    with pytest.raises(DoesNotFit):
        planned(model, fitting + 256)
    available(4 * one.total_bytes)  # as if each of four were a process of its own
    assert planned(model, 4096).fits


def test_a_layer_with_a_window_is_counted_with_all_its_cells(tmp_path):
    header = gguf_header.read(tiny_llama(tmp_path / "tiny.gguf", ctx=8192))
    window = {"llama.attention.sliding_window": 256, "llama.attention.sliding_window_pattern": 2}
    windowed = replace(header, metadata={**header.metadata, **window})
    assert kv_bytes(windowed, 8192) < kv_bytes(header, 8192)
    caches = [bench.usual(header, 8192)]
    assert bench.together(windowed, 8192, caches) >= bench.together(header, 8192, caches)
