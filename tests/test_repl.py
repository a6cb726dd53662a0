"""The conversation in a pseudo-terminal, as a person holds it."""

from __future__ import annotations

import json
import os
import re
import sys

import pexpect
import pytest
from tiny import tiny_llama

from edge.chat.sessions import Sessions
from edge.cli import run
from edge.home import sessions_file

ALT_ENTER = "\x1b\r"
# pexpect answers no question about the cursor's position
QUIET = {"PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONWARNINGS": "error"}
ENTERED = "\x1b[?2004l"  # the prompt gives the terminal back
PROMPT = ">>>[ \x1b]"  # the space may be a movement of the cursor
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>()][0-9A-B]?)")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_llama(folder / "tiny.gguf", ctx=8192)
    tiny_llama(folder / "other.gguf", seed=1)
    return folder


class Terminal:
    """`edge chat` in a terminal of 100 columns; `seen` is what a wait skipped, without escape sequences."""

    def __init__(self, *args: str, **variables: str) -> None:
        environment = {**os.environ, "TERM": "xterm", **QUIET, **variables}
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "edge", "chat", *args],
            env=environment,
            encoding="utf-8",
            timeout=60,
            dimensions=(40, 100),
        )
        self.child.delaybeforesend = 0.05

    def wait(self, text: str) -> str:
        self.child.expect(text if text == PROMPT else re.escape(text))
        return ESCAPES.sub("", self.child.before).replace("\r", "")

    def say(self, text: str, until: str = PROMPT) -> str:
        """Type a line, wait for what is printed after it and for the next prompt."""
        self.child.send(text + "\r")
        self.wait(ENTERED)
        return self.wait(until)

    def leave(self) -> str:
        self.child.send("\x04")
        self.child.expect(pexpect.EOF)
        self.child.close()
        assert self.child.exitstatus == 0
        return ESCAPES.sub("", self.child.before or "")


@pytest.fixture
def terminal(models):
    opened = []

    def open_one(*args: str, **variables: str) -> Terminal:
        args = args or ("--max-tokens", "6", "--temp", "0")
        opened.append(Terminal(str(models / "tiny.gguf"), *args, **variables))
        opened[-1].wait(PROMPT)
        return opened[-1]

    yield open_one
    for one in opened:
        one.child.close(force=True)


def only_session() -> tuple[str, list[str]]:
    with Sessions(sessions_file()) as file:
        (session,) = file.all()
        return session.name, [message.content for message in file.conversation(session.name).messages]


def test_answers_are_streamed_and_saved(terminal):
    one = terminal()
    first = one.say("the king").strip().splitlines()[0]
    second = one.say("and the rain").strip().splitlines()[0]
    assert not one.leave().count("Traceback")
    _, contents = only_session()
    assert contents == ["the king", first, "and the rain", second]


def test_leaving_without_a_word_leaves_no_session(terminal):
    one = terminal()
    one.leave()
    with Sessions(sessions_file()) as file:
        assert not file.all()


def test_alt_enter_makes_a_message_of_two_lines_and_the_history_has_it(terminal, home):
    one = terminal()
    one.child.send(f"the king{ALT_ENTER}the rain\r")
    one.wait("cut at --max-tokens")
    one.leave()
    assert only_session()[1][0] == "the king\nthe rain"
    assert "+the king\n+the rain\n" in (home / "history").read_text()
    assert (home / "history").stat().st_mode & 0o077 == 0
    two = terminal()
    two.child.send("\x1b[A\r")  # the arrow up
    two.wait("cut at --max-tokens")
    two.leave()


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(terminal):
    one = terminal("--temp", "0")
    one.child.send("the king\r")
    one.wait(ENTERED)
    one.child.expect(r"[^\x1b\r\n]{5}")
    one.child.send("\x03")
    one.wait("[stopped]")
    one.wait(PROMPT)
    assert "2 messages, saved as" in one.say("/stats")
    one.leave()
    name, contents = only_session()
    assert contents[0] == "the king"
    with Sessions(sessions_file()) as file:
        assert file.conversation(name).messages[1].finish_reason == "interrupted"


def test_ctrl_c_on_a_line_clears_it(terminal):
    one = terminal()
    one.child.send("not this")
    one.wait("this")
    one.child.send("\x03")
    one.wait(ENTERED)
    one.wait(PROMPT)
    one.say("the king")
    one.leave()
    assert only_session()[1][0] == "the king"


def test_slash_commands(terminal, models):
    one = terminal()
    listed = one.say("/help")
    for name in (
        "/help",
        "/model",
        "/system",
        "/save",
        "/load",
        "/clear",
        "/context",
        "/stats",
        "/quit",
        "Alt-Enter",
    ):
        assert name in listed
    assert "system prompt: none" in one.say("/system")
    assert "system prompt: Be kind." in one.say("/sys Be kind.")
    one.say("the king")
    assert "saved as mine" in one.say("/save mine")
    assert "a name is missing; /save NAME" in one.say("/save")
    assert "a new conversation" in one.say("/cl")
    assert "0 messages, saved as 2" in one.say("/stats")
    assert "mine: 2 messages" in one.say("/load mine")
    assert "mine" in one.say("/load")
    assert "no session named 'nope'" in one.say("/load nope")
    assert "2 messages, saved as mine" in one.say("/st")
    assert "edge: /s may be /system or /save or /stats; write one more letter" in one.say("/s")
    assert "edge: /nope is no command; /help lists them" in one.say("/nope")
    assert "edge: there is no model 'nope'" in one.say("/model nope")
    assert "other · F32" in one.say(f"/model {models / 'other.gguf'}")
    one.say("and on")
    one.child.send("/q\r")
    one.child.expect(pexpect.EOF)
    one.child.close()
    assert one.child.exitstatus == 0
    assert only_session()[0] == "mine"
    assert len(only_session()[1]) == 4


