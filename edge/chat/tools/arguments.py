"""A JSON value against a JSON schema (draft 2020-12), for the keywords that tools' parameters use.

A schema that asserts anything else is refused when the tool is made, so nothing is ever left unchecked. Not the
`jsonschema` package: six distributions, one compiled, and 0.1 s of imports for what stands here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from edge.errors import RequestError

if TYPE_CHECKING:
    from edge.structure.automaton import Dfa

DEPTH = 64  # of values and references; deeper ones are refused
STEPS = 20_000  # schemas held against one value: references may multiply them without end
TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "boolean": (bool,),
    "number": (int, float),
    "integer": (int, float),
    "string": (str,),
    "array": (list, tuple),
    "object": (Mapping,),
}
SCHEMAS = ("items", "additionalProperties", "not")  # one schema each
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
TABLES = ("properties", "$defs", "definitions")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
REST = ("type", "enum", "const", "required", "pattern", "uniqueItems", "$ref", "nullable")
# They say something and assert nothing.
ANNOTATIONS = (
    "$schema",
    "$id",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "format",
    "strict",
)
KNOWN = frozenset([*SCHEMAS, *LISTS, *TABLES, *COUNTS, *BOUNDS, *REST, *ANNOTATIONS])


def check_schema(schema: Mapping[str, Any], what: str) -> None:
    """Raise RequestError where `schema` is no schema or asserts what is not checked here; `what` names it."""
    try:
        json.dumps(schema, allow_nan=False)
        for fault in faults(schema, schema, 0):
            raise RequestError(f"{what}: {fault}"[:200], hint="write the schema without it")
    except (TypeError, ValueError, RecursionError):
        raise RequestError(f"{what} are not JSON", hint="give a JSON schema") from None


def faults(schema: object, root: Mapping[str, Any], depth: int) -> Iterator[str]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        yield f"{schema!r} is no schema"
        return
    if depth > DEPTH:
        yield "it nests too deep"
        return
    yield from own_faults(schema, root)
    for key in SCHEMAS:
        if key in schema:
            yield from faults(schema[key], root, depth + 1)
    for key in LISTS:
        parts = schema.get(key, [])
        if not isinstance(parts, list):
            yield f"{key!r} is no list"
            return
        for part in parts:
            yield from faults(part, root, depth + 1)
    for key in TABLES:
        table = schema.get(key, {})
        if not isinstance(table, Mapping):
            yield f"{key!r} is no object"
            return
        for part in table.values():
            yield from faults(part, root, depth + 1)


def own_faults(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a schema apart from those inside it."""
    if unknown := [key for key in schema if key not in KNOWN]:
        yield f"{unknown[0]!r} is not known"
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in TYPES:
            yield f"{kind!r} is no type"
    if not isinstance(schema.get("enum", [0]), list) or not schema.get("enum", [0]):
        yield "'enum' is no list of values"
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        yield "'required' is no list of names"
    for key in (*COUNTS, *BOUNDS):
        limit = schema.get(key, 1)
        if isinstance(limit, bool) or not isinstance(limit, int if key in COUNTS else (int, float)):
            yield f"{key!r} is no number"
        elif key == "multipleOf" and limit <= 0:
            yield "'multipleOf' is not above 0"
    if "pattern" in schema:
        try:
            matcher(schema["pattern"])
        except RequestError as error:
            yield str(error)
        except TypeError:
            yield "'pattern' is no text"
    if "$ref" in schema and target(schema["$ref"], root) is None:
        yield f"{schema['$ref']!r} refers to nothing inside it"


def target(reference: object, root: Mapping[str, Any]) -> Any:
    """What a reference inside the schema ("#", "#/$defs/x") means; None for nothing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: Any = root
    for step in reference[1:].split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        found = found.get(step) if isinstance(found, Mapping) else None
    return found if isinstance(found, (Mapping, bool)) else None


def misfit(value: Any, schema: Mapping[str, Any]) -> str:
    """Why a tool's arguments do not fit its parameters, in a few words; empty where they do.

    A name that the parameters do not list is refused unless they say `additionalProperties`, unlike in plain
    JSON Schema: a function has no use for an argument that it does not have.
    """
    names = schema.get("properties", {})
    refers = any(key in schema for key in ("$ref", "anyOf", "oneOf", "allOf", "additionalProperties"))
    if isinstance(value, Mapping) and not refers and (extra := [name for name in value if name not in names]):
        return f"there is no argument {extra[0]!r}"
    return why_not(value, schema, schema)


def why_not(value: Any, schema: Any, root: Mapping[str, Any], path: str = "") -> str:
    """Why a value at `path` does not fit a schema inside `root`; empty where it does."""
    try:
        return next(misfits(value, schema, Root(root), path, 0), "")
    except TooFar as far:
        return f"{path or 'the arguments'}: {far}"


class TooFar(Exception):
    """No answer: a `not` or a `oneOf` would take a refusal for one."""


class Root:
    """The schema that references are looked up in, and how many more steps may be taken."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema, self.left = schema, STEPS

    def step(self, depth: int) -> None:
        self.left -= 1
        if depth > DEPTH:
            raise TooFar("nested too deep")
        if self.left < 0:
            raise TooFar("the schema takes too long to check")


