"""A JSON Schema read and held to its own rules: what it says that a grammar cannot is refused, never ignored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import unquote

from edge.errors import RequestError
from edge.structure.formats import FORMATS

MAX_SCHEMA = 1 << 20  # bytes
MAX_NESTING = 200
MAX_NUMBER = 200  # characters of a number
MAX_PLACES = 40  # digits behind the point of a limit
MAX_LENGTH = 1_000_000  # minLength, maxLength
MAX_ITEMS = 10_000  # minItems, maxItems

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Annotations: they say nothing about which instances are valid.
IGNORED = {
    *("$schema", "$id", "$comment", "$defs", "definitions", "$vocabulary", "$anchor", "title", "description"),
    *("default", "example", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
    *("contentEncoding", "contentMediaType", "contentSchema"),
}
# Assertions that no context-free grammar of reasonable size can hold to.
REFUSED = {
    *(
        "not",
        "if",
        "then",
        "else",
        "dependentSchemas",
        "dependentRequired",
        "dependencies",
        "patternProperties",
    ),
    *("propertyNames", "multipleOf", "contains", "minContains", "maxContains", "unevaluatedProperties"),
    *("unevaluatedItems", "additionalItems", "$dynamicRef", "$recursiveRef"),
}


def no(what: str, pointer: str, hint: str) -> NoReturn:
    """Raise RequestError that names the place."""
    raise RequestError(f"the schema {what} at {place(pointer)}", hint=hint)


def place(pointer: str) -> str:
    """A pointer as people write it; a long one shortened."""
    return f"#{pointer}" if len(pointer) < 200 else f"#{pointer[:100]}…{pointer[-80:]}"


def child(pointer: str, *names: object) -> str:
    """The JSON pointer (RFC 6901) of a member."""
    return pointer + "".join("/" + str(name).replace("~", "~0").replace("/", "~1") for name in names)


def read_schema(schema: str | Mapping[str, Any] | bool) -> Any:
    """A schema as Python values, numbers with a point as Decimal. Raises RequestError for what is no schema."""
    if not isinstance(schema, str):
        try:
            schema = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"the schema is not JSON ({error!s:.100})", hint="give plain dicts and lists"
            ) from None
    if len(schema) > MAX_SCHEMA:
        raise RequestError(f"the schema is larger than {MAX_SCHEMA >> 20} MiB", hint="use a smaller one")
    try:
        found = json.loads(
            schema, object_pairs_hook=unique, parse_constant=constant, parse_float=decimal, parse_int=integer
        )
    except json.JSONDecodeError as error:
        raise RequestError(
            f"the schema is not JSON: {error.msg} in line {error.lineno}, column {error.colno}",
            hint="check it",
        ) from None
    except RecursionError:
        raise too_deep() from None
    inspect(found)
    return found


def too_deep() -> RequestError:
    return RequestError(
        f"the schema nests more than {MAX_NESTING} levels deep", hint="make it flatter, with $ref"
    )


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise RequestError(f"the schema has {name!r:.60} twice in one object", hint="remove one")
    return found


def constant(name: str) -> NoReturn:
    raise RequestError(f"the schema holds {name}, which JSON does not have", hint="leave the limit out")


def decimal(text: str) -> Decimal:
    if len(text) <= MAX_NUMBER:
        value = Decimal(text)
        if value.is_finite() and (not value or abs(value.adjusted()) <= MAX_NUMBER * 2):
            return value
    raise RequestError(f"the schema holds the number {text:.40}", hint="use one that a double can hold")


def integer(text: str) -> int:
    if len(text) > MAX_NUMBER:
        raise RequestError(f"the schema holds a number of {len(text)} digits", hint="use a smaller one")
    return int(text)


def inspect(value: Any) -> None:
    """Raise RequestError for what nests too deeply and for texts that no answer can hold."""
    todo = [(value, 0)]
    while todo:
        value, depth = todo.pop()
        if depth > MAX_NESTING:
            raise too_deep()
        members: list[Any] = value if isinstance(value, list) else []
        if isinstance(value, dict):
            members = [*value, *value.values()]
        todo.extend((member, depth + 1) for member in members)
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RequestError("the schema holds half a surrogate pair", hint="write the character itself")


def resolved(root: Any, ref: str, pointer: str) -> tuple[str, Any]:
    """What a $ref at `pointer` leads to, and its own pointer. Raises RequestError for a remote or dangling one."""
    if not ref.startswith("#"):
        no(f"has a remote $ref {ref!r:.80}", pointer, "copy it into $defs: nothing is fetched")
    path = unquote(ref[1:])
    if path and not path.startswith("/"):
        no(f"has a $ref to the anchor {ref!r:.80}", pointer, "write it as a pointer: #/$defs/name")
    here, found = root, ""
    for part in path.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, dict) and name in here:
            here = here[name]
        elif (
            isinstance(here, list)
            and name.isascii()
            and name.isdecimal()
            and len(name) < 9
            and int(name) < len(here)
        ):
            here = here[int(name)]
        else:
            no(f"has a $ref {ref!r:.80} that leads nowhere", pointer, "write it as a pointer: #/$defs/name")
        found = child(found, name)
    return found, here


def is_count(value: Any) -> bool:
    return (
        isinstance(value, (int, Decimal))
        and not isinstance(value, bool)
        and value >= 0
        and value == int(value)
    )


def is_number(value: Any) -> bool:
    return isinstance(value, (int, Decimal)) and not isinstance(value, bool)


def is_schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def are_names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


def is_type(value: Any) -> bool:
    return isinstance(value, str) or (are_names(value) and bool(value))


def are_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_schema(item) for item in value)


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def are_members(value: Any) -> bool:
    return isinstance(value, dict) and all(is_schema(member) for member in value.values())


COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(COUNTS, (is_count, "a whole number from 0")),
    **dict.fromkeys(LIMITS, (is_number, "a number")),
    **dict.fromkeys(("additionalProperties", "items"), (is_schema, "a schema")),
    **dict.fromkeys(
        ("anyOf", "oneOf", "allOf", "prefixItems"), (are_schemas, "a list of schemas, at least one")
    ),
    **dict.fromkeys(("pattern", "format", "$ref"), (is_text, "a text")),
    **dict.fromkeys(("uniqueItems", "nullable"), (is_flag, "true or false")),
    "type": (is_type, "a type, or a list of different ones"),
    "required": (are_names, "a list of different names"),
    "enum": (lambda value: isinstance(value, list), "a list"),
    "const": (lambda value: True, "a value"),
    "properties": (are_members, "an object of schemas"),
}


def check(node: Any, pointer: str) -> None:
    """Raise RequestError where a schema, its subschemas apart, is invalid, unsatisfiable or beyond a grammar."""
    if isinstance(node, bool):
        return
    if not isinstance(node, dict):
        no("is no object", pointer, "a schema is an object, true or false")
    for keyword, value in node.items():
        if keyword in IGNORED or keyword.startswith("x-"):
            continue
        if keyword in REFUSED:
            no(
                f"has {keyword}, which a grammar cannot express,",
                pointer,
                "leave it out, and check the answer for it",
            )
        if keyword not in VALUES:
            no(
                f"has {keyword!r:.60}, which is not known,",
                pointer,
                "leave it out; annotations of your own begin with x-",
            )
        holds, what = VALUES[keyword]
        if not holds(value):
            no(f"has a {keyword} that is not {what}", child(pointer, keyword), "see JSON Schema 2020-12")
    if node.get("uniqueItems"):
        no(
            "has uniqueItems, which a grammar cannot express,",
            pointer,
            "leave it out, and check the answer for it",
        )
    types = node.get("type", [])
    for name in [types] if isinstance(types, str) else types:
        if name not in TYPES:
            no(f"has an unknown type {name!r:.60}", pointer, f"use one of {', '.join(TYPES)}")
    if node.get("enum") == []:
        no("has an empty enum", pointer, "no value would be valid")
    if (name := node.get("format")) is not None and name not in FORMATS:
        no(f"has the format {name!r:.60}", pointer, f"known are {', '.join(FORMATS)}; a pattern says others")
    check_limits(node, pointer)
    check_members(node, pointer)


def check_limits(node: dict[str, Any], pointer: str) -> None:
    for keyword in LIMITS:
        value = Decimal(node.get(keyword, 0)).normalize()
        if value and -int(value.as_tuple().exponent) > MAX_PLACES:
            no(f"has a {keyword} of more than {MAX_PLACES} digits behind the point", pointer, "round it")
    for name, most in (("Length", MAX_LENGTH), ("Items", MAX_ITEMS)):
        for keyword in (f"min{name}", f"max{name}"):
            if node.get(keyword, 0) > most:
                no(f"has a {keyword} above {most}", pointer, "use a smaller one, or leave it out")
    for low, high in (
        ("minLength", "maxLength"),
        ("minItems", "maxItems"),
        ("minProperties", "maxProperties"),
    ):
        if node.get(low, 0) > node.get(high, node.get(low, 0)):
            no(f"has a {low} above its {high}", pointer, "no value would be valid")
    for low, high, strict in (
        ("minimum", "maximum", False),
        ("exclusiveMinimum", "maximum", True),
        ("minimum", "exclusiveMaximum", True),
        ("exclusiveMinimum", "exclusiveMaximum", True),
    ):
        if low in node and high in node and (node[low] > node[high] or (strict and node[low] == node[high])):
            no(
                f"has a {low} of {node[low]} and a {high} of {node[high]}",
                pointer,
                "no number would be valid",
            )


def check_members(node: dict[str, Any], pointer: str) -> None:
    known, required = node.get("properties", {}), node.get("required", [])
    if node.get("additionalProperties") is False:
        for name in required:
            if name not in known:
                no(
                    f"requires {name!r:.60}, which additionalProperties rules out,",
                    pointer,
                    "add it to properties",
                )
    if node.get("minProperties", 0) > len(required):
        no(
            "has minProperties, which a grammar cannot express,",
            pointer,
            "name what must be there in required",
        )
    closed = node.get("additionalProperties", not known) is False
    if "maxProperties" in node and not (closed and len({*known, *required}) <= node["maxProperties"]):
        no(
            "has maxProperties, which a grammar cannot express,",
            pointer,
            "name the properties that there may be",
        )
