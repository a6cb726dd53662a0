"""A conversation out of messages, or of chat completions' dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from edge.chat.template import Message, Role
from edge.chat.tools import call_of
from edge.errors import RequestError

FIELDS = ("role", "content", "tool_calls", "tool_call_id", "name")
EXAMPLE = 'such as [{"role": "user", "content": "…"}]'


def messages_of(value: object) -> list[Message]:
    """Messages from themselves or from chat completions' dicts. Raises RequestError for none, and for what is none."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)):
        raise RequestError("messages is no list", hint=EXAMPLE)
    if not value:
        raise RequestError("the conversation is empty", hint="it needs at least one message")
    return [message_of(each, f"message {at}") for at, each in enumerate(value, 1)]


def message_of(value: object, what: str) -> Message:
    """One message; `what` names it in errors."""
    if isinstance(value, Message):
        text_of(value.content, what)
        return value
    given = (
        {name: each for name, each in value.items() if each is not None} if isinstance(value, Mapping) else {}
    )
    calls = given.get("tool_calls", [])
    # chat completions' content of a turn that only calls tools is null
    if "role" not in given or ("content" not in given and not calls):
        raise RequestError(f"{what} is not an object of role and content", hint="write both")
    if unknown := [name for name in given if name not in FIELDS]:
        raise RequestError(f"{what} has the field {unknown[0]!r:.60}", hint=f"known are {', '.join(FIELDS)}")
    if given["role"] not in get_args(Role):
        raise RequestError(f"{what} has no known role", hint=f"one of {', '.join(get_args(Role))}")
    if not isinstance(calls, (list, tuple)):
        raise RequestError(f"the tool_calls of {what} are no list", hint='give [{"id": …, "function": {…}}]')
    return Message(
        given["role"],
        content_of(given.get("content", ""), what),
        tuple(map(call_of, calls)),
        text_of(given.get("tool_call_id", ""), f"the tool_call_id of {what}"),
        text_of(given.get("name", ""), f"the name in {what}"),
    )


def content_of(value: Any, what: str) -> str:
    """A text, or a list of parts of type text, which are joined by ends of lines, as llama-server joins them."""
    if not isinstance(value, (list, tuple)):
        return text_of(value, what)
    for part in value:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise RequestError(
                f"{what} has a part that is no text: {kind!r:.60}", hint='give {"type": "text", "text": "…"}'
            )
    return "\n".join(text_of(part.get("text"), f"a part of {what}") for part in value)


def text_of(value: object, what: str) -> str:
    """A text that can be encoded. Raises RequestError for anything else."""
    if not isinstance(value, str):
        raise RequestError(f"{what} is no text", hint="write it in double quotes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{what} has half a surrogate pair", hint="write it anew") from None
    return value
