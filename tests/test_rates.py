"""What was measured of a host: kept, found again, and never taken for another host's or for what it is not."""

import json
import os
from dataclasses import replace

import pytest

from edge import rates
from edge.errors import StoreError
from edge.home import rates_file
from edge.machine import host
from edge.rates import Attention, Bandwidth, Kernel, Layer, Rates, Scaling


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Rates of this machine, kept in a home of their own."""
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "home"))
    found = Rates(
        key=rates.key_of(host()),
        bandwidth=(Bandwidth(1, 10.0, 9.0, 11.0),),
        kernels=(Kernel("Q4_0", 512, 1, 1, 1e-10, 4.5, 0.1), Kernel("Q4_0", 512, 1, 256, 1e-9, 4.5, 0.1)),
        layers=(Layer(64, 1, 1, 1e-5),),
        attention=(Attention(1, 1, 1e-10, 0.0),),
        scaling=(Scaling(1, 1.0, 1.0),),
        prefill_threads=1,
        decode_threads=1,
        step_seconds=1e-4,
        noise=0.1,
        measured_at=1.0,
        seconds=15.0,
        onnx=(Kernel("int8", 768, 1, 1, 1e-10, 8.0, None),),
        state={"celsius": None},
        marks=("busy",),
    )
    rates.save(found)
    return found


def test_what_is_saved_is_loaded(measured):
    assert rates.load(host()) == measured
    assert rates.why_none(host()) == ""


def test_a_kernels_rates_are_per_second():
    kernel = Kernel("Q4_0", 512, 1, 8, 1e-10, 4.5, 0)
    assert kernel.gops == pytest.approx(160)
    assert kernel.gbs == pytest.approx(5.625)


@pytest.mark.parametrize(
    ("name", "then", "said"),
    [
        ("llama_cpp", "0.3.35", "llama-cpp-python 0.3.35"),
        ("onnxruntime", "1.0", "onnxruntime 1.0"),
        ("cpu", "Cortex-A76", "the CPU Cortex-A76"),
        ("cores", 64, "cores 64"),
        ("version", 999, "version 999"),
    ],
)
def test_a_measurement_of_something_else_is_none_and_says_so(measured, name, then, said):
    rates.save(replace(measured, key=replace(measured.key, **{name: then})))
    assert rates.load(host()) is None
    why = rates.why_none(host())
    assert said in why
    assert why.endswith("run edge host --measure")


def test_nothing_measured_says_so(measured):
    rates_file().unlink()
    assert rates.load(host()) is None
    assert rates.why_none(host()) == "this host is not measured; run edge host --measure"


def spoil(found, path, value):
    """The JSON with something else at a place."""
    *folders, last = path
    place = found
    for folder in folders:
        place = place[folder]
    place[last] = value
    return json.dumps(found)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kernels", 0, "seconds"), 0),
        (("kernels", 0, "seconds"), -1.0),
        (("kernels", 0, "seconds"), float("nan")),
        (("kernels", 0, "seconds"), float("inf")),
        (("kernels", 0, "seconds"), "1"),
        (("kernels", 0, "seconds"), True),
        (("kernels", 0, "threads"), 0),
        (("kernels", 0, "threads"), 1.5),
        (("kernels", 0, "width"), 10**400),
        (("kernels", 0, "type"), ["Q4_0"]),
        (("kernels",), {}),
        (("kernels",), []),
        (("kernels", 0), None),
        (("bandwidth", 0, "gbs"), 0),
        (("bandwidth",), None),
        (("layers",), []),
        (("attention",), []),
        (("scaling",), []),
        (("marks",), [1]),
        (("state",), 7),
        (("key",), "all"),
        (("noise",), None),
        (("measured_at",), 1e300),
        (("prefill_threads",), -1),
    ],
)
def test_a_file_that_no_measurement_wrote_is_none(measured, path, value):
    text = rates_file().read_text()
    rates_file().write_text(spoil(json.loads(text), path, value))
    assert rates.load(host()) is None
    assert "is damaged; run edge host --measure" in rates.why_none(host())


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", "[" * 100_000, "1", '"text"', "\0", "{}" + " " * (5 << 20)]
)
def test_what_is_no_such_json_is_none(measured, text):
    rates_file().write_text(text)
    assert rates.load(host()) is None
    assert "damaged" in rates.why_none(host())


def test_bytes_that_are_no_text_and_a_folder_are_none(measured):
    rates_file().write_bytes(b"\xff\xfe\x80")
    assert rates.load(host()) is None
    rates_file().unlink()
    rates_file().mkdir()
    assert rates.load(host()) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_home_that_cannot_be_written_is_said(measured):
    rates_file().parent.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be kept"):
        rates.save(measured)


def test_a_file_in_place_of_the_home_is_said_and_leaves_nothing(measured, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="cannot be kept"):
        rates.save(measured)


def test_saving_leaves_only_the_file(measured):
    rates.save(measured)
    assert [path.name for path in rates_file().parent.iterdir()] == ["rates.json"]