def misfits(value: Any, schema: Any, root: Root, path: str, depth: int) -> Iterator[str]:
    where = path or "the arguments"
    root.step(depth)
    if isinstance(schema, bool):
        if not schema:
            yield f"{where}: there is no such argument"
        return
    if value is None and schema.get("nullable") is True:  # OpenAPI's way to say ["…", "null"]
        return
    if "$ref" in schema:
        yield from misfits(value, target(schema["$ref"], root.schema), root, path, depth + 1)
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if kinds and not any(is_of(value, kind) for kind in kinds):
        yield f"{where}: {shown(value)} is not of type {' or '.join(kinds)}"
        return
    if "enum" in schema and not any(same(value, each) for each in schema["enum"]):
        yield f"{where}: {shown(value)} is none of {shown(schema['enum'])}"
    if "const" in schema and not same(value, schema["const"]):
        yield f"{where}: {shown(value)} is not {shown(schema['const'])}"
    if isinstance(value, str):
        yield from limits(len(value), schema, "Length", f"{where}: the text is")
        if "pattern" in schema and not matcher(schema["pattern"]).accepts(value):
            yield f"{where}: {shown(value)} does not match {schema['pattern']}"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from out_of_bounds(value, schema, where)
    elif isinstance(value, Mapping):
        yield from of_object(value, schema, root, path, depth)
    elif isinstance(value, (list, tuple)):
        yield from of_list(value, schema, root, path, depth)
    yield from combined(value, schema, root, path, depth)


def of_object(
    value: Mapping[str, Any], schema: Mapping[str, Any], root: Root, path: str, depth: int
) -> Iterator[str]:
    where = path or "the arguments"
    yield from limits(len(value), schema, "Properties", f"{where}: the members are")
    for name in schema.get("required", []):
        if name not in value:
            yield f"{where}: {name!r} is missing"
    names = schema.get("properties", {})
    for name, each in value.items():
        part = names.get(name, schema.get("additionalProperties", True))
        yield from misfits(each, part, root, f"{path}.{name}" if path else name, depth + 1)


def of_list(
    value: Sequence[Any], schema: Mapping[str, Any], root: Root, path: str, depth: int
) -> Iterator[str]:
    where = path or "the arguments"
    yield from limits(len(value), schema, "Items", f"{where}: the items are")
    if schema.get("uniqueItems") is True and len({canonical(each) for each in value}) < len(value):
        yield f"{where}: an item stands there twice"
    first = schema.get("prefixItems", [])
    for index, each in enumerate(value):
        part = first[index] if index < len(first) else schema.get("items", True)
        yield from misfits(each, part, root, f"{path}[{index}]", depth + 1)


def combined(value: Any, schema: Mapping[str, Any], root: Root, path: str, depth: int) -> Iterator[str]:
    where = path or "the arguments"

    def fits(part: Any) -> bool:
        return next(misfits(value, part, root, path, depth + 1), None) is None

    for part in schema.get("allOf", []):
        yield from misfits(value, part, root, path, depth + 1)
    if "anyOf" in schema and not any(map(fits, schema["anyOf"])):
        yield f"{where}: {shown(value)} fits none of the forms allowed"
    if "oneOf" in schema and sum(map(fits, schema["oneOf"])) != 1:
        yield f"{where}: {shown(value)} does not fit exactly one of the forms allowed"
    if "not" in schema and fits(schema["not"]):
        yield f"{where}: {shown(value)} is excluded"


def limits(count: int, schema: Mapping[str, Any], what: str, said: str) -> Iterator[str]:
    if count < schema.get(f"min{what}", 0):
        yield f"{said} fewer than {schema[f'min{what}']}"
    if count > schema.get(f"max{what}", count):
        yield f"{said} more than {schema[f'max{what}']}"


def out_of_bounds(value: float, schema: Mapping[str, Any], where: str) -> Iterator[str]:
    if value < schema.get("minimum", value):
        yield f"{where}: {value} is below {schema['minimum']}"
    if value > schema.get("maximum", value):
        yield f"{where}: {value} is above {schema['maximum']}"
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        yield f"{where}: {value} is not above {schema['exclusiveMinimum']}"
    if "exclusiveMaximum" in schema and value >= schema["exclusiveMaximum"]:
        yield f"{where}: {value} is not below {schema['exclusiveMaximum']}"
    # As they are written: decimal steps such as 0.1 are not exact in binary
    step = schema.get("multipleOf")
    if step and Fraction(str(value)) % Fraction(str(step)):
        yield f"{where}: {shown(value)} is no multiple of {step}"


def is_of(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[kind])


def same(left: Any, right: Any) -> bool:
    return canonical(left) == canonical(right)


def canonical(value: Any) -> str:
    """A text that JSON values share where they are equal: true is not 1, and 1.0 is 1."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, Mapping):
            return {name: plain(each) for name, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(plain(value), sort_keys=True)


@lru_cache(maxsize=256)
def matcher(pattern: str) -> Dfa:
    """What tells in one pass whether a pattern matches somewhere; the grammar of a forced call reads it alike.

    Raises RequestError for what is no regular expression, or one that needs to look back or ahead.
    """
    from edge.structure.kinds import text_automaton

    if not isinstance(pattern, str):
        raise TypeError(pattern)
    return text_automaton((pattern,), 0, None)


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
