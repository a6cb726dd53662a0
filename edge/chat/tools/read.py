"""The bodies of calls, each form's, read from an answer that grows.

Each reader is a generator: it yields where it needs more text and returns what it read. Every character is looked
at once, however the answer is cut into chunks.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from edge.chat.tools import ID_CHARACTERS, Tool, ToolCall, new_id
from edge.chat.tools.arguments import misfit, why_not
from edge.errors import BadToolCall

T = TypeVar("T")
Reading = Generator[None, None, T]

QUOTED, PLAIN = re.compile(r'["\\]'), re.compile(r'["{}\[\]]')
SPACE = re.compile(r"\s*")
HEAD = re.compile(r"([\w.-]+)\s*(?:\[CALL_ID\]\s*([\w-]+)\s*)?(?:\[ARGS\]\s*)?")
HEAD_CHARACTERS = 200  # a name, an id and their marks
ANY_ID = re.compile(rf"[A-Za-z0-9]{{{ID_CHARACTERS}}}")
KEYS = {"name", "arguments", "parameters", "id", "type"}
PYTHON_CHARACTERS = 64 * 1024  # of calls written as Python


class Source:
    """An answer as far as it has come, and how far it is read."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.final = False
        self.reason: str | None = None

    def error(self, what: str) -> BadToolCall:
        return BadToolCall(what, self.text)

    def more(self) -> Reading[bool]:
        """Wait for more text; False where none follows."""
        if self.final:
            return False
        yield
        return True

    def must(self) -> Reading[None]:
        """Wait for more text inside a call; raises BadToolCall where none follows."""
        if not (yield from self.more()):
            raise BadToolCall("the answer ends inside a tool call", self.text, cut=self.reason == "length")

    def skip(self, spaces: re.Pattern[str] = SPACE) -> Reading[str]:
        """Go on to the next character that is not white space: that character, or "" at the end."""
        while True:
            found = spaces.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not (yield from self.more()):
                return ""

    def expect(self, sign: str) -> Reading[None]:
        """Go past `sign`, white space before it left out; raises BadToolCall for anything else."""
        while not (yield from self.skip()):
            yield from self.must()
        while len(here := self.text[self.at : self.at + len(sign)]) < len(sign) and sign.startswith(here):
            yield from self.must()
        if here != sign:
            raise self.error(f"a tool call is broken where {sign} belongs")
        self.at += len(sign)

    def until(self, sign: str) -> Reading[str]:
        """The text up to `sign`, which is gone past."""
        looked = self.at
        while (end := self.text.find(sign, looked)) < 0:
            looked = max(self.at, len(self.text) - len(sign) + 1)
            yield from self.must()
        text, self.at = self.text[self.at : end], end + len(sign)
        return text

    def json(self) -> Reading[Any]:
        """The JSON object or array that begins here."""
        begin, depth, quoted = self.at, 0, False
        while True:
            found = (QUOTED if quoted else PLAIN).search(self.text, self.at)
            if found is None or (found[0] == "\\" and found.end() == len(self.text)):
                self.at = len(self.text) if found is None else found.start()
                yield from self.must()
                continue
            self.at = found.end()
            if found[0] == '"':
                quoted = not quoted
            elif found[0] == "\\":
                self.at += 1
            else:
                depth += 1 if found[0] in "{[" else -1
                if depth == 0:
                    return decoded(self.text[begin : self.at], self.error)


