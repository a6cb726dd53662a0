"""A saved conversation as a document."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge.chat.sessions import Conversation, Session
from edge.errors import StoreError
from edge.kept import PRIVATE, whole

TITLES = {"system": "System", "user": "You", "assistant": "Assistant", "tool": "Tool"}


def head(session: Session) -> dict[str, Any]:
    """A session as plain data, times as ISO 8601 in UTC."""
    fields = dataclasses.asdict(session) | {"created": iso(session.created), "updated": iso(session.updated)}
    del fields["id"]
    return fields


def to_dict(conversation: Conversation) -> dict[str, Any]:
    """A conversation as plain data: the session's fields, and `messages` in order."""
    messages = [
        dataclasses.asdict(message) | {"created": iso(message.created)} for message in conversation.messages
    ]
    return {**head(conversation.session), "messages": messages}


def to_json(conversation: Conversation) -> str:
    """The conversation as one JSON document, ended by a newline."""
    return json.dumps(to_dict(conversation), indent=2, ensure_ascii=False) + "\n"


def to_markdown(conversation: Conversation) -> str:
    """The conversation to read; contents stand as they are, since models write Markdown themselves."""
    session = conversation.session
    parts = [f"# {session.name}", f"{session.model}, {iso(session.created)}"]
    if session.system:
        parts += ["## System", session.system]
    for message in conversation.messages:
        parts += [f"## {TITLES[message.role]}", message.content]
        if message.finish_reason not in (None, "stop"):
            parts.append(f"*({message.finish_reason})*")
    return "\n\n".join(parts) + "\n"


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def write_whole(path: Path, text: str) -> None:
    """Put `text` at `path`: all of it or nothing. Raises StoreError."""
    try:
        with whole(path, PRIVATE) as file:
            file.write(text.encode())
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}", hint="choose another file") from error
