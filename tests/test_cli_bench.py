"""The verbs of `edge bench`: their last line, their comparisons, their pictures, and what they refuse."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from tiny import tiny_llama
from tiny_encoders import as_gguf, as_onnx

from edge.bench import peer_work, plot_course, serve_runtimes, speed
from edge.bench.record import line, record
from edge.bench.runtimes import Versus, command, threads_of, versus
from edge.bench.speed import Report, Speed, reading_seconds, summary
from edge.child import python_m
from edge.cli import run
from edge.errors import EngineError
from edge.machine.power import power_state
from edge.planner import Threads, plan


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", ctx=1024))


def printed(capsys, *words):
    assert run(["bench", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys, code, *words):
    assert run(["bench", *map(str, words)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_speed_draws_compares_and_ends_with_its_record(model, tmp_path, capsys, one_core):
    pytest.importorskip("matplotlib")
    words = ["speed", model, "--repetitions", "1", "--plot", tmp_path / "course.png"]
    lines = printed(capsys, *words)
    found = json.loads(lines[-1])
    assert found["work"]["model_sha256"]
    assert len(found["course"]["edge"]) == 1  # a turn
    assert len(found["course"]["edge"][0]) == 7  # 128 tokens, a point each 16 after the first
    assert all(tps > 0 and at > 0 for at, tps in found["course"]["edge"][0])
    assert (tmp_path / "course.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "then.txt").write_text("\n".join(lines))
    again = printed(
        capsys, "speed", model, "--repetitions", "1", "--compare", tmp_path / "then.txt", "--markdown"
    )
    assert any(line.startswith("| now over then |") for line in again)
    assert json.loads(again[-1])["compared"]["rows"][0]["figures"]["decode_tps"] > 0
    other = tiny_llama(tmp_path / "other.gguf", ctx=1024, layers=3)
    said = refused(capsys, 2, "speed", other, "--compare", tmp_path / "then.txt")
    assert "is not comparable: its model sha256 was" in said


def test_serve_runs_ours_alone_and_says_what_is_left_out(model, capsys, monkeypatch, tmp_path, one_core):
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["serve", model, "--sequences", "1,2", "--tokens", "4", "--threads", "1", "--repetitions", "1"]
    assert run(["bench", *words]) == 0
    seen = capsys.readouterr()
    assert [line.split(" is not here")[0] for line in seen.err.splitlines()] == [
        f"edge: left out: {name}" for name in serve_runtimes.PEERS
    ]
    found = json.loads(seen.out.splitlines()[-1])
    assert [row["name"] for row in found["rows"]] == ["edge 1", "edge 2"]
    assert found["rows"][1]["growth"]["median"] > 0
    assert found["rows"][0]["faster"] is None


@pytest.mark.slow
def test_memory_and_startup_have_the_same_form(model, capsys, monkeypatch, one_core):
    monkeypatch.setattr("edge.bench.memory.memory.__defaults__", ((512,),))
    found = json.loads(printed(capsys, "memory", model)[-1])
    assert found["benchmark"] == "memory"
    assert found["rows"][0]["measured_bytes"] > 1 << 20
    monkeypatch.setattr("edge.bench.startup.startup.__kwdefaults__", {"peer": False, "repetitions": 1})
    found = json.loads(printed(capsys, "startup", model, "--json")[0])
    names = [row["name"] for row in found["rows"]]
    assert names == ["python (empty)", "import edge", "edge --help", "edge chat"]
    assert found["rows"][0]["wall_s"]["median"] > 0


@pytest.mark.parametrize("form", [as_gguf, as_onnx])
def test_a_model_that_continues_no_text_is_refused(form, capsys):
    model = form("bert")
    for verb in ("speed", "serve", "tune"):
        said = refused(capsys, 2, verb, model)
        assert "continues no text" in said or "is ONNX, which has none of these settings" in said


def test_what_reads_gguf_alone_refuses_onnx(capsys, tmp_path, monkeypatch, one_core):
    model = str(as_onnx("llama"))
    monkeypatch.setenv("EDGE_PEERS", str(tmp_path))
    (tmp_path / "llama-server").touch(mode=0o755)
    said = refused(capsys, 2, "serve", model, "--vs", "llama-server", "--tokens", "4")
    assert "llama-server reads GGUF files" in said
    (tmp_path / "text").write_text("words " * 99)
    said = refused(capsys, 2, "quality", model, "--text", tmp_path / "text", "--ctx", "16")
    assert "edge bench quality reads GGUF files" in said


@pytest.mark.parametrize("words", [("work", "edge"), ("serve_work",)])
def test_ctrl_c_in_the_terminal_ends_the_processes_without_a_word(model, words):
    module, *runtime = words
    counts = ["1", "1", "256", *(["1"] if module == "serve_work" else [])]
    process = subprocess.Popen(
        python_m(f"edge.bench.{module}", *runtime, model, *counts),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline()  # it is loaded
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (-signal.SIGINT, "")


@pytest.mark.skipif(sys.platform == "win32", reason="processes are not ended by signals there")
def test_a_process_at_work_is_ended_with_us(model):
    worker = speed.Worker("edge", plan(model, ctx=1024, threads=1))

    def interrupted():
        with worker:
            worker._process.stdin.write("8 1000 1\n")
            worker._process.stdin.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert worker._process.returncode == -signal.SIGKILL  # not the 0 of one that had its time


def test_prompt_and_answer_have_the_lengths_that_are_asked_for(
    model, capsys, tmp_path, monkeypatch, one_core
):
    called = tmp_path / "llama-bench"
    called.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\necho \'[{{"avg_ts": 50}}]\'\n')
    called.chmod(0o755)
    monkeypatch.setenv("EDGE_PEERS", str(tmp_path))
    words = ["speed", model, "-p", "40", "-n", "20", "--repetitions", "1", "--vs", "llama-bench"]
    lines = printed(capsys, *words)
    found = json.loads(lines[-1])
    assert (found["work"]["prefill_tokens"], found["work"]["decode_tokens"]) == (40, 20)
    assert len(found["course"]["edge"][0]) == 1  # 20 tokens, a point each 16 after the first
    assert any("TTFT S (40)" in line for line in lines)
    asked = {
        tuple(line.split(" -t ")[1].split()[1:5]) for line in (tmp_path / "words").read_text().splitlines()
    }
    assert asked == {("-p", "40", "-n", "0"), ("-p", "0", "-n", "20")}
    (tmp_path / "then").write_text(lines[-1])
    said = refused(capsys, 2, "speed", model, "-p", "41", "-n", "20", "--compare", tmp_path / "then")
    assert "prefill tokens was 40 and is 41 now" in said
    for option, count in (("--prompt", "0"), ("--new", "1"), ("-n", "x")):
        assert f"for '-{option[-1:] if len(option) == 2 else option[2]}' / " in refused(
            capsys, 2, "speed", model, option, count
        )
    said = refused(capsys, 2, "speed", model, "--prompt", "1024")
    assert "a context of 1024 is too short to measure" in said
    assert "it takes 1025 tokens; ask for fewer with --prompt and --new" in said


def test_a_peer_that_cannot_be_had_is_one_line(model, capsys, tmp_path, monkeypatch):
    assert "'ollama' is no peer; one of llama-cpp-python" in refused(
        capsys, 2, "speed", model, "--vs", "ollama"
    )
    assert "torch cannot read GGUF; --vs torch=DIR" in refused(capsys, 2, "speed", model, "--vs", "torch")
    said = refused(capsys, 2, "speed", model, "--vs", f"torch={tmp_path}")
    assert "has no config.json" in said
    said = refused(capsys, 2, "speed", model, "--vs", "llama-bench=x")
    assert "llama-bench reads the model's own file" in said
    said = refused(capsys, 2, "speed", model, "--vs", "xllamacpp", "--vs", "xllamacpp")
    assert "named twice" in said
    said = refused(capsys, 1, "speed", model, "--vs", "xllamacpp")
    assert "xllamacpp is not here; bench/peers/xllamacpp.sh DIR, then EDGE_XLLAMACPP_PYTHON=" in said
    monkeypatch.setenv("EDGE_XLLAMACPP_PYTHON", str(tmp_path / "python"))
    said = refused(capsys, 1, "speed", model, "--vs", "xllamacpp")
    assert f"EDGE_XLLAMACPP_PYTHON names {tmp_path / 'python'}, which does not run" in said
    assert "'nginx' is no server" in refused(capsys, 2, "serve", model, "--vs", "nginx")
    assert "llama_cpp.server is not here" in refused(capsys, 1, "serve", model, "--vs", "llama_cpp.server")


def test_a_peer_that_is_not_here_is_found_before_anything_is_loaded(model, monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "Worker", lambda *_: pytest.fail("it was loaded"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("xllamacpp", "llama-bench"):
        with pytest.raises(EngineError, match=f"{name} is not here"):
            speed.speed(model, (name,))


def test_a_peer_that_fails_ends_whatever_its_threads_do(tmp_path):
    (tmp_path / "xllamacpp.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\nraise OSError('no such CPU')"
    )
    words = [sys.executable, peer_work.__file__, "xllamacpp", "x.gguf", "1", "1", "64"]
    found = subprocess.run(
        words, env={"PYTHONPATH": str(tmp_path)}, input="", capture_output=True, text=True, timeout=30
    )
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == "OSError: no such CPU"


def test_an_environment_without_its_peer_is_an_error(model, monkeypatch, capfd):
    monkeypatch.setenv("EDGE_XLLAMACPP_PYTHON", sys.executable)
    assert run(["bench", "speed", model, "--vs", "xllamacpp"]) == 1
    seen = capfd.readouterr().err
    assert "No module named 'xllamacpp'" in seen
    assert "xllamacpp ended before its work was done" in seen.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "path", "words"),
    [
        ("--csv", ".", "is a folder"),
        ("--csv", "none/rows.csv", "there is no folder"),
        ("--plot", "none/course.png", "there is no folder"),
        ("--plot", "course.jpg", "is no name of a PNG file"),
        ("--compare", "none.txt", "cannot be read"),
        ("--compare", ".", "cannot be read"),
    ],
)
def test_paths_are_checked_before_anything_is_measured(
    model, capsys, tmp_path, monkeypatch, option, path, words
):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, 2, "speed", model, option, path)


def test_another_runs_work_is_refused_before_anything_is_measured(model, capsys, tmp_path, monkeypatch):
    text, then = tmp_path / "text", tmp_path / "then"
    text.write_text("words")
    for module in ("memory.memory", "quality.quality", "tune.tune", "speed.speed", "serve.serve"):
        monkeypatch.setattr(f"edge.bench.{module}", lambda *_, **__: pytest.fail("it was measured"))
    for verb, *words in (["memory"], ["quality", "--text", text], ["tune"], ["speed"], ["serve"]):
        then.write_text(line(record(verb, [], before=power_state(), work={}, settings={})))
        assert "is not comparable: its" in refused(capsys, 2, verb, model, *words, "--compare", then)


def test_the_list_of_verbs_shows_their_first_lines_whole(capsys):
    assert run(["bench", "--help"]) == 0
    verbs = capsys.readouterr().out.split("Commands:\n")[1].splitlines()
    assert len(verbs) == 6
    assert all(line.endswith(".") and not line.endswith("...") for line in verbs)


def test_options_that_contradict_and_lists_that_are_none(model, capsys):
    assert "--json prints one line" in refused(capsys, 2, "speed", model, "--json", "--markdown")
    for text in ("1,x", "0", "2,2", ""):
        assert "is no list of different whole numbers" in refused(
            capsys, 2, "serve", model, "--sequences", text
        )
    for option, text in (("--ctx", "0"), ("--ctx", "512,-1"), ("--parallel", "0"), ("--parallel", ",")):
        assert f"'{text}' is not N,N" in refused(capsys, 2, "memory", model, option, text)


def test_a_peer_runs_in_its_own_python_on_what_it_reads(model, tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    monkeypatch.setenv("EDGE_TORCH_PYTHON", sys.executable)
    asked = versus(f"torch={tmp_path}")
    python, script, *words = command(asked, plan(model, threads=1))
    assert python == sys.executable
    assert script.endswith("peer_work.py")
    assert words == ["torch", str(tmp_path), "1", "1", "1024"]
    decided = replace(plan(model), threads=Threads(3, 2))
    assert command(Versus("edge"), decided)[-4:] == [model, "3", "2", "1024"]
    assert threads_of(decided) == "3 for prefill, 2 for decode"
    monkeypatch.delenv("EDGE_TORCH_PYTHON")
    with pytest.raises(EngineError, match="torch is not here"):
        command(asked, plan(model))


def test_the_share_of_bandwidth_and_joules_are_of_what_was_measured(model):
    turns = [
        {"prefill_tps": 1.0, "decode_tps": 40.0, "prefill_joules": 0.1, "decode_joules": 0.5},
        {"prefill_tps": 1.0, "decode_tps": 60.0, "prefill_joules": 0.3, "decode_joules": 0.7},
    ]
    found = summary("edge", turns, read_s=0.01)
    assert found.bandwidth_share.median == pytest.approx(0.5)
    assert found.decode_joules.median == pytest.approx(0.6)
    unknown = summary("edge", [{**turns[0]}, {"prefill_tps": 1.0, "decode_tps": 1.0}])
    assert (unknown.bandwidth_share, unknown.decode_joules) == (None, None)
    assert reading_seconds(plan(model)) == 0  # nothing was measured of this host


def test_the_course_is_drawn_with_and_without_temperature(model, tmp_path):
    pytest.importorskip("matplotlib")
    one = summary("edge", [{"prefill_tps": 1.0, "decode_tps": 2.0}])
    assert isinstance(one, Speed)
    course = {"edge": (((1.0, 50.0), (2.0, 51.0)), ((9.0, 40.0),)), "llama-bench": (((4.0, 45.0),), ())}
    sizes = []
    for heat in ((), ((0.0, 60.0), (9.0, 71.5))):
        plot_course.draw(Report(plan(model), (one,), {}, course, heat), tmp_path / "course.png")
        sizes.append((tmp_path / "course.png").stat().st_size)
    assert min(sizes) > 10_000
    assert sizes[0] != sizes[1]
