"""`edge host --measure`, and what `edge host` says of what was measured before."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest

import edge.measure
from edge import rates
from edge.cli import run
from edge.cli.host_rates import in_brief, in_full, line, when
from edge.home import rates_file
from edge.machine import host
from edge.rates import Attention, Bandwidth, Kernel, Layer, Rates, Scaling

PREFILL = {"Q4_0": 20e-9, "Q8_0": 10e-9, "IQ4_NL": 30e-9}  # seconds a weight of 256 rows by 2 threads
DECODE = {"Q4_0": 1e-10, "Q8_0": 2e-10, "IQ4_NL": 4e-10}  # of one row by 1 thread
BITS = {"Q4_0": 4.5, "Q8_0": 8.5, "IQ4_NL": 4.5}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def kernels():
    for kind, bits in BITS.items():
        yield Kernel(kind, 512, 2, 256, PREFILL[kind], bits, 0.1)
        yield Kernel(kind, 512, 1, 256, 9e-9, bits, 0.1)
        yield Kernel(kind, 512, 1, 1, DECODE[kind], bits, 0.2)
        yield Kernel(kind, 512, 2, 1, 9e-10, bits, 0.2)


@pytest.fixture
def taken():
    """Rates of this machine: two threads are best for prefill, one for decode."""
    return Rates(
        key=rates.key_of(host()),
        bandwidth=(Bandwidth(1, 10.0, 9.0, 11.0), Bandwidth(2, 18.0, 17.0, 19.0)),
        kernels=tuple(kernels()),
        layers=(Layer(64, 1, 1, 1e-5),),
        attention=(Attention(1, 1, 1e-10, 0.0),),
        scaling=(Scaling(1, 0.6, 1.0), Scaling(2, 1.0, 0.9)),
        prefill_threads=2,
        decode_threads=1,
        step_seconds=1e-4,
        noise=0.1,
        measured_at=1.7e9,
        seconds=15.2,
        onnx=(Kernel("fp32", 768, 2, 128, 2e-8, 32.0, 0.1), Kernel("fp32", 768, 2, 1, 3e-10, 32.0, 0.1)),
    )


@pytest.fixture
def measuring(monkeypatch, taken):
    """The measurement gives `taken`, and reports its parts."""

    def measure(report):
        report("memory bandwidth")
        report("matrices")
        return taken

    monkeypatch.setattr(edge.measure, "measure", measure)


def test_a_host_that_is_not_measured_says_what_to_run(capsys):
    assert run(["host"]) == 0
    assert "measured  no: this host is not measured; run edge host --measure\n" in capsys.readouterr().out


def test_what_is_measured_is_kept_and_shown_with_its_progress_on_stderr(capsys, measuring, taken):
    assert run(["host", "--measure"]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["memory bandwidth", "matrices"]
    assert shown.out == in_full(taken, "decode") + "\n"
    assert rates.load(host()) == taken


def test_a_kept_measurement_is_shown_in_brief(capsys, taken):
    rates.save(taken)
    assert run(["host"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:] == [
        "bandwidth  10.0 GB/s by 1 thread, 18.0 GB/s by 2 threads",
        "threads    2 for prefill, 1 for decode",
        "prefill    Q8_0 25.6, Q4_0 12.8, IQ4_NL 8.5 (tokens a second of 10^9 weights, by the matrices alone)",
        "decode     Q4_0 10.0, Q8_0 5.0, IQ4_NL 2.5 (tokens a second of 10^9 weights, by the matrices alone)",
    ]
    assert lines[-5].startswith("measured   2023-11-1")


def test_types_are_sorted_by_the_rate_that_is_asked_for(taken):
    def order(by):
        lines = in_full(taken, by).splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith("TYPE"))
        return [line.split()[0] for line in lines[start + 1 : start + 4]]

    assert order("decode") == ["Q4_0", "Q8_0", "IQ4_NL"]
    assert order("prefill") == ["Q8_0", "Q4_0", "IQ4_NL"]


def test_the_screen_in_full(taken):
    text = in_full(taken, "decode")
    assert "Q4_0    4.5   12.8     10.0    25.6        5.6   20 %\n" in text
    assert "1        10.0 GB/s (9.0 to 11.0)   60 %     100 %\n" in text
    assert "fp32  32    6.4      3.3     12.8        13.3  10 %\n" in text
    assert "in 15 s, spread 10 %" in text
    assert "disturbed" not in text


def test_marks_are_said_in_both(taken):
    marked = replace(taken, marks=("busy: other processes used 40 % of the CPUs", "throttled: under-voltage"))
    assert [row for row in in_brief(marked) if row[0] in ("disturbed", "")] == [
        ("disturbed", "busy: other processes used 40 % of the CPUs"),
        ("", "throttled: under-voltage"),
    ]
    assert "disturbed  busy: other processes used 40 % of the CPUs\n           throttled: under-v" in in_full(
        marked, "decode"
    )


def test_one_core_and_no_onnx_runtime_are_shown(taken):
    one = replace(
        taken,
        key=replace(taken.key, cores=1, onnxruntime=""),
        bandwidth=taken.bandwidth[:1],
        scaling=taken.scaling[:1],
        prefill_threads=1,
        onnx=(),
    )
    text = in_full(one, "prefill")
    assert ", 1 core\n" in text
    assert "onnxruntime none" in text
    assert "ONNX" not in text


def test_another_library_s_measurement_counts_as_none_and_says_so(capsys, taken):
    rates.save(replace(taken, key=replace(taken.key, llama_cpp="0.2.0")))
    assert run(["host"]) == 0
    assert "no: measured with llama-cpp-python 0.2.0, and here is" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "garbage", "[]", '{"key": 1}', "\0" * 100])
def test_a_damaged_measurement_is_none_and_says_so(capsys, text, taken):
    rates.save(taken)
    rates_file().write_text(text)
    assert run(["host"]) == 0
    assert "is damaged; run edge host --measure" in capsys.readouterr().out


def test_a_home_that_cannot_be_written_is_refused_before_measuring(capsys, home, measuring):
    home.write_text("a file where the folder would be")
    assert run(["host", "--measure"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()  # no progress before it
    assert "what was measured cannot be kept" in line


def test_a_disk_that_fills_meanwhile_loses_the_file_and_not_the_figures(capsys, home, taken, monkeypatch):
    def measure(report):
        home.rmdir()
        home.write_text("a file where the folder would be")
        return taken

    monkeypatch.setattr(edge.measure, "measure", measure)
    assert run(["host", "--measure"]) == 1
    shown = capsys.readouterr()
    assert shown.out == in_full(taken, "decode") + "\n"
    assert "what was measured cannot be kept" in shown.err.splitlines()[-1]
    home.unlink()
    home.mkdir()
    assert run(["host", "--measure", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["kept"] is False


def test_json_has_the_host_and_all_that_was_measured(capsys, measuring, taken):
    assert run(["host", "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert before["rates"] is None
    assert before["why_no_rates"].endswith("run edge host --measure")
    assert run(["host", "--measure", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert run(["host", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert measured["rates"] == kept["rates"]
    assert kept["why_no_rates"] == ""
    assert kept["rates"]["prefill_threads"] == 2
    assert len(kept["rates"]["kernels"]) == len(taken.kernels)


def test_an_order_that_is_none_is_refused(capsys):
    assert run(["host", "--measure", "--sort", "size"]) == 2
    assert "--sort" in capsys.readouterr().err


def test_a_disturbed_measurement_does_not_take_the_place_of_a_good_one(capsys, measuring, taken, monkeypatch):
    busy = replace(taken, marks=("busy: other processes used 40 % of the CPUs",), measured_at=1.8e9)
    monkeypatch.setattr(edge.measure, "measure", lambda report: busy)
    rates.save(taken)
    assert run(["host", "--measure"]) == 0
    shown = capsys.readouterr()
    assert shown.out == in_full(busy, "decode") + "\n"
    assert "not kept, as the machine was disturbed: busy: other processes used 40 %" in shown.err
    assert f"what was measured on {when(taken)}" in shown.err
    assert rates.load(host()) == taken
    assert run(["host", "--measure", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] is False


@pytest.mark.parametrize("before", [None, {"marks": ("throttled",)}, {"key": "other"}])
def test_a_disturbed_measurement_is_kept_where_there_is_no_better(capsys, taken, monkeypatch, before):
    busy = replace(taken, marks=("busy",), measured_at=1.8e9)
    monkeypatch.setattr(edge.measure, "measure", lambda report: busy)
    if before:
        other = replace(taken.key, llama_cpp="0.2.0")
        rates.save(replace(taken, **({"key": other} if "key" in before else before)))
    assert run(["host", "--measure"]) == 0
    assert "not kept" not in capsys.readouterr().err
    assert rates.load(host()) == busy


def test_a_measurement_that_is_ended_leaves_by_an_exception(taken, monkeypatch):
    """So that its process is killed and its folder removed."""
    before = signal.getsignal(signal.SIGTERM)

    def measure(report):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return taken

    monkeypatch.setattr(edge.measure, "measure", measure)
    with pytest.raises(SystemExit):
        run(["host", "--measure"])
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_was_timed_once_shows_no_spread():
    assert line("Q4_0", Kernel("Q4_0", 512, 1, 256, 1e-9, 4.5, None), None)[-1] == "-"
