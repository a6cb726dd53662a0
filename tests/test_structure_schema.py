"""Grammars of JSON Schemas: what they let through is valid by an independent validator, and what is valid gets in."""

from __future__ import annotations

import json
import random
import re
from datetime import datetime

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structures import Native, pairs, walk
from tiny import tiny_llama

from edge.engine.gbnf import check_grammar
from edge.structure.schema import schema_grammar

FORMAT = jsonschema.Draft202012Validator.FORMAT_CHECKER


@FORMAT.checks("time")
def is_time(value):
    return not isinstance(value, str) or is_date_time(f"2000-01-01T{value}")


@FORMAT.checks("date-time")
def is_date_time(value):
    if not isinstance(value, str):
        return True
    try:
        return datetime.fromisoformat(re.sub(r"\.\d+", "", value.replace("Z", "+00:00"))).tzinfo is not None
    except ValueError:
        return False


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    found = Native(tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))
    yield found
    found.close()


def valid(schema, value):
    return jsonschema.Draft202012Validator(schema, format_checker=FORMAT).is_valid(value)


def walks(schema, count=12, steps=200):
    """Random answers by a schema's grammar."""
    text = schema_grammar(schema)
    check_grammar(text)
    draw = random.Random(5)
    return [walk(text, draw, steps) for _ in range(count)]


PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12, "description": "who"},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 'q"\\\n']}, "maxItems": 3},
        "email": {"type": "string", "format": "email"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            },
            "required": ["value"],
        }
    },
    "$ref": "#/$defs/node",
}
SHAPES = {
    "shape": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "circle"}, "r": {"type": "number"}},
                "required": ["kind", "r"],
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "box"}, "w": {"type": "integer"}},
                "required": ["kind"],
            },
        ]
    },
}
# schema, values that it takes, values that it does not
CASES = [
    (
        PERSON,
        [{"name": "Ann", "age": 7}, {"name": "é😀", "age": 130, "tags": ["a", 'q"\\\n']}],
        [
            {"age": 7},
            {"name": "Ann", "age": 131},
            {"name": "Ann", "age": -1},
            {"name": "", "age": 1},
            {"name": "Ann", "age": 1, "x": 1},
            {"name": "A" * 13, "age": 1},
            {"name": "Ann", "age": 1.5},
        ],
    ),
    (
        TREE,
        [{"value": 1}, {"value": -2.5e3, "children": [{"value": 0, "children": []}]}],
        [{}, {"value": "1"}, []],
    ),
    (SHAPES["shape"], [{"kind": "circle", "r": 2}, {"kind": "box"}], [{"kind": "circle"}, {"kind": "tri"}]),
    ({}, [None, True, 0, -0.5, "", "a\u0001b", [], {}, [[1], {"a": {"b": [None]}}]], []),
    (True, [1, "a", []], []),
    ({"type": ["string", "null"], "maxLength": 2}, [None, "", "ab"], ["abc", 1, False]),
    ({"type": "string", "nullable": True}, ["", None], [0]),
    (
        {"type": "string", "minLength": 2500, "maxLength": 4500},
        ["x" * 2500, "x" * 4500],
        ["x" * 2499, "x" * 4501],
    ),
    (
        {"type": "string", "pattern": "^[a-c]+$", "minLength": 2, "maxLength": 4},
        ["ab", "abca"],
        ["a", "abcab", "xy"],
    ),
    ({"type": "string", "pattern": 'b"\\d'}, ['b"1', 'xx\nb"1yy'], ["b", ""]),
    (
        {"type": "string", "format": "date"},
        ["2026-11-22", "2024-02-29", "2000-02-29"],
        ["2026-02-29", "2026-13-01", "1900-02-29"],
    ),
    ({"type": "string", "format": "time"}, ["23:59:59Z", "00:00:00.5+01:30"], ["24:00:00Z", "10:00"]),
    (
        {"type": "string", "format": "date-time"},
        ["2026-11-22T20:44:53Z"],
        ["2026-11-22", "2026-11-31T00:00:00Z"],
    ),
    ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
    ({"type": "string", "format": "email"}, ["ann.lee+x@mail.example.org"], ["ann", "a@b", "@b.org"]),
    ({"type": "string", "format": "ipv4"}, ["127.0.0.1", "255.255.255.255"], ["256.1.1.1", "01.1.1.1"]),
    ({"type": "integer", "minimum": -15, "maximum": 1203}, [-15, -9, 0, 7, 99, 1203], [-16, 1204, 2000]),
    ({"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12}, [10, 11], [9, 12]),
    ({"type": "integer", "maximum": -3}, [-3, -(10**15)], [-2, 0, 3]),
    (
        {"type": "number", "minimum": -0.25, "exclusiveMaximum": 10.5},
        [-0.25, -0.2, 0, 10.4999, 3],
        [-0.26, 10.5, 11],
    ),
    ({"type": "number", "exclusiveMinimum": 0}, [0.1, 1, 12345], [0, -1]),
    ({"type": "number", "maximum": -1.5}, [-1.5, -2, -100.25], [-1.4, 0, 1]),
    ({"type": "number"}, [0, -1, 1.5, 1e-7, 6.02e23, 1e299], ["1"]),
    (
        {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3},
        [[1, 2], [1, 2, 3]],
        [[], [1], [1, 2, 3, 4], [1, "2"]],
    ),
    (
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "items": False,
            "minItems": 1,
        },
        [[1], [1, "a"]],
        [[], ["a"], [1, "a", 2]],
    ),
    (
        {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}},
        [[], [1], [1, 2, 2]],
        [[2], [1, 1]],
    ),
    ({"type": "array", "items": False}, [[]], [[1]]),
    (
        {"enum": [1, 2.5, "a", None, True, {"k": [1, {"z": "é"}]}]},
        [1, 2.5, "a", None, True, {"k": [1, {"z": "é"}]}],
        [2, False, {}],
    ),
    ({"const": "a/b"}, ["a/b"], ["a"]),
    ({"type": "string", "enum": ["a", 1, "bb"], "maxLength": 1}, ["a"], ["bb", 1]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1, "": 2}], [{"a": "b"}]),
    (
        {
            "properties": {"a": {"type": "string"}},
            "additionalProperties": {"type": "integer"},
            "type": "object",
            "required": ["z"],
        },
        [{"z": 3}, {"a": "x", "z": 1, "b": 2}],
        [{"a": 1, "z": 1}, {"a": "x"}],
    ),
    ({"type": "object", "properties": {"a": False, "b": {"type": "null"}}}, [{}, {"b": None}], [{"a": 1}]),
    (
        {"type": "object", "properties": {"x/y~z": True}, "required": ["x/y~z", "w"]},
        [{"x/y~z": 1, "w": 2}],
        [{"x/y~z": 1}],
    ),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
                {"properties": {"a": {"minimum": 3, "type": ["integer", "string"]}, "b": {"type": "null"}}},
            ]
        },
        [{"a": 3}, {"a": 4, "b": None}],
        [{"a": 2}, {"a": "x"}, {}],
    ),
    (
        {"allOf": [{"minLength": 2}, {"maxLength": 3}, {"pattern": "^a"}], "type": "string"},
        ["ab", "abc"],
        ["a", "bcd", "abcd"],
    ),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": 1}, {"b": 2}, {"a": 1, "b": 2}],
        [{}],
    ),
    (
        {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 5}, {"type": "string"}]},
        [3, 5, "x"],
        [4, None],
    ),
    (
        {"oneOf": [{"pattern": "^a", "type": "string"}, {"pattern": "^b", "type": "string"}]},
        ["ab", "b"],
        ["c", ""],
    ),
    (
        {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
            "required": ["next"],
        },
        [{"next": None}, {"next": {"next": None}}],
        [{}],
    ),
    (
        {"definitions": {"a b/c": {"type": "integer"}}, "$ref": "#/definitions/a%20b~1c", "minimum": 3},
        [3],
        [2],
    ),
    ({"minLength": 2, "minimum": 3}, ["ab", 3, None, []], ["a", 2]),
    ({"minimum": -1e308, "maximum": 1e308, "type": "number"}, [0, -5.5, 10**15], []),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: json.dumps(case[0])[:60])
