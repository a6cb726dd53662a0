"""JSON Schema (draft 2020-12) to GBNF: every answer by the grammar is valid by the schema.

Where JSON Schema leaves an answer free, the grammar takes the form that a small model comes to an end with: properties
in the order they are named and no others unless additionalProperties says so, white space of one break and its
indentation at most, numbers of at most 20 digits before and behind the point.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.engine.gbnf import check_grammar
from edge.errors import RequestError
from edge.structure.automaton import ANY, Repeat, compiled, without, words
from edge.structure.document import MAX_SCHEMA, no, read_schema
from edge.structure.files import read_text
from edge.structure.kinds import (
    Array,
    Boolean,
    Conj,
    Literal,
    Null,
    Number,
    Object,
    Shape,
    Text,
    json_text,
)
from edge.structure.numbers import decimals, integers
from edge.structure.rules import PLAIN, Body, Item, Ref, Rules, bracket, escaped, literal
from edge.structure.shapes import Shapes

INDENT = 20  # spaces behind a break; more would be room to spin in
BLOCK = 1_000  # characters of a length that are counted by one rule
MAX_RULES = 50_000


def schema_grammar(schema: str | Mapping[str, Any] | bool) -> str:
    """GBNF of the JSON texts that are valid by a schema, given as JSON text or as Python values.

    Raises RequestError, with the keyword and its JSON pointer, for what is no valid schema, what nothing satisfies,
    and what a grammar cannot express (not, if, patternProperties, multipleOf, uniqueItems, a oneOf whose branches
    overlap, remote references, …). Annotations are ignored.
    """
    try:
        text = _Writer(Shapes(read_schema(schema))).text()
    except RecursionError:
        raise RequestError("the schema refers through too many levels", hint="make it flatter") from None
    check_grammar(text)
    return text


def read_schema_file(path: Path) -> str:
    """The text of a schema file. Raises RequestError for one that cannot be read."""
    return read_text(path, "schema", MAX_SCHEMA)


class _Writer:
    """Rules of every value that the root leads to; a value's rule is written once, whoever needs it."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.rules = Rules()
        self.names: dict[Conj, str] = {}
        self.made: dict[object, Ref] = {}
        self.todo: list[Conj] = []

    def text(self) -> str:
        root = self.value(self.shapes.at(""))
        while self.todo:
            conj = self.todo.pop()
            self.rules.add(self.names[conj], self.alternatives(self.shapes.of(conj)))
            if len(self.rules.bodies) > MAX_RULES:
                no(
                    "needs too many rules",
                    conj[0] if conj else "",
                    "use fewer combinations of allOf and $ref",
                )
        self.rules.add("root", [[root]])
        without_end = set(self.rules.prune())
        if "root" in without_end:
            self.refuse(without_end)
        return self.rules.text()

    def refuse(self, without_end: set[str]) -> None:
        """Name the schema that nothing satisfies: the first one that no other of them is to blame for."""
        for conj, name in self.names.items():
            if name in without_end and not self.shapes.of(conj):
                pointer = next((p for p in conj if p.startswith("/") or not p), "")
                no("is satisfied by nothing", pointer, "what it asks for contradicts itself, or is false")
        no("is satisfied by nothing", "", "it asks for itself without end, or for what it rules out")

    def value(self, conj: Conj) -> Ref:
        """The rule of what all schemas in `conj` allow."""
        if conj not in self.names:
            self.names[conj] = f"v{len(self.names)}"
            self.todo.append(conj)
        return Ref(self.names[conj])

    def once(self, key: object, prefix: str, body: Body) -> Ref:
        """A rule that is written the first time that `key` asks for it."""
        if key not in self.made:
            self.made[key] = self.rules.add(self.rules.fresh(prefix), body)
        return self.made[key]

    def alternatives(self, shapes: tuple[Shape, ...]) -> Body:
        texts: dict[str, None] = {}
        body: Body = []
        for shape in shapes:
            if isinstance(shape, Literal):  # compact, and as models space it
                texts[json_text(shape.value)] = None
                texts[json_text(shape.value, comma=", ", colon=": ")] = None
            else:
                body.append([self.shape(shape)])
        if texts:
            body.append([self.rules.automaton(words(texts))])
        return body

    def shape(self, shape: Shape) -> Item:
        if isinstance(shape, Null):
            return literal("null")
        if isinstance(shape, Boolean):
            return self.once("boolean", "b", [[literal("true")], [literal("false")]])
        if shape not in self.made:
            if isinstance(shape, Number):
                self.made[shape] = self.number(shape)
            elif isinstance(shape, Text):
                self.made[shape] = self.string(shape)
            elif isinstance(shape, Array):
                self.made[shape] = self.array(shape)
            elif isinstance(shape, Object):
                self.made[shape] = self.object(shape)
        return self.made[shape]

    def number(self, shape: Number) -> Ref:
        if shape.whole:
            low = None if shape.low is None else int(shape.low.to_integral_value("ROUND_CEILING"))
            high = None if shape.high is None else int(shape.high.to_integral_value("ROUND_FLOOR"))
            low = low + 1 if low is not None and shape.low_open and low == shape.low else low
            high = high - 1 if high is not None and shape.high_open and high == shape.high else high
            return self.rules.automaton(integers(low, high))
        return self.rules.automaton(
            decimals(shape.low, shape.high, low_open=shape.low_open, high_open=shape.high_open)
        )

    def string(self, shape: Text) -> Ref:
        quote = literal('"')
        if shape.patterns:
            inner = self.rules.automaton(shape.automaton(), in_json=True)
            return self.rules.add(self.rules.fresh("t"), [[quote, inner, quote]])
        row: list[Item] = [quote]
        if shape.low:
            row.append(self.block(shape.low))
        row.append(self.rest() if shape.high is None else self.up_to(shape.high - shape.low))
        return self.rules.add(self.rules.fresh("t"), [row])

    def letter(self) -> Ref:
        """One character of a JSON string (RFC 8259, section 7); never half a surrogate pair."""
        digit, low, slash = "[0-9a-fA-F]", "[c-fC-F]", literal("\\")
        code: Body = [
            ["[0-9a-ce-fA-CE-F]", digit, digit, digit],
            ["[dD]", "[0-7]", digit, digit],
            ["[dD]", "[89abAB]", digit, digit, literal("\\u"), "[dD]", low, digit, digit],
        ]
        hexadecimal = self.once("code", "h", code)
        escape = self.once("escape", "e", [[r'["\\/bfnrt]'], [literal("u"), hexadecimal]])
        return self.once("letter", "x", [[bracket(PLAIN)], [slash, escape]])

    def rest(self) -> Ref:
        """Any characters and the closing quote."""
        if "rest" not in self.made:
            letter = self.letter()
            self.made["rest"] = Ref("chars")
            self.rules.add("chars", [[literal('"')], [letter, Ref("chars")]])
        return self.made["rest"]

    def block(self, count: int) -> Ref:
        """Exactly so many characters, by halves."""
        if count == 1:
            return self.letter()
        if ("block", count) not in self.made:
            self.once(("block", count), "k", [[self.block(count // 2), self.block(count - count // 2)]])
        return self.made["block", count]

    def up_to(self, count: int) -> Ref:
        """At most so many characters and the closing quote. Above two blocks, whole blocks and then the rest of one."""
        if ("up to", count) in self.made:
            return self.made["up to", count]
        large = count >= 2 * BLOCK
        steps = range(count % BLOCK + BLOCK, count + 1, BLOCK) if large else range(count + 1)
        for k in steps:
            body: Body = [[literal('"')]]
            if large and k >= 2 * BLOCK:
                body = [[self.block(BLOCK), self.up_to(k - BLOCK)], [self.up_to(BLOCK - 1)]]
            elif large:
                self.up_to(k)
                continue
            elif k:
                body.append([self.letter(), self.made["up to", k - 1]])
            self.once(("up to", k), "l", body)
        return self.made["up to", count]

    def space(self) -> Ref:
        """Nothing, a space, or one break and its indentation."""
        if "space" not in self.made:
            indent = self.once(("indent", 0), "i", [[]])
            for k in range(1, INDENT + 1):
                indent = self.once(("indent", k), "i", [[literal(" "), indent], []])
            self.once("space", "w", [[], [literal(" ")], [literal("\n"), indent]])
        return self.made["space"]

    def array(self, shape: Array) -> Ref:
        high = shape.high
        if shape.closed:
            high = min(max(len(shape.prefix), shape.low), len(shape.prefix) if high is None else high)
            high = max(high, shape.low)
        last = max(shape.low, len(shape.prefix)) if high is None else high
        prefix, space = self.rules.fresh("a"), self.space()
        for k in range(last, 0, -1):  # tail k: what follows k items
            body: Body = []
            if k >= shape.low:
                body.append([space, literal("]")])
            if high is None or k < high:
                following = Ref(f"{prefix}-{min(k + 1, last)}")
                body.append([literal(","), space, self.value(shape.item(k)), following])
            self.rules.add(f"{prefix}-{k}", body)
        begin: Body = [[literal("]")]] if not shape.low else []
        if high != 0:
            tail = Ref(f"{prefix}-1") if last else self.endless(prefix, shape)
            begin.append([self.value(shape.item(0)), tail])
        first = self.rules.add(f"{prefix}-0", begin)
        return self.rules.add(prefix, [[literal("["), space, first]])

    def endless(self, prefix: str, shape: Array) -> Ref:
        """What follows any number of items, where there is neither a least number nor a prefix."""
        tail, space = Ref(f"{prefix}-n"), self.space()
        item = self.value(shape.rest)
        return self.rules.add(tail.name, [[space, literal("]")], [literal(","), space, item, tail]])

    def object(self, shape: Object) -> Ref:
        members = list(shape.properties)
        members += [(name, shape.extra) for name in shape.required if name not in dict(members)]
        wanted = [name in shape.required for name, _ in members]
        prefix, space, end = self.rules.fresh("o"), self.space(), literal("}")
        count = len(members)
        last: Body = []
        if not shape.closed:
            names = [name for name, _ in members]
            last = [[self.key(names), self.gap(), self.value(shape.extra), Ref(f"{prefix}-m{count}")]]
        for k in range(count, -1, -1):  # pick k: a member from k on; more k: what follows a member before k
            body = last
            if k < count:
                name, conj = members[k]
                key = literal(f'"{escaped(name)}":')
                body = [[key, self.space_after_colon(), self.value(conj), Ref(f"{prefix}-m{k + 1}")]]
                if not wanted[k]:
                    body.append([Ref(f"{prefix}-p{k + 1}")])
            self.rules.add(f"{prefix}-p{k}", body)
            more: Body = [[literal(","), space, Ref(f"{prefix}-p{k}")]]
            if not any(wanted[k:]):
                more.append([space, end])
            self.rules.add(f"{prefix}-m{k}", more)
        begin: Body = [[Ref(f"{prefix}-p0")]]
        if not any(wanted):
            begin.append([end])
        first = self.rules.add(f"{prefix}-b", begin)
        return self.rules.add(prefix, [[literal("{"), space, first]])

    def key(self, names: list[str]) -> Ref:
        """The name of a further member: any text but those that are taken."""
        if not names:
            return Ref(self.string(Text()).name) if Text() not in self.made else self.made[Text()]
        others = without(compiled(Repeat(ANY, 0, None)), words(names))
        quote = literal('"')
        inner = self.rules.automaton(others, in_json=True)
        return self.rules.add(self.rules.fresh("n"), [[quote, inner, quote]])

    def gap(self) -> Ref:
        return self.once("gap", "g", [[literal(":"), self.space_after_colon()]])

    def space_after_colon(self) -> Ref:
        return self.once("colon", "q", [[], [literal(" ")]])
