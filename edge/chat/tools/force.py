"""A grammar for answers that are one tool call and nothing else (`tool_choice` required, or a tool's name)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edge.chat.tools import Tool, expect_choice
from edge.chat.tools.arguments import TABLES
from edge.chat.tools.forms import ToolForm
from edge.errors import RequestError
from edge.structure.schema import schema_grammar

# What stands before and after the JSON of a call, and its list where the form has one.
AROUND = {
    "hermes": ("<tool_call>\\n", "\\n</tool_call>"),
    "llama-3": ("", ""),
    "mistral": ("[TOOL_CALLS][", "]"),
    "gemma": ("", ""),
}
DATA = ("const", "enum", "default", "examples", "example")
ROOT = re.compile(r"^root(?= ::=)", re.MULTILINE)


def tool_grammar(tools: Sequence[Tool], form: ToolForm, choice: str) -> str:
    """GBNF of the answers that call one of `tools` ("required") or the one that `choice` names, in `form`.

    Every such answer parses, and its arguments fit. Raises RequestError for another choice, for a form without
    JSON, and for parameters that a grammar cannot express.
    """
    expect_choice(choice, tuple(tools))
    if choice in ("auto", "none"):
        raise RequestError(f"tool_choice {choice} forces no call", hint="say required, or a tool's name")
    if form.name not in AROUND:
        raise RequestError(
            f"a call cannot be forced in the {form.name} form",
            hint="leave tool_choice at auto, or name another form",
        )
    chosen = [tool for tool in tools if choice in ("required", tool.name)]
    grammar = schema_grammar(
        {
            "anyOf": [call_schema(tool, form.key, f"tool{index}") for index, tool in enumerate(chosen)],
            "$defs": {f"tool{index}": closed(tool, f"tool{index}") for index, tool in enumerate(chosen)},
        }
    )
    before, after = AROUND[form.name]
    whole = f'"{before}" tool-call "{after}"' if before else "tool-call"
    return f"root ::= {whole}\n" + ROOT.sub("tool-call", grammar)


def call_schema(tool: Tool, key: str, name: str) -> dict[str, Any]:
    members = {"name": {"const": tool.name}, key: {"$ref": f"#/$defs/{name}"}}
    return {"type": "object", "properties": members, "required": [*members], "additionalProperties": False}


def closed(tool: Tool, name: str) -> dict[str, Any]:
    """A tool's parameters inside a larger schema: references into themselves, and no arguments but those listed."""
    schema: dict[str, Any] = {"type": "object", **moved(tool.parameters, f"#/$defs/{name}")}
    open_ended = any(word in schema for word in ("$ref", "anyOf", "oneOf", "allOf", "additionalProperties"))
    return schema if open_ended else schema | {"additionalProperties": False}


def moved(schema: Any, place: str) -> Any:
    """A schema with its references pointing into `place`. Data that looks like a reference stays what it is."""
    if not isinstance(schema, Mapping):
        return [moved(each, place) for each in schema] if isinstance(schema, (list, tuple)) else schema
    there: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str):
            there[key] = place + value[1:]
        elif key in TABLES and isinstance(
            value, Mapping
        ):  # by names of anybody's, "default" and "$ref" among them
            there[key] = {name: moved(each, place) for name, each in value.items()}
        else:
            there[key] = value if key in DATA else moved(value, place)
    return there