def test_takes_what_is_valid_and_nothing_else(native, case):
    schema, good, bad = case
    text = schema_grammar(schema)
    for value in good:
        assert valid(
            {k: v for k, v in schema.items() if k != "nullable"}
            if isinstance(schema, dict) and value is not None
            else True,
            value,
        )
        for separators in ((",", ":"), (", ", ": ")):
            assert native.takes(text, json.dumps(value, separators=separators, ensure_ascii=False)), value
    for value in bad:
        assert not native.takes(text, json.dumps(value, separators=(",", ":"), ensure_ascii=False)), value
    for answer in walks(schema):
        value = json.loads(answer)
        if isinstance(schema, dict) and schema.get("nullable") and value is None:
            continue
        assert valid(schema, value), answer


def test_takes_indented_json_and_no_endless_space(native):
    text = schema_grammar(TREE)
    assert native.takes(text, json.dumps({"value": 1, "children": [{"value": 2}, {"value": 3}]}, indent=2))
    assert not native.takes(text, '{  "value": 1}')
    assert not native.takes(text, '{\n\n"value": 1}')
    assert not native.takes(text, '{"value": 1\n' + " " * 30 + "}")


@pytest.mark.parametrize(
    "text",
    [
        '"a\nb"',
        '"\\x"',
        '"\\ud800"',
        '"\\ud83d\\u0041"',
        "'a'",
        '"a',
        "01",
        "-",
        "+1",
        ".5",
        "1.",
        "[1,]",
        '{"a":1,}',
        "NaN",
        "nul",
    ],
)
def test_what_is_not_json_is_not_taken(native, text):
    assert not native.takes(schema_grammar({}), text)


@pytest.mark.parametrize(
    "text", [r'"\u0041\n\/\ud83d\ude00é"', "-0.5e-3", "[ 1, [ ] ]", '{"\\"": {}}', "1E+5"]
)
def test_json_in_any_spelling_is_taken(native, text):
    assert native.takes(schema_grammar({}), text)


def test_a_further_name_is_never_one_that_is_taken(native):
    text = schema_grammar(
        {
            "type": "object",
            "properties": {"ab": {"type": "string"}},
            "additionalProperties": {"type": "integer"},
        }
    )
    assert native.takes(text, '{"ab":"x","a":1,"abc":2}')
    assert not native.takes(text, '{"ab":1}')
    assert not native.takes(text, '{"\\u0061b":1}')


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(pair=pairs(), seed=st.integers(0, 2**32))
def test_any_schema_takes_its_instances_and_yields_only_instances(native, pair, seed):
    schema, value = pair
    assert valid(schema, value)
    text = schema_grammar(schema)
    assert native.takes(text, json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    draw = random.Random(seed)
    for _ in range(5):
        answer = walk(text, draw, 120)
        assert valid(schema, json.loads(answer)), answer


def test_annotations_are_ignored(native):
    schema = {
        "title": "t",
        "default": 3,
        "examples": [1],
        "$id": "x",
        "$comment": "c",
        "x-order": 3,
        "const": 1,
    }
    assert native.takes(schema_grammar(schema), "1")


def test_an_optional_member_that_nothing_satisfies_is_left_out():
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"type": "null"}}, "required": ["b"]}
    schema["properties"]["a"] = {
        "type": "object",
        "properties": {"a": {"$ref": "#/properties/a"}},
        "required": ["a"],
    }
    assert all("a" not in json.loads(answer) for answer in walks(schema))


def test_large_limits_are_kept_to(native):
    text = schema_grammar({"type": "string", "maxLength": 1_000_000})
    assert native.takes(text, '"' + "ab" * 3000 + '"')
    assert len(text) < 200_000
    assert schema_grammar({"type": "array", "maxItems": 10_000, "items": {"type": "null"}})
