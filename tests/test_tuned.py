"""What was tuned for a file: kept by content and host, never trusted when damaged, and followed by plan and engine."""

import json
from dataclasses import replace

import pytest
from tiny import tiny_llama

from edge import rates, tuned
from edge.engine import Engine
from edge.engine.binding import llama
from edge.errors import StoreError
from edge.evidence import digest_of
from edge.home import tuned_file
from edge.machine import Chosen, host
from edge.planner import Threads, choose_threads, plan
from edge.tuned import Finding, Option, Tuned


@pytest.fixture
def model(tmp_path):
    return tiny_llama(tmp_path / "tiny.gguf", ctx=512)


def machine(cores=4):
    here = host()
    cpu = replace(here.cpu, cores=cores, physical=cores, performance_cores=cores)
    return replace(here, cpu=cpu, chosen=Chosen("llama.cpp-cpu", "for the test", ()))


def found(path, on, **changes):
    one, two = (Option(f"{count} threads", tps, tps, tps, tps, 3) for count, tps in ((1, 30.0), (2, 40.0)))
    usual = Tuned(
        key=rates.key_of(on),
        digest=digest_of(path),
        name="tiny",
        prefill_threads=2,
        decode_threads=1,
        batch=128,
        lookup=False,
        context=512,
        measured_at=1.8e9,
        findings=(Finding("prefill threads", "2 threads", "the fastest", (one, two)),),
    )
    return replace(usual, **changes)


def test_what_is_kept_is_found_again_with_its_figures(model):
    kept = found(model, machine())
    assert tuned.load(machine(), model) is None
    tuned.save(kept)
    assert tuned.load(machine(), model) == kept
    assert kept.findings[0].picked.median == 40.0
    assert kept.findings[0].runner_up.name == "1 threads"


def test_a_second_run_takes_the_firsts_place_and_other_files_keep_theirs(model, tmp_path):
    other = tiny_llama(tmp_path / "other.gguf", ctx=256)
    tuned.save(found(model, machine()))
    tuned.save(found(other, machine(), decode_threads=3))
    tuned.save(found(model, machine(), decode_threads=4))
    assert tuned.load(machine(), model).decode_threads == 4
    assert tuned.load(machine(), other).decode_threads == 3
    assert len(json.loads(tuned_file().read_text())["files"]) == 2


@pytest.mark.parametrize("change", [{"llama_cpp": "0.0.1"}, {"cpu": "another"}, {"cores": 1}])
def test_another_library_or_cpu_counts_as_not_tuned(model, change):
    tuned.save(found(model, machine(), key=replace(rates.key_of(machine()), **change)))
    assert tuned.load(machine(), model) is None
    assert "one a core" in plan(str(model), on=machine()).reasons[0]


def test_another_content_under_the_same_name_counts_as_not_tuned(model):
    tuned.save(found(model, machine()))
    tiny_llama(model, ctx=256)
    assert tuned.load(machine(), model) is None


def test_a_folder_and_a_file_that_is_gone_have_nothing(model, tmp_path):
    tuned.save(found(model, machine()))
    assert tuned.load(machine(), tmp_path) is None
    model.unlink()
    assert tuned.load(machine(), model) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 100),
        ("batch", 1024),
        ("batch", 0),
        ("prefill_threads", 0),
        ("decode_threads", True),
        ("decode_threads", 10**6),
        ("lookup", True),
        ("measured_at", float("nan")),
        ("measured_at", 1e12),
        ("findings", [{"setting": "x", "pick": "not tried", "reason": "", "tried": []}]),
        ("key", None),
    ],
)
def test_what_no_run_writes_counts_as_not_tuned(model, name, value):
    tuned.save(found(model, machine()))
    kept = json.loads(tuned_file().read_text())
    kept["files"][0][name] = value
    tuned_file().write_text(json.dumps(kept))
    assert tuned.load(machine(), model) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', "[" * 100_000, "\x00\xff"])
def test_a_damaged_file_counts_as_not_tuned_and_is_written_anew(model, text):
    tuned_file().parent.mkdir(parents=True)
    tuned_file().write_bytes(text.encode("latin-1"))
    assert tuned.load(machine(), model) is None
    tuned.save(found(model, machine()))
    assert tuned.load(machine(), model) is not None


def test_a_folder_that_cannot_be_written_is_said_in_a_line(model, home):
    home.write_text("no folder")
    with pytest.raises(StoreError, match="cannot be kept"):
        tuned.save(found(model, machine()))


def test_the_plan_follows_it_and_says_so(model):
    tuned.save(found(model, machine()))
    decided = plan(str(model), on=machine())
    assert decided.threads == Threads(prefill=2, decode=1)
    assert (decided.batch, decided.lookup) == (128, False)
    assert decided.reasons[:3] == (
        "threads 2 for prefill and 1 for decode: fastest with this file by edge bench tune on 2027-01-15",
        "batch 128: fastest with this file by edge bench tune on 2027-01-15",
        "no guessing ahead: it cost time with this file by edge bench tune on 2027-01-15",
    )
    assert plan(str(model), threads=3, on=machine()).threads == Threads(3, 3)


def test_batch_and_guesses_were_found_with_one_conversation_and_hold_for_one(model):
    tuned.save(found(model, machine()))
    for asked in ({"parallel": 2}, {"scoring": True}):
        decided = plan(str(model), on=machine(), **asked)
        assert (decided.batch, decided.lookup) == (512, None)
        assert decided.threads.prefill == 2


def test_a_smaller_batch_is_planned_with_less_memory(model):
    before = plan(str(model), on=machine()).memory.compute_bytes
    tuned.save(found(model, machine(), batch=64))
    assert plan(str(model), on=machine()).memory.compute_bytes < before


def measured(marks=()):
    on = machine()
    one = rates.Scaling(1, 1.0, 1.0)
    return rates.Rates(rates.key_of(on), (), (), (), (), (one,), 3, 2, 0.0, 0.0, 1.8e9, 1.0, marks=marks)


def test_threads_are_as_asked_else_of_the_file_else_of_the_host_else_one_a_core(model):
    kept = found(model, machine())
    assert choose_threads(machine(), 4, kept, measured())[0] == Threads(4, 4)
    assert choose_threads(machine(), None, kept, measured())[0] == Threads(2, 1)
    use, why = choose_threads(machine(), None, None, measured())
    assert use == Threads(3, 2)
    assert (
        why
        == "threads 3 for prefill and 2 for decode: fastest on this host by edge host --measure on 2027-01-15"
    )
    assert choose_threads(machine(), None)[0] == Threads(4, 4)


def test_a_measurement_with_marks_against_it_is_no_evidence_for_threads():
    assert choose_threads(machine(), None, None, measured(("busy",)))[0] == Threads(4, 4)


def test_a_host_of_one_core_has_one_thread(model):
    assert plan(str(model), on=machine(cores=1)).threads == Threads(1, 1)


def test_the_engine_computes_with_both_counts_of_threads_and_the_batch(model):
    tuned.save(found(model, machine()))
    with Engine(plan(str(model), on=machine())) as engine:
        context, lib = engine._backend._context, llama()
        assert lib.llama_n_threads(context) == 1
        assert lib.llama_n_threads_batch(context) == 2
        assert lib.llama_n_ubatch(context) == 128
        assert lib.llama_n_batch(context) == 512
