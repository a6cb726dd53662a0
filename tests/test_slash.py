"""The slash commands, called directly: what they refuse, print and write down."""

from __future__ import annotations

import pytest
from tiny import tiny_llama

from edge.chat.loaded import load
from edge.chat.sessions import Sessions
from edge.chat.talk import Talk
from edge.cli.slash import Desk, run
from edge.errors import RequestError, SessionError
from edge.home import sessions_file

SHORT = {"temperature": 0.0, "max_tokens": 4}
STEERING = "\x1b]0;owned\x07 kind"


@pytest.fixture
def desk(tmp_path):
    path = tiny_llama(tmp_path / "tiny.gguf", ctx=8192)
    desk = Desk(Talk(load(str(path), ctx=4096), str(path), SHORT), ctx=4096)
    yield desk
    desk.talk.model.close()


def test_a_context_that_cannot_be_is_refused_before_the_old_model_is_given_up(desk, tmp_path):
    old = desk.talk.model
    with pytest.raises(RequestError, match="4096"):
        run(desk, f"/model {tiny_llama(tmp_path / 'short.gguf', ctx=256)}")
    assert desk.talk.model is old


def test_a_changed_system_prompt_is_written_down(desk):
    run(desk, "/system Be kind.")
    list(desk.talk.say("the king"))
    run(desk, "/save s")
    run(desk, "/system Be brief.")
    with Sessions(sessions_file()) as file:
        assert file.get("s").system == "Be brief."
        file.remove("s")
    with pytest.raises(SessionError, match="was removed"):
        run(desk, "/system Be kind.")
    assert desk.talk.system == "Be kind."


def test_what_is_shown_cannot_steer_the_terminal(desk, capsys):
    run(desk, f"/system {STEERING}")
    with Sessions(sessions_file()) as file:
        file.create("s", STEERING)
    run(desk, "/load")
    assert capsys.readouterr().out == "system prompt: ]0;owned kind\ns  ]0;owned kind  0 turns\n"


def test_the_figures_tell_what_was_kept(tmp_path, capsys):
    path = tiny_llama(tmp_path / "tiny.gguf")
    with load(str(path), threads=1) as model:
        desk = Desk(Talk(model, str(path), SHORT))
        list(desk.talk.say("the king"))
        run(desk, "/stats")
        runs, first, _ = capsys.readouterr().out.splitlines()
        assert ", 1 thread ·" in runs
        assert first.startswith(f"{desk.talk.tally.usage.prompt_tokens} + 4 tokens · first after ")
        list(desk.talk.say("the king"))
        run(desk, "/stats")
        usage = desk.talk.tally.usage
        assert 0 < usage.reused_tokens < usage.prompt_tokens
        second = capsys.readouterr().out.splitlines()[1]
        assert second.startswith(f"{usage.prompt_tokens} ({usage.reused_tokens} kept) + 4 tokens · first ")


def test_the_context_is_shown_and_its_policy_changed(tmp_path, capsys):
    path = tiny_llama(tmp_path / "tiny.gguf")
    with load(str(path), threads=1) as model:
        desk = Desk(Talk(model, str(path), SHORT))
        run(desk, "/context")
        run(desk, "/context shift")
        list(desk.talk.say("the king"))
        run(desk, "/co")
        empty, changed, filled = capsys.readouterr().out.splitlines()
        assert empty == "context: 0 of 256 tokens; once full: error"
        assert changed == "context: 0 of 256 tokens; once full: shift"
        assert 20 < int(filled.split()[1]) < 60
        with pytest.raises(RequestError, match="there is no context policy 'forget'"):
            run(desk, "/context forget")
        assert desk.talk.full == "shift"
        desk.talk.turns = desk.talk.turns * 12
        list(desk.talk.say("on"))
        run(desk, "/context")
        shown, note = capsys.readouterr().out.splitlines()
        assert 60 < int(shown.split()[1]) <= 256
        assert note == desk.talk.fitted.note != ""