def decoded(text: str, error: Any) -> Any:
    """The value of a JSON text; raises what `error` makes where it is none, or not text, or says a name twice."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("a name stands there twice")
        return table

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(text, object_pairs_hook=members, parse_constant=constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as fault:  # UnicodeEncodeError is a ValueError: half a surrogate pair
        raise error(f"a tool call is not JSON ({fault})"[:160]) from None
    return value


class Reader:
    """Reads calls of the tools given, in any form."""

    def __init__(self, source: Source, tools: Mapping[str, Tool]) -> None:
        self.source, self.tools = source, tools

    def called(self, name: str, arguments: Any, given_id: object = None) -> ToolCall:
        """One call, checked; raises BadToolCall for an unknown tool and for arguments that do not fit."""
        tool = self.tools.get(name)
        if tool is None:
            raise self.source.error(f"there is no tool named {name!r}"[:120])
        if isinstance(arguments, str):  # some models write the object as the text of one
            arguments = decoded(arguments, self.source.error)
        if not isinstance(arguments, dict):
            raise self.source.error(f"the arguments of {name} are no object")
        if fault := misfit(arguments, tool.parameters):
            raise self.source.error(f"the arguments do not fit {name}: {fault}"[:200])
        own = isinstance(given_id, str) and ANY_ID.fullmatch(given_id)
        return ToolCall(str(given_id) if own else new_id(), name, arguments)

    def of_objects(self, value: Any) -> list[ToolCall]:
        """The calls of a JSON object or of a list of them."""
        values = value if isinstance(value, list) else [value]
        if not values:
            raise self.source.error("a list of tool calls is empty")
        return [self.of_object(each) for each in values]

    def of_object(self, value: Any) -> ToolCall:
        inner = value.get("function") if isinstance(value, dict) else None
        if isinstance(inner, dict) and value.keys() <= {"type", "id", "function"}:
            value = inner | {key: value[key] for key in ("id",) if key in value}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise self.source.error("a tool call has no name")
        if strange := value.keys() - KEYS:
            raise self.source.error(f"a tool call holds {min(strange)!r}, which is nothing of one"[:120])
        if {"arguments", "parameters"} <= value.keys():
            raise self.source.error("a tool call has arguments and parameters")
        arguments = value.get("arguments", value.get("parameters", {}))
        return self.called(value["name"], arguments, value.get("id"))

    def may_be_call(self, value: Any) -> bool:
        """Whether JSON that nothing marks as a call is one: an object (or a list of them) that names a function."""
        if isinstance(value, list):
            return bool(value) and self.may_be_call(value[0])
        if not isinstance(value, dict):
            return False
        if isinstance(value.get("function"), dict):
            value = value["function"]
        named = isinstance(value.get("name"), str)
        return named and ("parameters" in value or "arguments" in value or value["name"] in self.tools)

    def tagged(self) -> Reading[list[ToolCall]]:
        """hermes: JSON up to </tool_call>."""
        while (first := (yield from self.source.skip())) not in ("{", "["):
            if first:
                raise self.source.error("no JSON follows <tool_call>")
            yield from self.source.must()
        value = yield from self.source.json()
        yield from self.source.expect("</tool_call>")
        return self.of_objects(value)

    def piped(self) -> Reading[list[ToolCall]]:
        """llama-3 after <|python_tag|>: JSON, or Python to the end."""
        if (yield from self.source.skip()) == "{":
            return self.of_objects((yield from self.source.json()))
        while (yield from self.source.more()):
            pass
        text, self.source.at = self.source.text[self.source.at :], len(self.source.text)
        if not text:
            yield from self.source.must()
        return self.of_python(text)

    def listed(self) -> Reading[list[ToolCall]]:
        """mistral after [TOOL_CALLS]: a list of JSON, or a name, perhaps [CALL_ID] and an id, [ARGS] and JSON."""
        source = self.source
        while not (first := (yield from source.skip())):
            yield from source.must()
        if first in "[{":
            return self.of_objects((yield from source.json()))
        begin = source.at
        while (brace := source.text.find("{", begin)) < 0 and len(source.text) - begin < HEAD_CHARACTERS:
            yield from source.must()
        head = HEAD.fullmatch(source.text, begin, max(begin, brace))
        if head is None:
            raise source.error("no JSON and no tool's name follows [TOOL_CALLS]")
        source.at = brace
        return [self.called(head[1], (yield from source.json()), head[2])]

    def fenced(self) -> Reading[list[ToolCall]]:
        """gemma after ```tool_code: JSON or Python up to the end of the fence."""
        while not (first := (yield from self.source.skip())):
            yield from self.source.must()
        if first == "{" or (first == "[" and (yield from self.is_json_list())):
            value = yield from self.source.json()
            yield from self.source.expect("```")
            return self.of_objects(value)
        return self.of_python((yield from self.source.until("```")))

    def is_json_list(self) -> Reading[bool]:
        begin = self.source.at
        self.source.at += 1
        first = yield from self.source.skip()
        self.source.at = begin
        return first == "{"

    def of_python(self, text: str) -> list[ToolCall]:
        """Calls as Python writes them, their arguments literals by name: `f(a=1)`, `[f(a=1), g()]`, `f.call(a=1)`.

        Only parsed, never run.
        """
        try:
            calls = python_calls(text)
            values = [
                {str(each.arg): ast.literal_eval(each.value) for each in call.keywords} for call in calls
            ]
            if any(len(value) < len(call.keywords) for value, call in zip(values, calls, strict=True)):
                raise ValueError("a name stands there twice")
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as fault:
            raise self.source.error(f"a tool call is not Python ({fault})"[:160]) from None
        names = [ast.unparse(call.func).removesuffix(".call") for call in calls]
        # Through JSON: what a literal may be and JSON may not (tuples) becomes what the schema means
        return [
            self.called(name, json.loads(json.dumps(value)))
            for name, value in zip(names, values, strict=True)
        ]

    def elements(self) -> Reading[list[ToolCall]]:
        """qwen-coder: <function=NAME><parameter=KEY> VALUE </parameter> … </function> up to </tool_call>."""
        source = self.source
        yield from source.expect("<function=")
        name = yield from source.until(">")
        arguments: dict[str, Any] = {}
        while True:
            while not (yield from source.skip()):
                yield from source.must()
            # Enough to tell one tag from the other
            while len(source.text) - source.at < 2:
                yield from source.must()
            if source.text.startswith("</", source.at):
                break
            yield from source.expect("<parameter=")
            key = yield from source.until(">")
            value = yield from source.until("</parameter>")
            if key in arguments:
                raise source.error(f"the argument {key!r} stands there twice"[:120])
            arguments[key] = self.typed(name, key, value)
        yield from source.expect("</function>")
        yield from source.expect("</tool_call>")
        return [self.called(name, arguments)]

    def typed(self, name: str, key: str, text: str) -> Any:
        """A value by its schema: the text between its lines where text fits, else JSON."""
        text = text.removeprefix("\n").removesuffix("\n")
        schema = self.tools[name].parameters if name in self.tools else {}
        part = schema.get("properties", {}).get(key, True)
        if not why_not(text, part, schema, key):
            return text
        try:
            return decoded(text, self.source.error)
        except BadToolCall:
            # Templates write these as Python does
            return {"True": True, "False": False, "None": None}.get(text, text)


def python_calls(text: str) -> list[ast.Call]:
    """The calls of a Python text, each with arguments by name only; raises ValueError or what `ast.parse` raises."""
    if len(text) > PYTHON_CHARACTERS:
        raise ValueError("it is too long")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of "\\d", which Python takes as it stands
        body = ast.parse(text.strip()).body
    nodes: list[ast.AST] = [each.value if isinstance(each, ast.Expr) else each for each in body]
    if len(nodes) == 1 and isinstance(nodes[0], ast.List):
        nodes = list(nodes[0].elts)
    calls = [
        each
        for each in nodes
        if isinstance(each, ast.Call) and not each.args and all(part.arg for part in each.keywords)
    ]
    if not calls or len(calls) < len(nodes):
        raise ValueError("it is no call with arguments by name")
    return calls
