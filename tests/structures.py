"""Walks grammars and follows texts by them, for the tests of `edge.structure`."""

from __future__ import annotations

import re
from functools import cache

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
