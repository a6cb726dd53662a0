"""edge generate: the JSON contract, samples from one prefill, stop texts, limits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from tiny import tiny_llama

from edge.chat.loaded import LoadedModel
from edge.cli import run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.fixture
def generate(capsys, model):
    """Run `edge generate MODEL …` and give back (code, stdout, stderr)."""

    def call(*args: str, ref: str = model) -> tuple[int, str, str]:
        code = run(["generate", ref, *args])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_json_has_exactly_the_promised_keys(generate):
    code, out, err = generate("the king", "-n", "2", "--max-tokens", "6", "--json", "--seed", "1")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert set(answer) == {"texts", "usage", "timings", "finish_reasons", "plan"}
    assert len(answer["texts"]) == 2
    assert set(answer["usage"]) == {"prompt_tokens", "completion_tokens", "reused_tokens"}
    assert answer["usage"]["completion_tokens"] == 12
    assert set(answer["timings"]) == {"load_s", "ttft_s", "prefill_tps", "decode_tps"}
    assert all(value > 0 for value in answer["timings"].values())
    assert answer["finish_reasons"] == ["length", "length"]
    assert answer["plan"]["context"] == 256


def test_n_samples_differ_and_a_seed_brings_them_again(generate):
    def texts(seed: str) -> list[str]:
        args = ("in the", "-n", "5", "--max-tokens", "12", "--temp", "1.5", "--seed", seed, "--json")
        return json.loads(generate(*args)[1])["texts"]

    first = texts("7")
    assert len(set(first)) == 5
    assert texts("7") == first
    assert texts("8") != first


def test_one_text_streams_and_ends_with_one_newline(generate):
    args = ("the king", "--max-tokens", "8", "--temp", "0")
    code, out, err = generate(*args)
    assert code == 0
    assert out == json.loads(generate(*args, "--json")[1])["texts"][0] + "\n"
    assert "tokens · first after" in err
    assert err.count("\n") == 1


def test_several_texts_are_numbered(generate):
    _, out, _ = generate("the king", "-n", "3", "--max-tokens", "4", "--temp", "0")
    text = generate("the king", "--max-tokens", "4", "--temp", "0")[1]
    assert out == "".join(f"── {number}/3 ──\n{text}" for number in (1, 2, 3))


def test_stop_texts_end_it_from_the_line_and_from_the_variable(generate, monkeypatch):
    args = ("the king", "--max-tokens", "24", "--temp", "0", "--json")
    whole = json.loads(generate(*args)[1])["texts"][0]
    stop = whole[8:11]
    ended = json.loads(generate(*args, "--stop", "never there", "--stop", stop)[1])
    assert ended["texts"] == [whole[: whole.index(stop)]]
    assert ended["finish_reasons"] == ["stop"]
    monkeypatch.setenv("EDGE_GENERATE_STOP", f"not {stop}")  # one text, white space and all
    assert json.loads(generate(*args)[1])["texts"] == [whole]


def test_context_and_threads_are_those_asked_for(generate):
    plan = json.loads(generate("a", "--ctx", "64", "--threads", "1", "--max-tokens", "1", "--json")[1])[
        "plan"
    ]
    assert plan["context"] == 64
    assert plan["threads"] == {"prefill": 1, "decode": 1}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--ctx", "0"], "context of 0 is out of range"),
        (["--ctx", "257"], "trained for 1 to 256"),
        (["--threads", "0"], "0 threads is out of range"),
        (["-n", "0"], "0 is not in the range"),
        (["--ctx", "8"], "is 10 tokens and the context holds 8"),
        (["--stop", ""], "empty stop text"),
    ],
)
def test_settings_out_of_range_are_2(args, says, generate):
    code, out, err = generate("x" * 10, *args)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_an_empty_prompt_is_2(generate):
    code, _, err = generate("")
    assert code == 2
    assert "the prompt is empty" in err


def test_what_a_model_says_cannot_steer_the_terminal(generate, monkeypatch):
    monkeypatch.setattr("edge.engine.text.TextStream.push", lambda self, piece: "\x1b[2Ja\r\x9bb")
    code, out, _ = generate("a", "--max-tokens", "1")
    assert (code, out) == (0, "[2Jab\n")


def test_a_character_of_several_tokens_is_printed_whole(generate, monkeypatch):
    pieces = [bytes([byte]) for byte in "世é\U0001f600".encode()]
    monkeypatch.setattr("edge.engine.vocab.Vocab.piece", lambda self, token: pieces.pop(0))
    _, out, _ = generate("a", "--max-tokens", "9")
    assert out == "世é\U0001f600\n"


def test_ctrl_c_prints_the_samples_as_far_as_they_came(generate, monkeypatch):
    args = ("the king", "-n", "2", "--max-tokens", "30", "--temp", "1", "--seed", "4")
    whole = json.loads(generate(*args, "--json")[1])["texts"]
    answering = LoadedModel.generate

    def pressed(self, *args, **kwargs):
        for at, chunk in enumerate(answering(self, *args, **kwargs)):
            yield chunk
            if at == 20:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(LoadedModel, "generate", pressed)
    code, out, err = generate(*args)
    assert (code, err) == (130, "edge: interrupted\n")
    one, two = out.removeprefix("── 1/2 ──\n").removesuffix("\n").split("\n── 2/2 ──\n")
    for cut, text in zip((one, two), whole, strict=True):
        assert 5 < len(cut) < len(text)
        assert text.startswith(cut)
    assert generate(*args, "--json")[:2] == (130, "")


def test_a_reader_that_leaves_ends_it_in_one_line(model, tmp_path):
    script = '"$0" -m edge generate "$1" Hi --temp 0 2> "$2" | head -c 5; exit ${PIPESTATUS[0]}'
    log = tmp_path / "stderr"
    done = subprocess.run(["bash", "-c", script, sys.executable, model, str(log)], capture_output=True)
    assert (done.returncode, len(done.stdout)) == (1, 5)
    assert log.read_text() == "edge: the reader closed the pipe before the output was complete\n"
