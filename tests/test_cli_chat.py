"""edge chat with one answer: what is a reference and what a prompt, stdin, refusals, templates, streams."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from hostile import HOSTILE
from tiny import tiny_llama

from edge.cli import run

EDGE = [sys.executable, "-m", "edge"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.fixture
def chat(capsys, monkeypatch):
    """Run `edge chat --max-tokens 8 …` with bytes on stdin; gives back (code, stdout, stderr)."""

    def call(*args: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run(["chat", "--max-tokens", "8", "--temp", "0", *args])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def refusal(result: tuple[int, str, str]) -> tuple[int, str]:
    """The code and the only line of a call that was refused before a model was loaded."""
    code, out, err = result
    assert not out
    assert err.startswith("edge: ")
    assert err.count("\n") == 1
    return code, err


@pytest.mark.parametrize("args", [["--", "the king"], ["the king"], ["--seed", "5", "--", "the king"]])
def test_one_answer_goes_to_stdout_and_the_figures_to_stderr(args, chat, model):
    code, out, err = chat(model, *args)
    assert code == 0
    assert len(out) > 4
    assert out.count("\n") == 1
    first, last = err.splitlines()
    assert first.startswith("tiny · F32 · llama.cpp-cpu, ")
    assert "+ 8 tokens · first after" in last


def test_dashes_that_are_an_options_value_begin_no_prompt(chat, model):
    assert chat("--system", "--", model, "the king")[0] == 0
    assert chat("--system", "--", model, "--", "--")[0] == 0
    assert "'--system' requires an argument" in chat(model, "--system")[2]


def test_piped_text_stands_before_the_prompt(chat, model):
    both = chat(model, "--", "a\n\nb")
    assert chat(model, "b", stdin=b"\n a \n")[:2] == both[:2]
    assert chat(model, stdin=b"a\n\nb")[:2] == both[:2]
    assert chat(model, "--", "b")[1] != both[1]


@pytest.mark.parametrize(
    ("args", "stdin", "says"),
    [
        (["x", "y", "z"], b"", "Too many words: quote the prompt"),
        (["x", "--", "y", "z"], b"", "Too many words"),
        (["--", ""], b"", "the prompt is empty"),
        (["--", " \n"], b"", "the prompt is empty"),
        (["x.gguf"], b" \n ", "the prompt is empty"),
        (["--", "Hi"], b"caf\xe9", "not UTF-8 text at byte 3"),
        ([], b"a\0b", "a NUL at character 1"),
        (["--", "a\udcff"], b"", "half a surrogate pair at character 1"),
        (["--temp", "nan", "--", "Hi"], b"", "temperature is not a number"),
        (["--top-p", "2", "--", "Hi"], b"", "top-p is 2"),
        (["--max-tokens", "-5", "--", "Hi"], b"", "max-tokens is -5"),
        (["--seed", "9" * 400, "--", "Hi"], b"", "seed is far out of range"),
        (["--stop", "", "--", "Hi"], b"", "empty stop text"),
        (["--continue", "--", "Hi"], b"", "there is no conversation to continue"),
        (["--continue", "--session", "s", "--", "Hi"], b"", "two conversations"),
        (["--session", "a\nb", "--", "Hi"], b"", "cannot be a session's name"),
        (["\udcff", "Hi"], b"", "is not a model reference"),
    ],
)
def test_a_call_that_cannot_be_is_refused_before_any_model_is_sought(args, stdin, says, chat):
    # there is no model in this home: a look for one would say so
    code, err = refusal(chat(*args, stdin=stdin))
    assert code == 2
    assert says in err


def test_more_than_64_mib_of_stdin(chat):
    assert refusal(chat(stdin=b"a" * ((64 << 20) + 1))) == (
        2,
        "edge: more than 64 MiB were piped in; send less\n",
    )


def test_ten_megabytes_of_stdin_are_refused_with_both_numbers(chat, model):
    started = time.perf_counter()
    code, _, err = chat(model, stdin=b"hello world " * 900_000)
    assert code == 2
    assert "tokens and the context holds 256; shorten it or raise --ctx" in err
    assert time.perf_counter() - started < 5


def test_a_prompt_longer_than_the_context(chat, model):
    code, out, err = chat(model, "--ctx", "64", "--", "x" * 80)
    assert (code, out) == (2, "")
    assert "the prompt is 98 tokens and the context holds 64" in err


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("nope", "there is no model 'nope'"),
        ("smollm2", "did you mean smollm2-135m-instruct? run `edge pull smollm2-135m-instruct`"),
        ("./nope.gguf", "there is no file"),
        ("smollm2-135m-instruct", "is not on this disk; run `edge pull smollm2-135m-instruct`"),
        ("hf:owner/repo:Q4_0", "run `edge pull hf:owner/repo:Q4_0`"),
    ],
)
def test_a_model_that_is_not_here_says_what_to_pull(ref, says, chat):
    code, err = refusal(chat(ref, "--", "Hi"))
    assert code == 1
    assert says in err


NO_SOCKETS = """
import socket
class Opened(socket.socket):
    def __init__(self, *args, **more): raise SystemExit("a socket was opened")
