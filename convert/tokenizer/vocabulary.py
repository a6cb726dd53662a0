"""Tokens in the order of their ids, with the type of each: what every kind of tokenizer has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import ConversionError

# gguf.TokenType; SentencePiece numbers its types the same way.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Gemma 3 lists this one even where the checkpoint is of the text model alone, which has no row for it.
ROWLESS = ("<image_soft_token>",)


@dataclass(frozen=True)
class Vocabulary:
    """`tokens[id]` as the source writes it, `types[id]` as GGUF numbers it."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]

    def find(self, text: str) -> int | None:
        """The id of a token, or None."""
        return self.tokens.index(text) if text in self.tokens else None

    def padded(self, rows: int) -> Vocabulary:
        """With an unused token for each row of the embedding that has none."""
        extra = range(len(self.tokens), rows)
        return Vocabulary(
            self.tokens + tuple(f"[PAD{index}]" for index in extra), self.types + (UNUSED,) * len(extra)
        )


def assemble(
    base: Iterable[tuple[str, int]],
    added: Mapping[int, Mapping[str, Any]],
    *,
    unknown: str | None,
    controls: Iterable[str],
    kinds: Mapping[int, int] | None = None,
    rows: int,
) -> Vocabulary:
    """The model's own tokens with the added ones.

    base: (token, id) pairs; kinds: types the source gives by id; controls: bos, eos and the like, which are
    control tokens whatever else is said, so that a text cannot end a turn. Raises ConversionError for ids that
    are not 0…n-1, for a token that stands twice, and for more tokens than `rows` of the embedding.
    """
    by_id: dict[int, str] = {}
    for token, index in base:
        if type(token) is not str or type(index) is not int or index < 0:
            raise ConversionError(
                f"the vocabulary has an entry that is no token: {token!r:.60} → {index!r:.60}"
            )
        if index in by_id:
            raise ConversionError(f"tokens {by_id[index]!r} and {token!r} both have id {index}")
        by_id[index] = token
    types = dict.fromkeys(by_id, NORMAL) | dict(kinds or {})
    for index, entry in added.items():
        text = str(entry["content"])
        if index >= rows and text in ROWLESS:
            continue
        if by_id.setdefault(index, text) != text:
            raise ConversionError(
                f"id {index} is {by_id[index]!r} in the vocabulary and {text!r} among the added"
            )
        types[index] = CONTROL if entry.get("special") else USER_DEFINED
    if len(by_id) > rows:
        raise ConversionError(
            f"the vocabulary has {len(by_id)} tokens and the embedding {rows} rows",
            hint="these tokenizer files belong to another checkpoint",
        )
    if len(by_id) <= max(by_id, default=-1):
        hole = next(index for index in range(len(by_id) + 1) if index not in by_id)
        if max(by_id) >= rows:
            raise ConversionError(f"token id {max(by_id)} is beyond the embedding's {rows} rows")
        raise ConversionError(f"no token has id {hole}, though ids run to {max(by_id)}")
    marked = dict.fromkeys(controls, CONTROL) | ({unknown: UNKNOWN} if unknown is not None else {})
    for index, text in by_id.items():
        if text in marked:
            types[index] = marked[text]
    ordered = range(len(by_id))
    return Vocabulary(tuple(by_id[i] for i in ordered), tuple(types[i] for i in ordered))


def check_distinct(tokens: Sequence[str]) -> None:
    """Raise ConversionError where a token stands twice: llama.cpp aborts the process on that."""
    if len(set(tokens)) == len(tokens):
        return
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise ConversionError(
                f"token {token!r} stands twice in the vocabulary", hint="llama.cpp cannot load that"
            )
        seen.add(token)
