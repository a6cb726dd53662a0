"""Conversations as people give them to `chat`: Messages, chat completions' dicts, and what is none."""

from __future__ import annotations

import pytest
from tiny import tiny_llama

from edge.chat.loaded import load
from edge.chat.messages import messages_of
from edge.chat.template import Message
from edge.chat.tools import ToolCall
from edge.engine import Sampling
from edge.errors import RequestError

CALL = {"id": "123456789", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}


def test_dicts_become_messages_with_their_calls_and_results():
    assert messages_of(
        [
            Message("system", "Be kind."),
            {"role": "user", "content": "Hi", "name": None, "refusal": None},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "2", "tool_call_id": "123456789", "name": "sum"},
        ]
    ) == [
        Message("system", "Be kind."),
        Message("user", "Hi"),
        Message("user", "a\nb"),
        Message("assistant", "", (ToolCall("123456789", "sum", {"a": 1}),)),
        Message("tool", "2", (), "123456789", "sum"),
    ]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "messages is no list"),
        (b"Hi", "messages is no list"),
        ({"role": "user", "content": "Hi"}, "messages is no list"),
        ([], "the conversation is empty"),
        ([None], "message 1 is not an object"),
        ([{"content": "Hi"}], "message 1 is not an object"),
        ([Message("user", "Hi"), {"role": "user", "content": None}], "message 2 is not an object"),
        ([Message("user", None)], "message 1 is no text"),
        ([{"role": [], "content": "Hi"}], "no known role"),
        ([{"role": "assistant", "tool_calls": "sum"}], "the tool_calls of message 1 are no list"),
        ([{"role": "assistant", "tool_calls": ["sum"]}], "not a tool call"),
        ([{"role": "tool", "content": "2", "tool_call_id": 1}], "the tool_call_id of message 1 is no text"),
        ("\ud800", "half a surrogate pair"),
    ],
)
def test_what_is_no_conversation_is_refused(model, messages, said):
    with pytest.raises(RequestError, match=said):
        model.chat(messages)


@pytest.fixture(scope="module")
def model(tmp_path_factory, one_core):
    with load(str(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))) as loaded:
        yield loaded


def test_a_dict_is_answered_as_the_message_that_it_says(model):
    short = Sampling(temperature=0, max_tokens=4)
    answers = [
        "".join(chunk.text for chunk in model.chat(messages, short))
        for messages in ("Hi", [Message("user", "Hi")], ({"role": "user", "content": "Hi"},))
    ]
    assert answers[0] == answers[1] == answers[2] != ""
