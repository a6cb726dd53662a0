"""The benchmarks measure real processes; here they are held to shapes and arithmetic, not to speeds."""

import json
import sys

import pytest
from tiny import tiny_llama

from edge.bench.llama_bench import program
from edge.bench.speed import Speed, Spread, ratios, speed, spread_of, summary
from edge.bench.startup import timed
from edge.cli import run
from edge.errors import EngineError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", ctx=2048))


def test_speed_beside_llama_cpp_python(model, capsys, one_core):
    assert run(["bench", "speed", model, "--vs", "llama-cpp-python", "--repetitions", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    ours, peer = report["rows"]
    assert (ours["name"], peer["name"]) == ("edge", "llama-cpp-python")
    for figures in (ours, peer):
        assert figures["prefill_tps"]["median"] > 0
        assert figures["decode_tps"]["median"] > 0
        assert 1 << 20 < figures["peak_rss_bytes"] < 1 << 30
    turn = peer["decode_ratio"]
    assert turn["median"] == pytest.approx(ours["decode_tps"]["median"] / peer["decode_tps"]["median"])


def test_ratios_above_one_always_mean_that_ours_is_better():
    fast = {"prefill_tps": 200, "decode_tps": 50, "ttft_s": 0.5, "peak_rss_bytes": 100}
    slow = {"prefill_tps": 100, "decode_tps": 25, "ttft_s": 1.0, "peak_rss_bytes": 300}
    medians = {name: spread.median for name, spread in ratios([fast], [slow]).items()}
    assert medians == {"prefill": 2, "decode": 2, "ttft": 2, "peak_rss": 3}
    silent = {"prefill_tps": 100, "decode_tps": 25}
    assert set(ratios([fast], [silent])) == {"prefill", "decode"}


def test_ratios_are_taken_turn_by_turn():
    calm, stormy = {"prefill_tps": 100, "decode_tps": 40}, {"prefill_tps": 10, "decode_tps": 4}
    found = ratios([calm, stormy, calm], [calm, stormy, stormy])
    assert found["decode"] == Spread(1, 1, 10)


def test_a_spread_is_median_least_and_greatest():
    assert spread_of([3, 1, 10]) == Spread(3, 1, 10)
    turns = [{"prefill_tps": 1.0, "decode_tps": 2.0}, {"prefill_tps": 3.0, "decode_tps": 4.0}]
    assert summary("llama-bench", turns) == Speed("llama-bench", Spread(2, 1, 3), Spread(3, 2, 4), None, None)


def test_a_timed_command_has_its_own_peak_and_its_failure_is_an_error():
    small, _ = timed([sys.executable, "-c", "pass"]), bytearray(200 << 20)
    _, large = timed([sys.executable, "-c", "x = b'1' * (300 << 20)"])
    assert small[1] < 100 << 20 < 300 << 20 < large
    with pytest.raises(EngineError, match=r"exited with 1: .*ZeroDivisionError"):
        timed([sys.executable, "-c", "1/0"])


def test_a_peer_that_is_not_built_says_how_to_build_it(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="llama-bench is not here") as missing:
        speed(model, ("llama-bench",), repetitions=1)
    assert "bench/peers/llama.cpp.sh" in missing.value.hint
    (tmp_path / "llama-bench").touch(mode=0o755)
    assert program("llama-bench") == tmp_path / "llama-bench"
