"""The benchmarks of the engine: real processes and servers on a tiny model, held to shapes and arithmetic."""

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from tiny import tiny_llama

from edge.bench import serve as bench
from edge.bench.serve_load import Load, prompts, tokens_of
from edge.bench.serve_runtimes import Server, free_port, llama_cpp_server, llama_server
from edge.bench.speed import Spread
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
