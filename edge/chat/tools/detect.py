"""Which form of tools a template was made for: found out by letting it write a call, and reading that.

A template's text says little about what it does with tools, and what it writes says all: the form is the one whose
reading gives the call back. Imports jinja2 when it runs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from edge.chat.template import Message, Template, render, write
from edge.chat.tools import Tool, ToolCall
from edge.chat.tools.forms import FORMS, ToolForm, by_name, by_turns
from edge.chat.tools.stream import parse
from edge.errors import BadToolCall, RequestError, UnsafeFile

# Words that no template writes by itself.
TOOL = Tool("probe_tool", "Probes.", {"type": "object", "properties": {"probe_argument": {"type": "string"}}})
VALUE = "probe value"
CALL = ToolCall("Probe0001", "probe_tool", {"probe_argument": VALUE})
AS_IT_IS = replace(FORMS["hermes"], native=True)  # any form will do: the template gets what it is given
ASK = Message("user", "probe question")
CALLING = Message("assistant", "", (CALL,))
RESULT = Message("tool", "probe result", tool_call_id=CALL.id, name=CALL.name)
AGAIN = replace(CALL, id="Probe0002")


@lru_cache(maxsize=8)
def choose(template: Template, name: str | None = None) -> ToolForm:
    """The template's own form where it has one that is known, else one to explain to the model in words.

    `name` asks for a form, whatever the template was made for. Raises RequestError for a name that is none, for
    one that only a template may write, and for a template whose calls are in no known form.
    """
    asked = by_name(name) if name else None
    native = own_form(template)
    if native is not None and (asked is None or asked.name == native.name):
        return native
    if asked is not None:
        explained = replace(asked, reason=f"{asked.name} was asked for")
    elif listed(template) and written_call(template):
        raise RequestError(
            "the model's template writes tool calls in a form that is not known",
            hint=f"name one to explain to the model: {', '.join(FORMS)}",
        )
    else:
        explained = by_turns(template.source)
    role = "ipython" if explained.name == "llama-3" and writes_role(template, "ipython") else "user"
    return replace(explained, system=writes_system(template), results=role)


def own_form(template: Template) -> ToolForm | None:
    """The form that the template writes tools, calls and results in; None where it leaves one of them out."""
    written = written_call(template)
    if not written or not listed(template):
        return None
    for form in FORMS.values():
        form = replace(form, native=True)
        try:
            calls = parse(written, form, [TOOL]).calls
        except BadToolCall:
            continue
        results = attempt(template, [ASK, CALLING, RESULT], form, tools=(TOOL,))
        if [(call.name, call.arguments) for call in calls] == [(CALL.name, CALL.arguments)]:
            if results is None or RESULT.content not in results:
                return None
            two = replace(CALLING, tool_calls=(CALL, AGAIN))
            both = attempt(
                template, [ASK, two, RESULT, replace(RESULT, tool_call_id=AGAIN.id)], form, tools=(TOOL,)
            )
            why = f"{template.name} template writes calls in the {form.name} form"
            return replace(form, single=both is None or both.count(VALUE) < 2, reason=why)
    return None


def written_call(template: Template) -> str:
    """What the template writes for an answer that is a call, without the turn around it; empty for nothing."""
    plain = attempt(template, [ASK, Message("assistant", "probe answer")], AS_IT_IS, tools=(TOOL,))
    called = attempt(template, [ASK, CALLING], AS_IT_IS, tools=(TOOL,))
    if plain is None or called is None or VALUE not in called:
        return ""
    before, _, after = plain.rpartition("probe answer")
    return called[common(before, called) :].removesuffix(after)


def listed(template: Template) -> bool:
    """Whether the template lists the tools."""
    text = attempt(template, [ASK], AS_IT_IS, tools=(TOOL,))
    return text is not None and "probe_argument" in text


def writes_system(template: Template) -> bool:
    text = attempt(template, [Message("system", "probe system"), ASK], None)
    return text is not None and "probe system" in text


def writes_role(template: Template, role: str) -> bool:
    turns = [
        ASK.as_dict(),
        {"role": "assistant", "content": "probe answer"},
        {"role": role, "content": "probe"},
    ]
    try:
        return f"{role}<|end_header_id|>" in write(template, turns, [], None, False)
    except (RequestError, UnsafeFile):
        return False


def attempt(
    template: Template,
    messages: list[Message],
    form: ToolForm | None,
    *,
    tools: tuple[Tool, ...] = (),
) -> str | None:
    """What the template writes; None where it refuses or fails, as many do for what they do not know."""
    try:
        return render(template, messages, tools=tools, form=form, add_generation_prompt=False)
    except (RequestError, UnsafeFile):
        return None


def common(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