def test_a_model_that_does_not_load_brings_the_old_one_back(terminal, tmp_path):
    bad = tiny_llama(tmp_path / "bad.gguf", pre="no-such-pretokenizer")
    one = terminal()
    first = one.say("the king").strip().splitlines()[0]
    assert "edge: llama.cpp cannot load bad.gguf" in one.say(f"/model {bad}")
    assert "edge: there is no file" in one.say("/model ./nope.gguf")
    one.say("/clear")
    assert one.say("the king").strip().splitlines()[0] == first
    one.leave()


def test_what_is_typed_during_an_answer_waits_for_the_next_prompt(terminal):
    one = terminal("--max-tokens", "60", "--temp", "0")
    one.child.send("the king\r")
    one.wait(ENTERED)
    one.child.expect(r"[^\x1b\r\n]{5}")
    one.child.send("ahead")
    assert "ahead" not in one.wait("cut at --max-tokens")
    one.wait("ahead")
    one.child.send("\x03")
    one.wait(PROMPT)
    one.leave()


def test_a_message_that_is_refused_leaves_the_conversation_usable(terminal):
    one = terminal("--ctx", "128", "--max-tokens", "6", "--temp", "0")
    refused = one.say("x" * 150)
    assert "tokens and the context holds 128; shorten it, or begin anew with /clear" in refused
    assert "edge:" not in one.say("the king")
    one.leave()
    assert only_session()[1][0] == "the king"


def test_a_full_context_is_said_and_can_be_let_go_on(terminal):
    one = terminal("--ctx", "128", "--temp", "0")
    assert "[the context is full: /clear begins anew, /context shift lets the oldest turns go]" in one.say(
        "the king"
    )
    assert "tokens and the context holds 128; shorten it, begin anew with /clear, or let" in one.say("on")
    assert "once full: shift" in one.say("/context shift")
    shifted = one.say("on")
    assert "[the context of 128 tokens is full: the model no longer sees the oldest turn (" in shifted
    assert "[the context is full: the answer ends here, the next message makes room]" in shifted
    assert "tokens and the context holds 128; shorten it\n" in one.say("x" * 150)
    one.leave()
    assert only_session()[1][0::2] == ["the king", "on"]


def test_bytes_that_are_no_text_are_refused(terminal):
    one = terminal()
    os.write(one.child.fileno(), b"a\xff\r")
    one.wait("half a surrogate pair")
    one.wait(PROMPT)
    assert "edge:" not in one.say("the king")
    one.leave()


def test_a_dumb_terminal(terminal):
    one = terminal(TERM="dumb")
    one.child.send("the king\r")
    one.wait("cut at --max-tokens")
    one.wait(PROMPT)
    one.leave()
    assert only_session()[1][0] == "the king"


def test_no_colour(terminal):
    one = terminal(NO_COLOR="1")
    one.child.send("the king\r")
    one.child.expect_exact("cut at --max-tokens")
    assert not re.search(r"\x1b\[(?:[0-9]+;)*(?:3[0-7]|9[0-7]|38|48)[;m]", one.child.before)
    one.leave()


def test_a_damaged_file_of_sessions_is_said_and_the_conversation_goes_on(models, home):
    home.mkdir()
    sessions_file().write_bytes(b"no database" * 100)
    (home / "history").mkdir()
    one = Terminal(str(models / "tiny.gguf"), "--max-tokens", "6", "--temp", "0")
    begun = one.wait(PROMPT)
    assert "this conversation will not be saved: " in begun
    assert "is damaged" in begun
    assert "what you type is not remembered: " in begun
    assert "edge:" not in one.say("the king")
    assert "2 messages, not saved" in one.say("/stats")
    assert "is damaged" in one.say("/save x")
    one.leave()
    assert sessions_file().read_bytes() == b"no database" * 100


def test_answers_into_a_file_leave_the_prompt_on_the_screen(models, tmp_path):
    log = tmp_path / "answers"
    script = f"exec {sys.executable} -m edge chat {models / 'tiny.gguf'} --max-tokens 6 --temp 0 > {log}"
    child = pexpect.spawn(
        "sh", ["-c", script], encoding="utf-8", timeout=60, env={**os.environ, "TERM": "xterm"}
    )
    child.expect(PROMPT)
    child.send("the king\r")
    child.expect_exact("cut at --max-tokens")
    child.send("\x04")
    child.expect(pexpect.EOF)
    assert log.read_text().strip() == only_session()[1][1]


def test_continue_takes_up_the_conversation(terminal, capsys):
    one = terminal()
    one.say("the king")
    one.leave()
    two = terminal("--continue", "--max-tokens", "6", "--temp", "0")
    assert "2 messages, saved as" in two.say("/stats")
    two.say("on")
    two.leave()
    name, contents = only_session()
    assert contents[2] == "on"
    assert run(["sessions", "show", name, "--json"]) == 0
    tokens = [message["tokens"] for message in json.loads(capsys.readouterr().out)["messages"]]
    assert tokens[2] > tokens[0] + tokens[1]
