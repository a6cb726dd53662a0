"""Walks grammars and follows texts by them, for the tests of `edge.structure`."""

from __future__ import annotations

import re
from functools import cache

from hypothesis import strategies as st

from edge.engine.binding import listen, llama
from edge.engine.grammar import Grammar
from edge.engine.vocab import Vocab

PIECE = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|[a-zA-Z0-9-]+|\|')
CODE = re.compile(r"\\x([0-9A-F]{2})|\\u([0-9A-F]{4})|\\U([0-9A-F]{8})|\\(.)|(.)", re.DOTALL)
NAMED = {"n": "\n", "r": "\r", "t": "\t"}


def letters(text):
    """The characters of a literal or a class; (letter, escaped)."""
    for x, u, big, escape, plain in CODE.findall(text):
        code = x or u or big
        yield (chr(int(code, 16)) if code else NAMED.get(escape, escape) or plain, not plain)


def read(text):
    """The rules of a grammar that we wrote: {name: [[item, …], …]}; an item is a name, a text or a list of ranges."""
    rules = {}
    for line in text.splitlines():
        name, _, body = line.partition(" ::= ")
        rows = [[]]
        for piece in PIECE.findall(body):
            if piece == "|":
                rows.append([])
            elif piece[0] == '"':
                rows[-1].append(("text", "".join(letter for letter, _ in letters(piece[1:-1]))))
            elif piece[0] == "[":
                rows[-1].append(("class", ranges(list(letters(piece[1:-1])))))
            else:
                rows[-1].append(("rule", piece))
        rules[name] = rows
    return rules


def ranges(points):
    found, k = [], 0
    while k < len(points):
        low = points[k][0]
        if k + 2 < len(points) and points[k + 1] == ("-", False):
            found.append((ord(low), ord(points[k + 2][0])))
            k += 3
        else:
            found.append((ord(low), ord(low)))
            k += 1
    return found


def depths(rules):
    """How many rules deep the shortest text of each rule lies, and of each alternative."""
    depth = dict.fromkeys(rules, 10**9)
    changed = True
    while changed:
        changed = False
        for name, rows in reversed(rules.items()):  # what a rule needs stands below it, mostly
            best = min(row_depth(row, depth) for row in rows) + 1
            if best < depth[name]:
                depth[name], changed = best, True
    return depth


@cache
def understood(text):
    rules = read(text)
    return rules, depths(rules)


def row_depth(row, depth):
    return max((depth[item] for kind, item in row if kind == "rule"), default=0)


def walk(text, random, steps=400):
    """A text that the grammar derives, drawn at random; after so many steps it takes the shortest way out."""
    rules, depth = understood(text)
    out, todo = [], [("rule", "root")]
    while todo:
        kind, item = todo.pop()
        if kind == "text":
            out.append(item)
        elif kind == "class":
            low, high = random.choice(item)
            if high > 0x7F and random.random() < 0.8:
                low, high = random.choice([r for r in item if r[0] < 0x7F] or item)
                high = max(low, min(high, 0x7E))
            out.append(chr(random.randint(low, high)))
        else:
            rows = rules[item]
            steps -= 1
            row = random.choice(rows) if steps > 0 else min(rows, key=lambda row: row_depth(row, depth))
            todo.extend(reversed(row))
    return "".join(out)


class Native:
    """llama.cpp's own grammar sampler over a model's vocabulary."""

    def __init__(self, path):
        lib = llama()
        listen()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        self.model = lib.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = Vocab(self.model)
        self.end = next(token for token in range(self.vocab.size) if self.vocab.is_end(token))

    def close(self):
        llama().llama_model_free(self.model)

    def takes(self, grammar, text):
        """Whether the whole text, and an end behind it, may be answered."""
        follow = Grammar(grammar, self.vocab, frozenset())
        try:
            for token in self.vocab.tokens(text, add_special=False):
                if not follow.allows(token):
                    return False
                follow.accept(token)
            return follow.allows(self.end)
        finally:
            follow.close()


scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**6), 10**6), st.text(max_size=6))
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)


@st.composite
def pairs(draw, depth=2):
    """A schema and a value that is valid by it."""
    kind = draw(
        st.sampled_from(
            ["any", "const", "integer", "number", "string", "array", "tuple", "object", "either"]
            if depth
            else ["const", "integer", "string"]
        )
    )
    if kind == "any":
        return {}, draw(scalars)
    if kind == "const":
        value = draw(scalars)
        return draw(st.sampled_from([{"const": value}, {"enum": [value, "other", 7.25]}])), value
    if kind == "integer":
        value = draw(st.integers(-(10**9), 10**9))
        low, high = value - draw(st.integers(0, 10**6)), value + draw(st.integers(0, 10**6))
        return {"type": "integer", "minimum": low, "exclusiveMaximum": high + 1}, value
    if kind == "number":
        value = draw(st.integers(-(10**6), 10**6)) / 64
        return {
            "type": "number",
            "minimum": value - draw(st.sampled_from([0, 0.5, 100])),
            "maximum": value + 0.25,
        }, value
    if kind == "string":
        value = draw(st.text(st.characters(codec="utf-8"), max_size=8))
        limits = draw(
            st.sampled_from([{}, {"minLength": len(value)}, {"maxLength": len(value) + 2}, {"pattern": "^"}])
        )
        return {"type": "string", **limits}, value
    if kind == "either":
        (schema, value), (other, _) = draw(pairs(depth - 1)), draw(pairs(depth - 1))
        return {"anyOf": draw(st.permutations([schema, other]))}, value
    if kind == "array":
        schema, value = draw(pairs(depth - 1))
        count = draw(st.integers(0, 3))
        return {
            "type": "array",
            "items": schema,
            "minItems": draw(st.integers(0, count)),
            "maxItems": count + draw(st.integers(0, 2)),
        }, [value] * count
    if kind == "tuple":
        members = draw(st.lists(pairs(depth - 1), max_size=3))
        return {"type": "array", "prefixItems": [m[0] for m in members] or [{}], "items": False}, [
            m[1] for m in members
        ]
    members = draw(st.dictionaries(names, pairs(depth - 1), max_size=3))
    required = [name for name in members if draw(st.booleans())]
    value = {name: m[1] for name, m in members.items() if name in required or draw(st.booleans())}
    closed = draw(
        st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "null"}}])
    )
    if not members and not closed:
        closed = {"additionalProperties": False}
    return {
        "type": "object",
        "properties": {name: m[0] for name, m in members.items()},
        "required": required,
        **closed,
    }, value
