"""edge chat --session and --continue, across processes' worth of calls."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest
from tiny import tiny_llama

from edge.cli import run
from edge.home import sessions_file


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


@pytest.fixture
def chat(capsys, monkeypatch):
    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        code = run(["chat", "--max-tokens", "4", "--temp", "0", *args])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def show(capsys):
    def call(name: str) -> dict:
        assert run(["sessions", "show", name, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def prompt_tokens(err: str) -> int:
    return int(err.splitlines()[-1].split(maxsplit=1)[0])


def test_a_session_goes_on_and_knows_its_model(chat, show, model, tmp_path, monkeypatch):
    code, first, err = chat(model, "--session", "trip", "--system", "Be kind.", "--", "the king")
    assert code == 0
    monkeypatch.chdir(tmp_path)  # the model is found from anywhere
    code, second, more = chat("--session", "trip", "--", "and?")
    assert code == 0
    assert prompt_tokens(more) > prompt_tokens(err) + 4
    session = show("trip")
    assert (session["model"], session["system"], session["turns"]) == (model, "Be kind.", 2)
    contents = [message["content"] for message in session["messages"]]
    assert contents == ["the king", first.removesuffix("\n"), "and?", second.removesuffix("\n")]
    assert [message["tokens"] for message in session["messages"]][1::2] == [4, 4]


def test_a_relative_path_is_kept_whole(chat, show, model, monkeypatch):
    folder, name = os.path.split(model)
    monkeypatch.chdir(folder)
    assert chat(name, "--session", "s", "--", "Hi")[0] == 0
    assert show("s")["model"] == model


def test_a_pulled_model_is_kept_by_its_name(chat, show, model, capsys):
    assert run(["pull", model, "--as", "pet"]) == 0
    capsys.readouterr()
    assert chat("pet", "--session", "s", "--", "Hi")[0] == 0
    assert show("s")["model"] == "pet"
    assert chat("--session", "s", "--", "on")[0] == 0


def test_continue_takes_the_last_one(chat, show, model):
    for name in ("one", "two", "one"):
        assert chat(model, "--session", name, "--", "Hi")[0] == 0
    assert chat("--continue", "--", "on")[0] == 0
    assert show("one")["turns"] == 3
    assert show("two")["turns"] == 1


def test_the_settings_of_a_session_hold_until_given_anew(chat, model, capsys, monkeypatch):
    assert chat(model, "--session", "s", "--seed", "1", "--", "Hi")[0] == 0
    for args, tokens in ((), 4), (("--max-tokens", "2"), 2), ((), 2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        assert run(["chat", "--continue", *args, "--", "on"]) == 0
        assert f" + {tokens} tokens" in capsys.readouterr().err


def test_a_new_system_prompt_stays(chat, show, model):
    assert chat(model, "--session", "s", "--system", "Be kind.", "--", "Hi")[0] == 0
    assert chat("--continue", "--system", "Be brief.", "--", "on")[0] == 0
    assert chat("--continue", "--", "on")[0] == 0
    assert show("s")["system"] == "Be brief."


def test_one_answer_is_not_saved_unless_asked(chat, model):
    assert chat(model, "--", "Hi")[0] == 0
    assert not sessions_file().exists()


def test_a_refused_first_message_leaves_no_empty_session(chat, model, capsys):
    assert chat(model, "--session", "s", "--", "x" * 300)[0] == 2
    assert run(["sessions", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("flag", [["--session", "s"], ["--continue"]])
def test_a_damaged_file_of_sessions_is_an_error_and_untouched(flag, chat, model):
    sessions_file().parent.mkdir()
    sessions_file().write_bytes(b"no database" * 100)
    code, out, err = chat(model, *flag, "--", "Hi")
    assert (code, out) == (1, "")
    assert err.startswith(f"edge: {sessions_file()} is damaged")
    assert err.count("\n") == 1
    assert sessions_file().read_bytes() == b"no database" * 100
    assert chat(model, "--", "Hi")[0] == 0


def test_a_home_that_cannot_be_written(chat, model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGE_HOME", str(tmp_path / "file" / "home"))
    assert chat(model, "--", "Hi")[0] == 0
    code, out, err = chat(model, "--session", "s", "--", "Hi")
    assert (code, out) == (1, "")
    assert err.startswith("edge: ")
    assert "set EDGE_HOME to a folder you may write to" in err


def test_what_was_said_cannot_steer_the_terminal(capsys):
    from edge.chat.sessions import Sessions

    with Sessions(sessions_file()) as file:
        file.append(file.create("s", "tiny"), "assistant", "\x1b]0;owned\x07a\nb")
    assert run(["sessions", "show", "s"]) == 0
    out = capsys.readouterr().out
    assert "]0;owneda\nb\n" in out
    assert "\x1b]" not in out
    assert "\x07" not in out