socket.socket = Opened
from edge.cli import main
main(["chat", "--", "Hi"])
"""


def test_a_cold_store_opens_no_socket():
    done = subprocess.run(
        [sys.executable, "-c", NO_SOCKETS], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 1
    assert (
        done.stderr
        == "edge: smollm2-135m-instruct is not on this disk; run `edge pull smollm2-135m-instruct`\n"
    )


@pytest.mark.parametrize("verb", [["show"], ["plan"], ["chat"]])
@pytest.mark.parametrize("name", HOSTILE)
def test_every_hostile_file_is_refused_in_one_line(verb, name, chat, tmp_path, capsys):
    build, says = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(build())
    if verb == ["chat"]:
        code, err = refusal(chat(str(path), "--", "Hi"))
    else:
        code = run([*verb, str(path)])
        code, err = refusal((code, *capsys.readouterr()))
    assert code == 3
    assert says in err


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ ''.__class__.__mro__ }}", "it reaches for '__class__'"),
        ("{{ 'x' * 10000000 }}", "far more text than the conversation calls for"),
        (
            "{% for i in range(9999) %}{% for j in range(1001) %}x{% endfor %}{% endfor %}",
            "its output passes",
        ),
        ("{% if %}", "does not work: line 1"),
    ],
)
def test_a_template_that_breaks_out_is_3(template, says, chat, tmp_path):
    path = tiny_llama(tmp_path / "bad.gguf", chat_template=template)
    code, out, err = chat(str(path), "--", "Hi")
    assert (code, out) == (3, "")
    assert says in err.splitlines()[-1]
    assert chat(str(path), "--template", "chatml", "--", "Hi")[0] == 0


def test_what_a_template_says_cannot_steer_the_terminal(chat, tmp_path):
    path = tiny_llama(tmp_path / "rude.gguf", chat_template="{{ raise_exception('\x1b]0;owned\x07no') }}")
    code, _, err = chat(str(path), "--", "Hi")
    assert code == 2
    assert "refuses these messages: ]0;ownedno;" in err


def test_a_file_without_template_says_which_form_is_used(chat, tmp_path):
    path = tiny_llama(tmp_path / "bare.gguf", chat_template=None)
    code, _, err = chat(str(path), "--", "Hi")
    assert code == 0
    assert "has no chat template; using chatml because its vocabulary has <|im_start|>" in err
    code, _, err = chat(str(path), "--template", "nope", "--", "Hi")
    assert code == 2
    assert "there is no chat template named 'nope'; one of chatml, " in err


def test_a_full_context_says_so(chat, model):
    code, _, err = chat(model, "--ctx", "64", "--max-tokens", "200", "--", "Hi")
    assert code == 0
    assert "the context is full; --ctx makes room for more" in err
    assert "context is full" not in chat(model, "--", "Hi")[2]


def test_ctrl_c_ends_one_answer_with_130_and_one_line(model, tmp_path):
    long = str(tiny_llama(tmp_path / "long.gguf", ctx=8192))
    child = subprocess.Popen(
        [*EDGE, "chat", long, "--ctx", "8192", "--session", "cut", "--", "Hi"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert len(child.stdout.read(3)) == 3
    child.send_signal(signal.SIGINT)
    _, err = child.communicate()
    assert child.returncode == 130
    assert err.decode().splitlines()[1:] == ["edge: interrupted"]


def test_a_reader_that_leaves_mid_stream(model):
    script = '"$0" -m edge chat "$1" -- Hi < /dev/null | head -c 5; exit ${PIPESTATUS[0]}'
    done = subprocess.run(["bash", "-c", script, sys.executable, model], capture_output=True, text=True)
    assert (done.returncode, len(done.stdout)) == (1, 5)
    assert done.stderr.splitlines()[1:] == ["edge: the reader closed the pipe before the output was complete"]


def test_closed_stdin_is_an_empty_one(model):
    script = '"$0" -m edge chat "$@" <&-'
    for args, code in ((["--max-tokens", "2", model, "Hi"], 0), ([model], 2), ([], 2)):
        done = subprocess.run(["sh", "-c", script, sys.executable, *args], capture_output=True, text=True)
        assert done.returncode == code
        assert "Traceback" not in done.stderr


@pytest.mark.model
def test_the_default_model_answers_a_whole_process(default_model):
    home = default_model.parents[2]
    done = subprocess.run(
        [*EDGE, "chat", "--temp", "0", "--max-tokens", "12", "--", "What is the capital of France?"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "EDGE_HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert len(done.stderr.splitlines()) <= 3
