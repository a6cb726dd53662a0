"""Schemas that are invalid, contradict themselves, are beyond a grammar, or hostile: one line each, and quickly."""

from __future__ import annotations

import time

import pytest

from edge.errors import RequestError
from edge.structure.schema import read_schema_file, schema_grammar


def deep(levels, inner):
    for _ in range(levels):
        inner = {"type": "array", "items": inner}
    return inner


REFUSED = [
    ({"not": {}}, "not", "at #;"),
    ({"properties": {"a/b": {"multipleOf": 2}}}, "multipleOf", "#/properties/a~1b"),
    ({"items": {"if": {}}}, "if", "#/items"),
    ({"patternProperties": {}}, "patternProperties", "#"),
    ({"dependentSchemas": {}}, "dependentSchemas", "#"),
    ({"type": "array", "uniqueItems": True}, "uniqueItems", "#"),
    ({"requird": ["a"]}, "requird", "not known"),
    ({"$ref": "https://example.org/s.json"}, "remote", "nothing is fetched"),
    ({"$ref": "#/$defs/none"}, "leads nowhere", "#/$defs/none"),
    ({"$ref": "#name"}, "anchor", "#"),
    ({"$ref": "#"}, "refers to itself", "#"),
    (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        "refers to itself",
        "#/$defs/a",
    ),
    (
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        "satisfied by nothing",
        "without end",
    ),
    ({"type": "strin"}, "unknown type", "strin"),
    ({"type": 3}, "type that is not", "#/type"),
    ({"type": []}, "type that is not", "#/type"),
    ({"properties": []}, "properties that is not", "#/properties"),
    ({"items": [{}]}, "items that is not", "#/items"),
    ({"minimum": "3"}, "minimum that is not", "a number"),
    ({"minLength": -1}, "minLength that is not", "whole number"),
    ({"minLength": 1.5}, "minLength that is not", "whole number"),
    ({"required": "a"}, "required that is not", "names"),
    (
        {"type": "object", "properties": {"a": {}}, "required": ["b"], "additionalProperties": False},
        "requires 'b'",
        "#",
    ),
    ({"minimum": 3, "maximum": 2}, "minimum of 3", "no number"),
    ({"minimum": 3, "exclusiveMaximum": 3}, "minimum of 3", "no number"),
    ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4}, "satisfied by nothing", "#"),
    ({"minLength": 3, "maxLength": 2}, "minLength above", "#"),
    ({"minItems": 3, "maxItems": 2}, "minItems above", "#"),
    ({"enum": []}, "empty enum", "#"),
    ({"type": "string", "enum": [1]}, "no value", "#"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "allOf", "#/allOf/1"),
    (
        {
            "allOf": [
                {"properties": {"a": {"const": 1}}, "required": ["a"], "type": "object"},
                {"properties": {"a": {"const": 2}}},
            ]
        },
        "satisfied by nothing",
        "#",
    ),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "0 and 1 can both hold", "#/oneOf"),
    (
        {"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]},
        "can both hold",
        "anyOf",
    ),
    ({"anyOf": []}, "anyOf that is not", "#/anyOf"),
    ({"format": "hostname-of-sorts"}, "format", "known are"),
    ({"type": "string", "pattern": "("}, "not closed", "at character 1 in the schema at #/pattern;"),
    (
        {"properties": {"a": {"items": {"pattern": "(?=a)"}}}},
        "the regular expression has",
        "in the schema at #/properties/a/items/pattern;",
    ),
    ({"type": "string", "pattern": "^a$", "minLength": 2}, "no text satisfies", "#"),
    ({"type": "string", "pattern": "(a|b)*a(a|b){40}"}, "states", "#/pattern"),
    ({"type": "string", "pattern": "((a{1000}){1000}){1000}"}, "states", "repetitions"),
    ({"type": "string", "pattern": "a.b", "maxLength": 900_000}, "states", "#/pattern"),
    ({"type": "array", "maxItems": 10**9}, "maxItems above", "10000"),
    ({"type": "string", "maxLength": 10**9}, "maxLength above", "1000000"),
    ({"type": "object", "minProperties": 1}, "minProperties", "required"),
    ({"type": "number", "minimum": 10**30}, "more than 20 digits", "limit"),
    ({"enum": [float("nan")]}, "not JSON", "float values"),
    ('{"minimum": NaN}', "NaN", "JSON"),
    ('{"maximum": 1e999999999999}', "number 1e9999", "double"),
    ('{"a": 1, "a": 2}', "'a' twice", "remove"),
    ("{nope", "not JSON", "line 1"),
    ("", "not JSON", "line 1"),
    ("[1]", "is no object", "#"),
    ('{"const": "\\ud800"}', "surrogate", "character"),
    ("[" * 100_000, "nests", "deep"),
    (deep(201, {}), "nests", "deep"),
    ('{"items":' * 10_000 + "{}" + "}" * 10_000, "nests", "deep"),
    ('{"description": "' + "x" * 10_000_000 + '"}', "larger than", "smaller"),
    (
        {
            "$defs": {str(k): {"$ref": f"#/$defs/{k + 1}"} for k in range(300)} | {"300": {}},
            "$ref": "#/$defs/0",
        },
        "more than 100",
        "last",
    ),
    (
        deep(50, {"anyOf": [{"enum": [str(k)], "minLength": 9} for k in range(3)]}),
        "no value",
        "#/items/items",
    ),
    (False, "satisfied by nothing", "#"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]!s:.50}")
def test_refuses_in_one_line_and_quickly(case):
    schema, said, also = case
    started = time.process_time()
    with pytest.raises(RequestError) as caught:
        schema_grammar(schema)
    assert time.process_time() - started < 5
    line = caught.value.line
    assert said in line
    assert also in line
    assert "\n" not in line
    assert len(line) < 600


def test_python_values_that_are_no_json_are_refused():
    loop = {}
    loop["items"] = loop
    for schema in (loop, {"const": {1, 2}}, {"const": float("inf")}):
        with pytest.raises(RequestError, match="not JSON"):
            schema_grammar(schema)


def test_a_schema_file_is_read_or_refused(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('\ufeff{"const": 1}', encoding="utf-8")
    assert schema_grammar(read_schema_file(path))
    for name, data, said in (
        ("binary", b"\xff\xfe{}", "not UTF-8 at byte 0"),
        ("large", b" " * (1 << 20) + b"  ", "larger than"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RequestError, match=said):
            read_schema_file(tmp_path / name)
    for path, said in (
        (tmp_path, "a folder"),
        (tmp_path / "none", "not there"),
        ("/dev/zero", "no file"),
        ("a\0b", "not there"),
    ):
        with pytest.raises(RequestError, match=said):
            read_schema_file(type(tmp_path)(path))
