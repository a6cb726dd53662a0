"""Context policies: what the model sees of a conversation that no longer fits, and what is said about it."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
from tiny import tiny_llama

from edge.chat.loaded import load
from edge.chat.policy import POLICIES, REQUEST, Summary, fit, room, split
from edge.chat.template import Message
from edge.cli import run
from edge.engine import Sampling
from edge.errors import PromptTooLong, RequestError

CONTEXT = 512
SYSTEM = Message("system", "Be kind.")
SHORT = Sampling(temperature=0.0, max_tokens=8)
ALTERNATING = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' or (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}\n"
    "{% endfor %}"
    "<assistant>"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory, one_core):
    path = tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", ctx=CONTEXT, layers=1)
    with load(str(path), threads=1) as model:
        yield model


def turn(number: int, length: int = 30) -> list[Message]:
    return [
        Message("user", f"{number} ".ljust(length, "x")),
        Message("assistant", f"{number} ".ljust(length, "y")),
    ]


def conversation(turns: int, length: int = 30) -> list[Message]:
    return [
        SYSTEM,
        *(message for number in range(turns) for message in turn(number, length)),
        Message("user", "on"),
    ]


@pytest.mark.parametrize(
    ("context", "max_tokens", "tokens"),
    [(4096, None, 1024), (4096, 100, 100), (4096, 4096, 2048), (200, None, 64), (100, None, 50), (2, 1, 1)],
)
def test_room_for_an_answer(context, max_tokens, tokens):
    assert room(context, max_tokens) == tokens


def test_turns_begin_with_what_the_user_says():
    roles = ("system", "assistant", "user", "assistant", "tool", "assistant", "user")
    opening, turns = split([Message(role, str(at)) for at, role in enumerate(roles)])
    assert [message.content for message in opening] == ["0"]
    assert [[message.content for message in turn] for turn in turns] == [["1"], ["2", "3", "4", "5"], ["6"]]
    assert split([]) == ([], [])


@pytest.mark.parametrize("policy", POLICIES)
def test_what_fits_is_left_as_it_is(model, policy):
    messages = conversation(3)
    fitted = fit(model, messages, policy, SHORT, tell=pytest.fail)
    assert (fitted.messages, fitted.dropped_turns, fitted.note) == (tuple(messages), 0, "")


def test_error_leaves_nothing_out(model):
    messages = conversation(20)
    fitted = fit(model, messages, "error", SHORT)
    assert fitted.messages == tuple(messages)
    with pytest.raises(PromptTooLong, match=f"the prompt is .* and the context holds {CONTEXT}"):
        list(model.chat(fitted.messages, SHORT))


def test_shift_leaves_out_whole_turns_and_says_how_much(model):
    messages = conversation(20)
    fitted = fit(model, messages, "shift", SHORT)
    kept = fitted.messages[1:]
    assert fitted.messages[0] == SYSTEM
    assert kept == tuple(messages[1 + 2 * fitted.dropped_turns :])
    assert 0 < fitted.dropped_turns < 20
    tokens = [len(model.engine.vocab.tokens(message.content)) for message in messages]
    assert fitted.dropped_tokens == sum(tokens[1 : 1 + 2 * fitted.dropped_turns])
    assert fitted.note == (
        f"the context of {CONTEXT} tokens is full: the model no longer sees the {fitted.dropped_turns} oldest turns"
        f" ({fitted.dropped_tokens} tokens)"
    )
    chunks = list(model.chat(fitted.messages, SHORT))
    assert chunks[-1].completion_tokens == 8


def test_room_is_kept_for_the_answer_that_is_asked_for(model):
    for max_tokens in (8, 100, 200):
        fitted = fit(model, conversation(20), "shift", replace(SHORT, max_tokens=max_tokens))
        assert len(model.tokens(fitted.messages)) + max_tokens <= CONTEXT


def test_cuts_stay_where_they_are_while_the_conversation_grows(model):
    cuts = [fit(model, conversation(turns), "shift", SHORT).dropped_turns for turns in range(26)]
    assert cuts == sorted(cuts)
    moved = sum(first != second for first, second in pairwise(cuts))
    assert 0 < moved <= 26 // 2  # a cut at every turn would have the model prefill at every turn
    assert all(
        len(model.tokens(fit(model, conversation(n), "shift", SHORT).messages)) <= CONTEXT - 8
        for n in (9, 25)
    )


def test_finer_cuts_where_a_quarter_is_too_coarse(model):
    messages = [SYSTEM, *turn(0, 4), *turn(1, 4), Message("user", "x" * 440)]
    fitted = fit(model, messages, "shift", SHORT)
    assert fitted.dropped_turns == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_a_message_that_alone_is_too_long_is_an_error(model, policy):
    messages = [*conversation(2)[:-1], Message("user", "x" * 600)]
    with pytest.raises(
        PromptTooLong, match=rf"the prompt is \d+ tokens and the context holds {CONTEXT}"
    ) as error:
        list(model.chat(fit(model, messages, policy, SHORT, tell=pytest.fail).messages, SHORT))
    if policy != "error":
        assert error.value.prompt_tokens == len(model.tokens([SYSTEM, messages[-1]]))


def test_a_message_that_leaves_too_little_room_is_answered_alone(model):
    messages = [*conversation(2)[:-1], Message("user", "x" * 400)]
    fitted = fit(model, messages, "shift", replace(SHORT, max_tokens=200))
    assert fitted.messages == (SYSTEM, messages[-1])
    assert list(model.chat(fitted.messages, replace(SHORT, max_tokens=200)))[-1].finish_reason == "length"


@pytest.mark.parametrize("policy", ["shift", "summarise"])
def test_what_is_too_long_to_be_counted_can_be_left_out(model, policy):
    long = [Message("user", "x" * 200_000), Message("assistant", "no")]
    messages = [*long, *turn(1), Message("user", "on")]
    fitted = fit(model, messages, policy, SHORT)
    assert fitted.messages == tuple(messages[2:])
    assert fitted.dropped_tokens == 200_000 + 2
    if policy == "summarise":
        assert fitted.note == (
            "the model no longer sees the oldest turn (200002 tokens), and no summary came about"
        )


def test_a_summary_takes_the_place_of_the_oldest_turns(model):
    told = []
    messages = conversation(20)
    fitted = fit(model, messages, "summarise", SHORT, tell=told.append)
    text = fitted.summary.text
    assert fitted.messages[:3] == (SYSTEM, Message("user", REQUEST), Message("assistant", text))
    assert fitted.messages[3:] == tuple(messages[1 + fitted.summary.messages :])
    assert fitted.summary.messages == 2 * fitted.dropped_turns
    assert told == [f"the context is full: summarising the {fitted.dropped_turns} oldest turns"]
    assert fitted.note == (
        f"a summary stands for the {fitted.dropped_turns} oldest turns ({fitted.dropped_tokens} tokens)"
    )
    assert text
    assert len(model.tokens(fitted.messages)) + 8 <= CONTEXT


def test_a_summary_is_kept_until_more_has_to_go(model):
    told, summary, summaries = [], None, []
    for turns in range(9, 21):
        fitted = fit(model, conversation(turns), "summarise", SHORT, summary=summary, tell=told.append)
        summary = fitted.summary
        summaries.append(summary)
        assert len(model.tokens(fitted.messages)) + 8 <= CONTEXT
        assert "summary stands for" in fitted.note or not fitted.dropped_turns
    assert len(set(summaries) - {None}) == len(told) > 1
    assert len(told) < 9


def test_a_summary_is_made_of_the_one_before(model, monkeypatch):
    asked, chat = [], model.chat
    monkeypatch.setattr(
        model, "chat", lambda messages, sampling: asked.append(messages) or chat(messages, sampling)
    )
    messages = conversation(20)
    fitted = fit(model, messages, "summarise", SHORT, summary=Summary("the first", 20))
    prompt, *others = asked  # several where the context does not hold all at once
    assert prompt[:3] == [SYSTEM, *Summary("the first", 20).turn()]
    assert prompt[3:] == [*messages[21 : len(prompt) + 17], Message("user", REQUEST)]
    assert all(other[2].content != "the first" for other in others)
    assert sum(len(prompt) - 4 for prompt in asked) == fitted.summary.messages - 20


def test_a_summary_of_another_conversation_or_for_a_larger_context_is_not_used(model):
    anew = fit(model, conversation(12), "summarise", SHORT)
    for foreign in (Summary("foreign", 3), Summary("foreign", 100), Summary("x" * 200, 4)):
        assert fit(model, conversation(12), "summarise", SHORT, summary=foreign) == anew


def test_an_empty_summary_is_said_and_not_tried_again(model):
    before = model.sampling
    model.sampling = replace(before, stop=tuple(map(chr, range(32, 127))))  # it says nothing
    try:
        fitted = fit(model, conversation(20), "summarise", SHORT)
        assert fitted.summary == Summary("", 2 * fitted.dropped_turns)
        assert fitted.messages[1].content.startswith(f"{fitted.dropped_turns} ")
        assert fitted.note == (
            f"the model no longer sees the {fitted.dropped_turns} oldest turns ({fitted.dropped_tokens} tokens),"
            " and no summary came about"
        )
        assert (
            fit(model, conversation(20), "summarise", SHORT, summary=fitted.summary, tell=pytest.fail)
            == fitted
        )
    finally:
        model.sampling = before


def test_turns_too_long_for_a_summary_are_said_to_be_in_none(model):
    long = [Message("user", "x" * 2000), Message("assistant", "no")]
    late = [message for number in range(2, 9) for message in turn(number)]
    messages = [*turn(0), *long, *late, Message("user", "on")]
    fitted = fit(model, messages, "summarise", SHORT)
    assert fitted.summary.text
    assert fitted.note.endswith("tokens), but for 1 that went into none")


def test_a_summary_without_room_is_kept_for_later(model):
    messages = [*conversation(6)[:-1], Message("user", "x" * 440)]
    fitted = fit(model, messages, "summarise", SHORT)
    assert fitted.messages == (SYSTEM, messages[-1])
    assert fitted.note.endswith("beside this message their summary has no room")
    assert fitted.summary.messages == 12
    later = [*messages[:-1], Message("user", "on")]
    assert fitted.summary.text
    assert fit(model, later, "summarise", SHORT, summary=fitted.summary).dropped_turns in (0, 6)


@pytest.mark.parametrize("policy", ["shift", "summarise"])
def test_a_template_that_wants_turns_gets_them(tmp_path, one_core, policy):
    path = tiny_llama(tmp_path / "strict.gguf", ctx=CONTEXT, chat_template=ALTERNATING, layers=1)
    with load(str(path), threads=1) as model:
        fitted = fit(model, conversation(20)[1:], policy, SHORT)
        assert fitted.dropped_turns
        assert list(model.chat(fitted.messages, SHORT))[-1].completion_tokens == 8


def test_the_system_prompt_that_a_model_does_best_with_takes_room_too(model):
    model.system = "s" * 100
    try:
        fitted = fit(model, conversation(20)[1:], "shift", SHORT)
        assert fitted.messages[0] == Message("system", model.system)
        assert list(model.chat(fitted.messages, SHORT))[-1].prompt_tokens == len(
            model.tokens(fitted.messages)
        )
    finally:
        model.system = ""


def test_what_cannot_be_is_refused(model):
    with pytest.raises(RequestError, match="there is no context policy 'forget'"):
        fit(model, conversation(1), "forget", SHORT)
    with pytest.raises(RequestError, match="the conversation is empty"):
        model.chat(fit(model, [], "shift", SHORT).messages, SHORT)
    with pytest.raises(RequestError, match="NUL"):
        fit(model, [*conversation(20), *turn(21), Message("user", "a\0")], "shift", SHORT)


def test_the_command_keeps_the_policy_of_a_session(tmp_path, one_core, capsys, monkeypatch):
    path = tiny_llama(tmp_path / "tiny.gguf")

    def chat(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        return run(["chat", *args]), capsys.readouterr().err

    first = ("--session", "s", "--max-tokens", "60", "--temp", "0", "--context-policy", "shift")
    assert chat(str(path), *first, "--", "the king")[0] == 0
    codes, notes = zip(*(chat("--continue", "--", f"and {number}") for number in range(3)), strict=True)
    assert codes == (0, 0, 0)
    assert "the context of 256 tokens is full: the model no longer sees the oldest turn" in notes[-1]
    code, refused = chat("--continue", "--context-policy", "error", "--", "and on")
    assert code == 2
    assert "tokens and the context holds 256" in refused
    assert run(["sessions", "show", "s", "--json"]) == 0
    session = json.loads(capsys.readouterr().out)
    assert session["options"]["context_policy"] == "shift"
    assert session["turns"] == 4  # all are kept
    assert chat("--context-policy", "forget", "--", "Hi")[0] == 2
