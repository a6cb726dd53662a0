"""The benchmarks of the engine: real processes and servers on a tiny model, held to shapes and arithmetic."""

import json
import random
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from tiny import tiny_llama

from edge.bench import serve as bench
from edge.bench import step, stress
from edge.bench.serve_load import Load, prompts, tokens_of
from edge.bench.serve_runtimes import Server, free_port, llama_cpp_server, llama_server
from edge.bench.speed import Spread
from edge.engine import Sampling
from edge.engine.binding import llama
from edge.errors import EngineError
from edge.planner import plan


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", ctx=512))


@pytest.fixture
def server():
    """A server whose answers are whatever stands in `said` at the time."""
    said = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def do_POST(self):
            json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200 if said else 503)
            self.end_headers()
            for event in said:
                self.wfile.write(f"data: {event}\n\n".encode())

        def log_message(self, *_):
            pass

    listening = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=listening.serve_forever)
    thread.start()
    asleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    runtime = Server("it", asleep, listening.server_port, "/", "/x", {})
    yield runtime, said
    runtime.close()
    listening.shutdown()
    thread.join()
    listening.server_close()


def test_every_number_of_sequences_is_measured(model, capsys, monkeypatch, one_core):
    words = ["serve", model, "--sequences", "1,3", "--tokens", "5", "--threads", "1", "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(bench, "PEERS", {})
    bench.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "tiny, 1 threads, 1 turns"
    assert [line[:10] for line in printed[4:6]] == ["| 1 | edge", "| 3 | edge"]
    assert printed[-1].startswith("Ours over the row of ours before: at 3 ")


def test_ratios_are_ours_over_the_peers_turn_by_turn():
    fast, slow = Load(2, 20, (0.1, 0.2, 0.3), 0.5), Load(4, 20, (0.4, 0.8, 0.4), 0.5)
    found = bench.figures((3, "peer"), [(slow, fast), (fast, fast), (slow, slow)])
    assert found.tps == Spread(5, 5, 10)
    assert found.faster == Spread(1, 1, 2)
    assert found.sooner == Spread(1, 1, 2)
    assert found.ttft_s == Spread(0.4, 0.2, 0.4)
    assert found.client == 0.125


def test_prompts_are_the_same_for_all_runtimes_and_share_no_beginning():
    assert prompts(8, 3) == prompts(8, 3)
    beginnings = {text[:3] for text in prompts(8, 3) + prompts(2, 4)}
    assert len(beginnings) == 10


def test_tokens_are_counted_by_what_the_last_event_says():
    body = {"max_tokens": 9}
    assert tokens_of({"tokens_predicted": 7}, 5, body) == 7
    assert tokens_of({"choices": [{"finish_reason": "length"}]}, 5, body) == 9
    assert tokens_of({"choices": [{"finish_reason": "stop"}]}, 5, body) == 4
    with pytest.raises(EngineError, match="no slot"):
        tokens_of({"error": "no slot"}, 1, body)


def test_a_server_is_read_to_its_last_event(server):
    runtime, said = server
    said += ['{"content": "a"}', '{"content": "b"}', '{"stop": true, "tokens_predicted": 2}', "[DONE]"]
    load = runtime.turn(["once", "twice"], 2)
    assert load.tokens == 4
    assert all(0 < ttft <= load.seconds for ttft in load.ttft_s)


def test_a_server_that_refuses_is_an_error(server):
    runtime, _ = server
    with pytest.raises(EngineError, match="503"):
        runtime.turn(["once"], 2)


def test_a_server_that_ends_its_answers_at_once_is_an_error(server):
    runtime, said = server
    said += ['{"choices": [{"text": "", "finish_reason": "stop"}]}', "[DONE]"]
    with pytest.raises(EngineError, match="before their first token"):
        runtime.turn(["once", "twice"], 2)


def test_a_server_that_does_not_start_says_its_last_words():
    command = [sys.executable, "-c", "print('first'); raise SystemExit('no such file')"]
    with pytest.raises(EngineError, match="it does not start: no such file"):
        Server("it", command, free_port(), "/", "/", {})


def test_peers_that_are_not_here_say_how_to_get_them(model, monkeypatch, tmp_path):
    monkeypatch.delenv("EDGE_LLAMA_CPP_SERVER", raising=False)
    monkeypatch.setenv("EDGE_PEERS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError) as missing:
        llama_cpp_server(plan(model))
    assert "bench/peers/llama_cpp_server.sh" in missing.value.hint
    with pytest.raises(EngineError) as missing:
        llama_server(plan(model))
    assert "bench/peers/llama.cpp.sh" in missing.value.hint


@pytest.mark.parametrize("text", ["", "0", "1,x", "2,2"])
def test_sequences_are_numbers(text, model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve", model, "--sequences", text])
    with pytest.raises(SystemExit):
        bench.main()
    assert "invalid numbers value" in capsys.readouterr().err


def test_a_step_is_taken_apart(model, capsys, monkeypatch, one_core):
    monkeypatch.setattr(
        sys, "argv", f"step {model} --sequences 1,2 --tokens 6 --threads 1 --repetitions 1".split()
    )
    before = llama().llama_decode, llama().llama_sampler_sample
    step.main()
    assert (llama().llama_decode, llama().llama_sampler_sample) == before
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows[2:]] == [
        ["1", "nobody"], ["1", "asyncio"], ["2", "nobody"], ["2", "asyncio"],
    ]  # fmt: skip
    for row in rows[2:]:
        assert 1 <= int(row[2]) <= 5
        assert 0 < float(row[4]) < float(row[3])


def test_pythons_part_is_what_is_neither_decode_nor_samplers():
    times = [step.Times([0.010, 0.020], [0.006, 0.010], [0.003, 0.005])]
    share = step.share(8, "nobody", times)
    assert (share.python_ms, share.python_wall) == (pytest.approx(1), pytest.approx(0.1))
    assert share.python_cpu == pytest.approx(0.25)
    with pytest.raises(EngineError, match="too early"):
        step.share(8, "nobody", [])


@pytest.mark.slow
def test_a_storm_of_requests_loses_and_crosses_nothing(capsys, monkeypatch, one_core):
    monkeypatch.setattr(sys, "argv", ["stress", "--requests", "300", "--threads", "1", "--seed", "3"])
    with pytest.raises(SystemExit) as ended:
        stress.main()
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    assert printed.startswith("300 requests in ")
    for fate in stress.FATES:
        assert fate in printed


CASE = stress.Case([5], Sampling(), 1, ("abc",))


@pytest.mark.parametrize(
    ("fate", "text", "finished", "called", "raised", "wrong"),
    [
        ("read", "abc", 1, 0, False, ""),
        ("read", "abd", 1, 0, False, "instead of"),
        ("read", "ab", 0, 0, False, "no end"),
        ("cancelled", "ab", 0, 0, False, ""),
        ("cancelled", "b", 0, 0, False, "no beginning"),
        ("callback", "ab", 0, 9, True, ""),
        ("callback", "ab", 0, 9, False, "was lost"),
        ("callback", "ab", 0, 1, False, "raised nothing"),
        ("read", "ab", 0, 0, True, "from nowhere"),
    ],
)
def test_what_came_is_judged(fate, text, finished, called, raised, wrong):
    client = stress.Client(CASE, random.Random(0))
    client.fate, client.texts, client.finished = fate, [text], finished
    client.after, client.called = 5, called
    found = client.verdict(raised)
    assert wrong in found
    assert bool(found) == bool(wrong)


def test_growth_is_the_last_quarters_over_the_third_s():
    tally = stress.Tally(8, rss=[9, 9, 1, 1, 2, 4, 7, 5])
    assert stress.Report(tally, 1.0).growth == 3
