"""Talk: what becomes part of a conversation, and what of it is saved when."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from time import sleep

import pytest
from tiny import tiny_llama

from edge.chat.loaded import load
from edge.chat.sessions import Sessions
from edge.chat.talk import Saved, Talk, unnamed
from edge.chat.template import Message
from edge.errors import PromptTooLong, RequestError, SessionError
from edge.home import sessions_file

SHORT = {"temperature": 0.0, "max_tokens": 6}


@pytest.fixture
def talk(tmp_path):
    path = tiny_llama(tmp_path / "tiny.gguf")
    with load(str(path)) as model:
        yield Talk(model, str(path), SHORT)


def ask(talk: Talk, text: str) -> str:
    return "".join(chunk.text for chunk in talk.say(text))


def saved_messages(name: str) -> list[tuple[str, str, str | None]]:
    with Sessions(sessions_file()) as file:
        messages = file.conversation(name).messages
    return [(message.role, message.content, message.finish_reason) for message in messages]


def test_the_second_prompt_holds_the_first_turn(talk):
    first = ask(talk, "the king")
    before = talk.tally.usage.prompt_tokens
    ask(talk, "and?")
    assert talk.turns[:3] == [
        Message("user", "the king"),
        Message("assistant", first),
        Message("user", "and?"),
    ]
    assert talk.tally.usage.prompt_tokens > before + 6


def test_nothing_said_leaves_no_session(talk):
    talk.saved = Saved("s")
    assert not sessions_file().exists()
    answer = ask(talk, "the king")
    assert saved_messages("s") == [("user", "the king", None), ("assistant", answer, "length")]
    with Sessions(sessions_file()) as file:
        session = file.get("s")
    assert (session.model, session.options["max_tokens"]) == (talk.ref, 6)


def test_an_answer_that_is_cut_is_kept_as_far_as_it_got(talk):
    talk.saved = Saved("s")
    stream = talk.say("the king")
    begun = next(stream).text + next(stream).text
    stream.close()
    assert saved_messages("s")[1] == ("assistant", begun, "interrupted")
    assert talk.turns[-1] == Message("assistant", begun)


def test_a_message_that_is_refused_is_taken_back(talk):
    talk.saved = Saved("s")
    ask(talk, "the king")
    turns = list(talk.turns)
    for text, error in (("x" * 300, PromptTooLong), ("a\0", RequestError)):
        with pytest.raises(error):
            ask(talk, text)
    assert talk.turns == turns
    assert len(saved_messages("s")) == 2
    assert ask(talk, "on")


def test_an_answer_that_cannot_be_saved_stays_in_the_conversation(talk):
    sessions_file().parent.mkdir()
    sessions_file().write_bytes(b"no database" * 100)
    talk.saved = Saved("s")
    with pytest.raises(SessionError, match="damaged"):
        ask(talk, "the king")
    assert [message.role for message in talk.turns] == ["user", "assistant"]


def test_a_question_is_never_saved_without_its_answer(talk):
    talk.saved = Saved("s")
    ask(talk, "the king")
    with closing(sqlite3.connect(sessions_file())) as db:  # the process ends before the answer is written
        db.execute(
            "CREATE TRIGGER cut BEFORE INSERT ON message WHEN NEW.role = 'assistant'"
            " BEGIN SELECT RAISE(ABORT, 'cut'); END"
        )
    with pytest.raises(sqlite3.IntegrityError, match="cut"):
        ask(talk, "on")
    assert [role for role, _, _ in saved_messages("s")] == ["user", "assistant"]


def test_save_as_names_what_was_said_so_far(talk):
    answer = ask(talk, "the king")
    talk.save_as("first")
    assert [content for _, content, _ in saved_messages("first")] == ["the king", answer]
    ask(talk, "on")
    talk.save_as("second")
    assert len(saved_messages("second")) == 4
    with pytest.raises(SessionError, match="no session named 'first'"):
        saved_messages("first")


def test_a_name_that_is_taken_changes_nothing(talk):
    with Sessions(sessions_file()) as file:
        file.create("taken", "tiny")
    with pytest.raises(RequestError, match="already"):
        talk.save_as("taken")
    assert talk.saved is None
    talk.saved = Saved("mine")
    ask(talk, "the king")
    with pytest.raises(RequestError, match="already"):
        talk.save_as("taken")
    assert talk.saved.name == "mine"
    assert len(saved_messages("mine")) == 2


def test_take_up_drops_a_question_that_was_never_answered(talk):
    with Sessions(sessions_file()) as file:
        session = file.create("s", "tiny", system="Be brief.")
        for role, content in (("user", "a"), ("assistant", "b"), ("user", "c")):
            file.append(session, role, content)
        talk.take_up(file.conversation("s"))
    assert talk.turns == [Message("user", "a"), Message("assistant", "b")]
    assert talk.opening() == [Message("system", "Be brief.")]
    ask(talk, "d")
    assert [content for _, content, _ in saved_messages("s")][-2] == "d"


def test_take_up_goes_on_with_the_settings_it_was_begun_with(talk):
    begun = {"temperature": 0.0, "max_tokens": 3, "stop": ("zzz",)}
    first = Talk(talk.model, talk.ref, begun, saved=Saved("s"))
    ask(first, "the king")
    with Sessions(sessions_file()) as file:
        file.create("plain", talk.ref, options={"max_tokens": 2, "of a later version": 1})
        past = file.conversation("s")
        plain = file.conversation("plain")
    again = Talk(talk.model, talk.ref)
    again.take_up(past)
    assert again.sampling == first.sampling
    anew = Talk(talk.model, talk.ref, {"max_tokens": 5})
    anew.take_up(past)
    assert anew.sampling == replace(first.sampling, max_tokens=5)
    again.take_up(plain)  # nothing of the one before is left
    assert again.sampling == replace(talk.model.sampling, max_tokens=2)


def test_all_is_saved_whatever_the_model_still_sees(tmp_path):
    path, told = tiny_llama(tmp_path / "tiny.gguf"), []
    with load(str(path), threads=1) as model:
        talk = Talk(model, str(path), {"max_tokens": 40, "temperature": 0.0}, "Be kind.", tell=told.append)
        talk.saved, talk.policy = Saved("s"), "shift"
        for number in range(6):
            ask(talk, f"{number} the king")
        dropped = talk.fitted.dropped_turns
        assert dropped
        assert talk.seen() == [Message("system", "Be kind."), *talk.turns[2 * dropped :]]
        assert len(talk.turns) == len(saved_messages("s")) == 12
        assert told[-1] == talk.fitted.note
        assert len(told) == len(set(told))  # once for each cut
        with Sessions(sessions_file()) as file:
            past = file.conversation("s")
        again = Talk(model, str(path))
        again.take_up(past)
        assert (again.full, len(again.turns)) == ("shift", 12)
        ask(again, "6 the king")
        assert again.fitted.dropped_turns >= dropped
        again.begin_anew()
        assert (again.turns, again.seen(), again.fitted.note) == ([], again.opening(), "")


def test_a_summary_is_saved_with_the_conversation(tmp_path):
    path = tiny_llama(tmp_path / "tiny.gguf", ctx=512)
    with load(str(path), threads=1) as model:
        talk = Talk(model, str(path), SHORT, policy="summarise", saved=Saved("s"))
        talk.turns = [Message(role, "x" * 80) for _ in range(3) for role in ("user", "assistant")]
        talk.save_as("s")
        ask(talk, "the king")
        assert talk.seen()[1] == Message("assistant", talk.summary.text)
        with Sessions(sessions_file()) as file:
            past = file.conversation("s")
        again = Talk(model, str(path), tell=pytest.fail)
        again.take_up(past)
        assert (again.full, again.summary) == ("summarise", talk.summary)
        again.tell = lambda note: note.startswith("a summary stands") or pytest.fail(note)
        ask(again, "and?")
        assert again.summary == talk.summary


@pytest.mark.parametrize(
    "damage", [None, "text", {"text": 1, "messages": 2}, {"text": "x"}, {"text": "x", "messages": "2"}]
)
def test_a_summary_or_a_policy_that_cannot_be_is_none(talk, damage):
    with Sessions(sessions_file()) as file:
        session = file.create("s", talk.ref, options={"summary": damage, "context_policy": damage})
        file.append(session, "user", "a")
        file.append(session, "assistant", "b")
        talk.take_up(file.conversation("s"))
    assert (talk.summary, talk.full) == (None, "error")


def test_settings_given_anew_are_written_down(talk, tmp_path):
    talk.saved = Saved("s")
    ask(talk, "the king")
    with Sessions(sessions_file()) as file:
        past = file.conversation("s")
    other = tiny_llama(tmp_path / "other.gguf", seed=1)
    with load(str(other)) as model:
        again = Talk(model, str(other), {"max_tokens": 3, "stop": ("zzz",)}, policy="shift")
        again.take_up(past)
        ask(again, "on")
    with Sessions(sessions_file()) as file:
        session = file.get("s")
    assert session.model == str(other)
    assert session.options == {
        "temperature": 0.0,
        "max_tokens": 3,
        "stop": ["zzz"],
        "context_policy": "shift",
    }


def test_a_template_that_prints_nothing_gives_an_empty_prompt(tmp_path):
    path = tiny_llama(tmp_path / "silent.gguf", chat_template="{% if false %}x{% endif %}")
    with load(str(path)) as model, pytest.raises(RequestError, match="the prompt is empty"):
        model.chat("<|im_end|>")


def test_two_conversations_that_begin_within_a_second_have_two_names():
    first = unnamed().name
    sleep(0.002)
    assert unnamed().name != first
