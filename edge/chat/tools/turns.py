"""A conversation with tools as a template takes it: natively, or in our own words where it knows no tools.

Messages and tools are dicts as chat completions have them, but with arguments as objects.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from edge.chat.tools import ID_CHARACTERS
from edge.chat.tools.forms import ToolForm, explain, write_calls, write_result

Turn = dict[str, Any]
IDS = {True: re.compile(rf"[A-Za-z0-9]{{{ID_CHARACTERS}}}"), False: re.compile(r"[\w.-]{1,64}")}


def prepare(
    turns: Sequence[Turn], tools: Sequence[Turn], form: ToolForm
) -> tuple[list[Turn], list[Turn] | None]:
    """The messages and the tools to give to the template. Raises RequestError as `explain` does."""
    named = [with_ids(turn, form) for turn in turns]
    if form.native:
        # None, not []: templates ask `tools is not none`
        return (one_by_one(named) if form.single else named), (list(tools) or None)
    return in_words(named, tools, form), None


def with_ids(turn: Turn, form: ToolForm) -> Turn:
    """A turn whose ids the template takes: another text becomes one by its hash, the same everywhere."""
    turn = dict(turn)
    if "tool_call_id" in turn:
        turn["tool_call_id"] = taken(turn["tool_call_id"], form)
    if "tool_calls" in turn:
        turn["tool_calls"] = [call | {"id": taken(call["id"], form)} for call in turn["tool_calls"]]
    return turn


def taken(given: str, form: ToolForm) -> str:
    if IDS[form.name == "mistral"].fullmatch(given):
        return given
    return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:ID_CHARACTERS]


def one_by_one(turns: Sequence[Turn]) -> list[Turn]:
    """Several calls of one turn as a turn each, followed by its result: Llama 3's templates take one at a time."""
    spread: list[Turn] = []
    at = 0
    while at < len(turns):
        turn, at = turns[at], at + 1
        calls = turn.get("tool_calls", [])
        if len(calls) < 2:
            spread.append(turn)
            continue
        end = at
        while end < len(turns) and turns[end]["role"] == "tool":
            end += 1
        results, at = list(turns[at:end]), end
        for index, call in enumerate(calls):
            spread.append(turn | {"content": "" if index else turn["content"], "tool_calls": [call]})
            own = [each for each in results if each.get("tool_call_id") == call["id"]] or results[:1]
            spread += own[:1]
            results = [each for each in results if each not in own[:1]]
        spread += results
    return spread


def in_words(turns: Sequence[Turn], tools: Sequence[Turn], form: ToolForm) -> list[Turn]:
    """Tools as system text, calls as the answers that they were, results as turns."""
    said: list[Turn] = []
    for turn in turns:
        role, content = turn["role"], turn["content"]
        if turn.get("tool_calls"):
            calls = write_calls(form, turn["tool_calls"])
            said.append({"role": role, "content": f"{content}\n{calls}" if content else calls})
        elif role == "tool":
            result = write_result(form, content)
            if (
                said and said[-1].get("result") and form.results == "user"
            ):  # many templates want roles to alternate
                said[-1]["content"] += "\n" + result
            else:
                said.append({"role": form.results, "content": result, "result": True})
        else:
            said.append({"role": role, "content": content})
    for turn in said:
        turn.pop("result", None)
    return with_system(said, explain(form, tools), form) if tools else said


def with_system(turns: list[Turn], text: str, form: ToolForm) -> list[Turn]:
    """`text` at the end of the system message, or before the user's first where the template has no system."""
    role = "system" if form.system else "user"
    for index, turn in enumerate(turns):
        if turn["role"] == role:
            own, both = turn["content"], (turn["content"], text) if form.system else (text, turn["content"])
            joined = "\n\n".join(both) if own else text
            return [*turns[:index], turn | {"content": joined}, *turns[index + 1 :]]
    return [{"role": role, "content": text}, *turns]


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """JSON with `change` done to each of its texts, names included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {mapped(key, change): mapped(each, change) for key, each in value.items()}
    return [mapped(each, change) for each in value] if isinstance(value, (list, tuple)) else value
