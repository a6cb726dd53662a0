"""Entities out of a token classifier's logits: words, tags, spans of characters."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edge.tasks.classify import no_number, probabilities
from edge.tasks.encoder import About
from edge.tasks.rows import Row
from edge.tasks.stream import Part

PREFIXED = re.compile(r"([BIOLUES])[-_](.+)")  # BIO, BILOU and BIOES
OUTSIDE = "O"
CONNECTORS = "-–'’.&/_"  # within a word, as CoNLL and its like have it: AL-AIN, O'Brien, U.S, AT&T
# Thai to Myanmar, Khmer, kana and Han: writing without spaces, where a word's borders are not seen
SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True, slots=True)
class Entity:
    """A name in a text, characters `start` to `end`. The probability is the mean of its words'."""

    label: str
    text: str
    start: int
    end: int
    probability: float


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text with its entities, in order; `left_out` tokens at its end were not read."""

    text: str
    entities: tuple[Entity, ...] = ()
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text with the tag that its first piece got."""

    start: int
    end: int
    tag: str
    probability: float


@dataclass(frozen=True, slots=True)
class Tags:
    """The scheme that a model's labels are written in: prefixes, or bare types beside an O, or bare labels alone."""

    prefixed: bool
    outside: bool

    def parted(self, tag: str) -> tuple[str, str]:
        """A tag's prefix and type: B, I, E (ends here) or S (alone); O has no type."""
        if tag == OUTSIDE:
            return OUTSIDE, ""
        found = PREFIXED.fullmatch(tag) if self.prefixed else None
        if found:
            return {"L": "E", "U": "S"}.get(found[1], found[1]), found[2]
        return ("I" if self.outside else "S"), tag


def scheme(labels: Sequence[str]) -> Tags:
    """What a model's labels, or a file's tags, are written in."""
    named = [label for label in labels if label != OUTSIDE]
    prefixed = all(PREFIXED.fullmatch(label) for label in named)
    return Tags(prefixed and bool(named), len(named) < len(labels))


def spans(tags: Sequence[str], how: Tags) -> Iterator[tuple[str, int, int]]:
    """Entities in a row of tags as (type, first, last + 1): of a broken sequence what conlleval makes of it.

    One begins where a tag says so, after O, and where the type changes; IOB1, IOB2, BILOU and BIOES all read so.
    """
    begun, kind, before = 0, "", OUTSIDE
    for at, tag in enumerate([*tags, OUTSIDE]):
        prefix, type_ = how.parted(tag)
        fresh = prefix in "BSO" or before in "ESO" or type_ != kind
        if fresh:
            if before != OUTSIDE:
                yield kind, begun, at
            begun, kind = at, type_
        before = prefix


def tagged(about: About, row: Row, parts: Sequence[Part], threshold: float = 0.0) -> Tagged:
    """A row's entities whose probability reaches the threshold."""
    words = words_of(about, row, parts)
    found = []
    for kind, first, end in spans([word.tag for word in words], scheme(about.labels)):
        inside = words[first:end]
        start, stop = inside[0].start, inside[-1].end
        probability = sum(word.probability for word in inside) / len(inside)
        if probability >= threshold:
            found.append(Entity(kind, row.text[start:stop], start, stop, probability))
    return Tagged(row.text, tuple(found), parts[0].tokens.left_out if len(parts) == 1 else 0)


def words_of(about: About, row: Row, parts: Sequence[Part]) -> list[Word]:
    """The words that were read. Where windows overlap, each decides up to the middle of what they share."""
    words: list[Word] = []
    for at, part in enumerate(parts):
        if not np.isfinite(part.output).all():
            raise no_number(about, row)
        tokens = pieces(row.text, part)
        if not tokens:
            continue
        here = words_in(about, row.text, part, tokens)
        if at:
            middle = (part.offset + (words[-1].end if words else part.offset)) // 2
            words = [word for word in words if word.start < middle]
            here = [word for word in here if word.start >= middle]
        words += here
    return words


def pieces(text: str, part: Part) -> list[tuple[int, int, int]]:
    """Tokens that stand for characters, as (number, start, end) in the whole text without white space around them."""
    found = []
    for number, (start, end) in enumerate(part.tokens.spans):
        start, end = start + part.offset, end + part.offset
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        if end > start:
            found.append((number, start, end))
    return found


def words_in(about: About, text: str, part: Part, tokens: Sequence[tuple[int, int, int]]) -> list[Word]:
    """Pieces merged into words, each with the tag of its first piece, as checkpoints are trained and scored."""
    chosen = probabilities(part.output, multi=False)
    words: list[Word] = []
    for number, start, end in tokens:
        if words and start <= words[-1].end and (start < words[-1].end or continues(text, start)):
            last = words[-1]
            words[-1] = Word(last.start, max(end, last.end), last.tag, last.probability)
        else:
            best = int(chosen[number].argmax())
            words.append(Word(start, end, about.labels[best], float(chosen[number, best])))
    return words


def continues(text: str, at: int) -> bool:
    """Whether the character at `at` goes on with the word that ends before it."""
    before, here = text[at - 1], text[at]
    if SPACELESS.match(before) or SPACELESS.match(here):
        return False
    if lettered(here):
        return lettered(before) or (before in CONNECTORS and at > 1 and lettered(text[at - 2]))
    return here in CONNECTORS and lettered(before) and at + 1 < len(text) and lettered(text[at + 1])


def lettered(character: str) -> bool:
    """Whether a character is of words: a letter, a mark on one, a digit."""
    return unicodedata.category(character)[0] in "LMN"


def tags_of_words(about: About, row: Row, part: Part | None) -> list[str]:
    """A tag for each given word, its first piece's; O for words without a piece, as those beyond the model's length."""
    tags = [OUTSIDE if OUTSIDE in about.labels else about.labels[0]] * len(row.words)
    if part is None:
        return tags
    if not np.isfinite(part.output).all():
        raise no_number(about, row)
    tokens = pieces(row.text, part)
    starts = [start for _, start, _ in tokens]
    best = part.output.argmax(axis=-1)
    begin = 0
    for at, word in enumerate(row.words):
        first = bisect_left(starts, begin)
        if first < len(starts) and starts[first] < begin + len(word):
            tags[at] = about.labels[int(best[tokens[first][0]])]
        begin += len(word) + 1
    return tags
