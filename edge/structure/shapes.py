"""What a JSON Schema allows, as a list of shapes of one type each.

A subschema is named by its JSON pointer, and several that must hold at once by a tuple of pointers, so that what an
`allOf` merges is merged member by member when it is needed, and recursion is no more than a name met again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from edge.errors import RequestError
from edge.structure.document import check, child, no, place, resolved
from edge.structure.formats import FORMATS
from edge.structure.kinds import (
    EVERY,
    Array,
    Boolean,
    Conj,
    Literal,
    Null,
    Number,
    Object,
    Shape,
    Text,
    common_number,
    common_text,
    least,
    literal,
    number,
    whole,
)

MAX_SHAPES = 2_000  # alternatives of one value; allOf of anyOfs multiplies them
MAX_LOOKING = 8  # levels of members that are compared to tell the branches of a oneOf apart
EACH = ("object", "array", "string", "number", "boolean", "null")
NOTHING = "!"  # the pointer of the schema `false`


class Shapes:
    """The shapes of every subschema of one document. Raises RequestError for what is invalid or contradicts itself."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.nodes: dict[str, Any] = {"": root, NOTHING: False}
        self._known: dict[Conj, tuple[Shape, ...]] = {(): EVERY}
        self._open: list[str] = []

    def of(self, conj: Conj) -> tuple[Shape, ...]:
        """All that the schemas in `conj` allow together; none where they contradict each other."""
        if conj not in self._known:
            found: tuple[Shape, ...] = EVERY
            for pointer in conj:
                found = self.meet(found, self.node(pointer), pointer)
            self._known[conj] = found
        return self._known[conj]

    def at(self, pointer: str, *names: object) -> Conj:
        """The subschema below `pointer` as a conjunction of one; of none where it allows everything."""
        node = self.nodes[pointer]
        for name in names:
            node = node[name]
        if node is True or node == {}:
            return ()
        if node is False:
            return (NOTHING,)
        below = child(pointer, *names)
        self.nodes[below] = node
        return (below,)

    def node(self, pointer: str) -> tuple[Shape, ...]:
        node = self.nodes[pointer]
        if isinstance(node, bool):
            return EVERY if node else ()
        if pointer in self._open:
            no("refers to itself with nothing in between", pointer, "let a property or an item stand between")
        check(node, pointer)
        self._open.append(pointer)
        try:
            return self._node(node, pointer)
        finally:
            self._open.pop()

    def _node(self, node: Mapping[str, Any], pointer: str) -> tuple[Shape, ...]:
        found = self.typed(node, pointer)
        if "$ref" in node:
            target, value = resolved(self.root, node["$ref"], pointer)
            if len(self._open) > 100:
                no("has more than 100 $ref that lead to $ref", pointer, "refer to the last one")
            self.nodes[target] = value
            found = self.meet(found, self.node(target), pointer)
        for k, _ in enumerate(node.get("allOf", ())):
            found = self.meet(found, self.of(self.at(pointer, "allOf", k)), pointer)
            if not found:
                no(
                    "has an allOf that nothing satisfies",
                    child(pointer, "allOf", k),
                    "two of its parts contradict",
                )
        if "anyOf" in node:
            branches = [self.of(self.at(pointer, "anyOf", k)) for k in range(len(node["anyOf"]))]
            found = self.meet(found, joined(branches), pointer)
        if "oneOf" in node:
            branches = [
                self.meet(found, self.of(self.at(pointer, "oneOf", k)), pointer)
                for k in range(len(node["oneOf"]))
            ]
            self.must_differ(branches, pointer)
            found = joined(branches)
        if "enum" in node or "const" in node:
            values = node.get("enum", [node.get("const")])
            literals = joined([[literal(value)] for value in values if self.holds_any(found, value)])
            if "const" in node:
                literals = tuple(shape for shape in literals if shape == literal(node["const"]))
            if not literals:
                no(
                    "has no value that satisfies the rest of it",
                    pointer,
                    "enum and const must fit type and limits",
                )
            found = literals
        return found

    def typed(self, node: Mapping[str, Any], pointer: str) -> tuple[Shape, ...]:
        """What `type` and the keywords of single types say."""
        stated = node.get("type")
        types = {stated} if isinstance(stated, str) else set(stated or EACH)
        if node.get("nullable") and stated:
            types.add("null")
        found: list[Shape] = []
        if "object" in types:
            found.append(self.object(node, pointer))
        if "array" in types:
            found.append(self.array(node, pointer))
        if "string" in types:
            patterns = [node["pattern"]] if "pattern" in node else []
            if "format" in node:
                patterns.append(FORMATS[node["format"]])
            text = Text(int(node.get("minLength", 0)), whole(node.get("maxLength")), tuple(sorted(patterns)))
            try:
                empty = bool(text.patterns) and text.automaton().empty
            except RequestError as error:  # it does not know where the expression stands
                where = place(child(pointer, "pattern") if "pattern" in node else pointer)
                raise RequestError(f"{error} in the schema at {where}", hint=error.hint) from None
            if empty:
                no(
                    "has a pattern, a format and lengths that no text satisfies",
                    pointer,
                    "check each of them",
                )
            found.append(text)
        if types & {"number", "integer"}:
            found.append(number(node, "number" not in types))
        if "boolean" in types:
            found.append(Boolean())
        if "null" in types:
            found.append(Null())
        return tuple(found)

    def object(self, node: Mapping[str, Any], pointer: str) -> Object:
        properties = [(name, self.at(pointer, "properties", name)) for name in node.get("properties", {})]
        extra = self.at(pointer, "additionalProperties") if "additionalProperties" in node else ()
        return Object(
            tuple(properties), tuple(node.get("required", ())), extra, "additionalProperties" in node
        )

    def array(self, node: Mapping[str, Any], pointer: str) -> Array:
        prefix = tuple(self.at(pointer, "prefixItems", k) for k in range(len(node.get("prefixItems", ()))))
        rest = self.at(pointer, "items") if "items" in node else ()
        closed = bool(prefix) and "items" not in node
        return Array(prefix, rest, int(node.get("minItems", 0)), whole(node.get("maxItems")), closed)

    def meet(self, some: Iterable[Shape], others: Iterable[Shape], pointer: str) -> tuple[Shape, ...]:
        """What is in one of both lists each."""
        if others is EVERY:
            return tuple(some)
        if some is EVERY:
            return tuple(others)
        found: dict[Shape, None] = {}
        others = tuple(others)
        for one in some:
            for other in others:
                if (shape := self.common(one, other)) is not None:
                    found[shape] = None
            if len(found) > MAX_SHAPES:
                no(f"has more than {MAX_SHAPES} alternatives", pointer, "use fewer anyOf inside of allOf")
        return tuple(found)

    def common(self, one: Shape, other: Shape) -> Shape | None:
        """What both allow; None for nothing."""
        if isinstance(one, Literal):
            return one if self.holds(other, one.value) else None
        if isinstance(other, Literal):
            return other if self.holds(one, other.value) else None
        if isinstance(one, Number) and isinstance(other, Number):
            return common_number(one, other)
        if isinstance(one, Text) and isinstance(other, Text):
            return common_text(one, other)
        if isinstance(one, Array) and isinstance(other, Array):
            low, high = max(one.low, other.low), least(one.high, other.high)
            longest = max(len(one.prefix), len(other.prefix))
            prefix = tuple(joint(one.item(k), other.item(k)) for k in range(longest))
            closed = one.closed or other.closed
            array = Array(prefix, joint(one.rest, other.rest), low, high, closed)
            return None if high is not None and low > high else array
        if isinstance(one, Object) and isinstance(other, Object):
            names = dict.fromkeys([name for name, _ in (*one.properties, *other.properties)])
            return Object(
                tuple((name, joint(one.member(name), other.member(name))) for name in names),
                tuple(dict.fromkeys((*one.required, *other.required))),
                joint(one.extra, other.extra),
                one.stated or other.stated,
            )
        return one if one == other else None

    def holds_any(self, shapes: Iterable[Shape], value: Any) -> bool:
        return any(self.holds(shape, value) for shape in shapes)

    def holds(self, shape: Shape, value: Any) -> bool:
        """Whether a value is of a shape, by JSON Schema's own rules: what is closed here only is open."""
        if isinstance(shape, Literal):
            return shape == literal(value)
        if isinstance(value, bool) or value is None:
            return isinstance(shape, Null if value is None else Boolean)
        if isinstance(value, (int, Decimal)):
            return isinstance(shape, Number) and shape.holds(value)
        if isinstance(value, str):
            return (
                isinstance(shape, Text)
                and shape.low <= len(value)
                and (shape.high is None or len(value) <= shape.high)
                and (not shape.patterns or shape.automaton().accepts(value))
            )
        if isinstance(value, list):
            return (
                isinstance(shape, Array)
                and shape.low <= len(value)
                and (shape.high is None or len(value) <= shape.high)
                and all(self.holds_any(self.of(shape.item(k)), item) for k, item in enumerate(value))
            )
        return (
            isinstance(shape, Object)
            and all(name in value for name in shape.required)
            and all(self.holds_any(self.of(shape.member(name)), item) for name, item in value.items())
        )

    def must_differ(self, branches: list[tuple[Shape, ...]], pointer: str) -> None:
        """Raise RequestError where an answer could be of two branches of a oneOf, and so of none."""
        for k, some in enumerate(branches):
            for m, others in enumerate(branches):
                if k != m and not all(self.apart(one, other, 0) for one in some for other in others):
                    no(
                        f"has a oneOf whose branches {min(k, m)} and {max(k, m)} can both hold",
                        child(pointer, "oneOf"),
                        "use anyOf, or a property with a const of its own in each",
                    )

    def apart(self, one: Shape, other: Shape, depth: int) -> bool:
        """Whether no answer that is made for `one` is of the shape `other`."""
        if depth > MAX_LOOKING:
            return False
        if isinstance(one, Literal):
            return not self.holds(other, one.value)
        if isinstance(one, Object) and isinstance(other, Object):
            lacks = any(one.closed and not self.has(one, name) for name in other.required)
            shared = {*one.required, *other.required}
            return lacks or any(self.differ(one.member(name), other.member(name), depth) for name in shared)
        if isinstance(one, Array) and isinstance(other, Array):
            least_items = max(one.low, other.low)
            return self.common(one, other) is None or any(
                self.differ(one.item(k), other.item(k), depth) for k in range(min(least_items, 20))
            )
        shared_shape = self.common(one, other)
        if isinstance(shared_shape, Text) and shared_shape.patterns:
            return shared_shape.automaton().empty
        return shared_shape is None

    def has(self, one: Object, name: str) -> bool:
        return name in one.required or any(known == name for known, _ in one.properties)

    def differ(self, some: Conj, others: Conj, depth: int) -> bool:
        return all(self.apart(one, other, depth + 1) for one in self.of(some) for other in self.of(others))


def joined(branches: Iterable[Iterable[Shape]]) -> tuple[Shape, ...]:
    return tuple(dict.fromkeys(shape for branch in branches for shape in branch))


def joint(one: Conj, other: Conj) -> Conj:
    return tuple(dict.fromkeys((*one, *other)))
