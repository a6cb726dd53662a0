"""Tools that a model may call: what they are, what a call is, and what an answer holds.

arguments   arguments against a tool's JSON schema
forms       how each family lists tools and writes calls and results
stream      an answer into content and calls, chunk by chunk
detect      which form a template was made for
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge.chat.tools.arguments import check_schema
from edge.errors import RequestError

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
ID_CHARACTERS = 9  # Mistral's templates refuse any other length
MOST = 128  # tools of one request, as in chat completions


def nothing() -> dict[str, Any]:
    return {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask for.

    `parameters` is the JSON schema of its arguments, an object. Raises RequestError for a name that cannot be
    one and for a schema that is none or uses what `arguments` does not check.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=nothing)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise RequestError(
                f"a tool cannot be named {self.name!r}"[:120],
                hint="1 to 64 letters, digits, underscores, dots or dashes",
            )
        if not isinstance(self.description, str):
            raise RequestError(f"the description of tool {self.name} is not text")
        if not isinstance(self.parameters, Mapping):
            raise RequestError(
                f"the parameters of tool {self.name} are not a JSON schema", hint="give an object"
            )
        if self.parameters.get("type", "object") != "object":
            raise RequestError(
                f"the parameters of tool {self.name} are no object", hint='give {"type": "object", …}'
            )
        check_schema(self.parameters, f"the parameters of tool {self.name}")

    def as_dict(self) -> dict[str, Any]:
        """As chat completions have it, which is what templates expect."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """One call: `id` names it for its result, `arguments` fit the tool's schema."""

    id: str
    name: str
    arguments: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As chat completions have it, but with the arguments as an object, which is what templates expect."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": dict(self.arguments)},
        }


@dataclass(frozen=True)
class Reply:
    """A whole answer: its text without the calls, and the calls in order."""

    content: str
    calls: tuple[ToolCall, ...] = ()


def tools_of(values: Iterable[Tool | Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Tools from themselves or from chat completions' dicts.

    Raises RequestError for what is neither, for two of one name and for more than 128.
    """
    tools = tuple(value if isinstance(value, Tool) else tool_of(value) for value in values)
    names = [tool.name for tool in tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RequestError(f"two tools are named {min(twice)}", hint="give each its own name")
    if len(tools) > MOST:
        raise RequestError(f"{len(tools)} tools are too many", hint=f"give at most {MOST}")
    return tools


def tool_of(value: object) -> Tool:
    """A tool from {"type": "function", "function": {…}} or from what stands inside. Raises RequestError."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if (
        not isinstance(value, Mapping)
        or not isinstance(function, Mapping)
        or value.get("type", "function") != "function"
    ):
        raise RequestError(
            f"not a tool: {value!r}"[:120], hint='give {"type": "function", "function": {"name": …}}'
        )
    if "name" not in function:
        raise RequestError("a tool has no name", hint='give {"type": "function", "function": {"name": …}}')
    # `or`: chat completions leave out or null what is empty
    return Tool(function["name"], function.get("description") or "", function.get("parameters") or nothing())


def call_of(value: object) -> ToolCall:
    """A call of an earlier answer from chat completions' dict, its arguments an object or the text of one.

    Raises RequestError for what is none.
    """
    function = value.get("function") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(function, Mapping):
        raise RequestError(f"not a tool call: {value!r}"[:120], hint='give {"id": …, "function": {…}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"not a tool call: {value!r}"[:120], hint="its arguments are a JSON object")
    return ToolCall(str(value.get("id") or new_id()), function["name"], arguments)


def expect_choice(choice: str, tools: tuple[Tool, ...]) -> None:
    """Raise RequestError for a tool_choice that is neither auto, none, required nor a tool's name."""
    if choice in ("auto", "none"):
        return
    if choice != "required" and choice not in {tool.name for tool in tools}:
        raise RequestError(
            f"tool_choice cannot be {choice!r}", hint="auto, none, required, or the name of a tool given"
        )
    if not tools:
        raise RequestError("a tool call is required and no tool is given", hint="give tools=[…]")


def new_id() -> str:
    """An id as Mistral's templates ask for it: nine letters and digits."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_CHARACTERS))
