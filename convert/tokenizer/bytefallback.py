"""BPE over characters, with a token a byte for those it does not have → `llama`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edge.errors import ConversionError

from .parts import steps
from .trial import Candidate, Fields, Limit
from .vocabulary import BYTE, USER_DEFINED, Vocabulary

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>\Z")
SPACE = "▁"
NAME = "general.name"


def byte_kinds(pairs: Iterable[tuple[str, int]]) -> dict[int, int]:
    """The type of the byte tokens, by id. Raises ConversionError where one of the 256 is missing.

    llama.cpp ends the process at a character that it has neither a token nor bytes for.
    """
    found = {token: index for token, index in pairs if BYTE_TOKEN.match(str(token))}
    if len(found) != 256:
        raise ConversionError(
            f"the vocabulary has {len(found)} of 256 byte tokens, and llama.cpp needs all for this kind",
            hint="a BPE without byte fallback cannot be written",
        )
    return dict.fromkeys(found.values(), BYTE)


def merge_scores(vocabulary: Vocabulary, merges: Sequence[tuple[str, str]]) -> list[float]:
    """Scores that make llama.cpp, which joins the best-scored pair, join in the order of the merges: −rank.

    A token no merge makes gets a score below all.
    """
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(merges))) for token in vocabulary.tokens]


def tokens(vocabulary: Vocabulary) -> list[str]:
    """As llama.cpp matches them: a token the user defined is looked for in the text, before spaces become ▁."""
    return [
        token.replace(SPACE, " ") if kind == USER_DEFINED else token
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
    ]


def candidates(
    fields: Fields, scores: Sequence[tuple[str, Sequence[float]]], *, prefix: bool, strips: bool = False
) -> list[Candidate]:
    """Each source of scores, with a space before the text or without; as the source says first.

    strips: special tokens take the white space after them. llama.cpp does that where the model's name has "phi-3"
    in it, and no field says it otherwise.
    """
    named: list[dict[str, str]] = [{NAME: "phi-3"}, {}] if strips else [{}]
    return [
        Candidate(
            f"llama, {source}{', space before' if add else ''}{', by the name phi-3' if name else ''}",
            {**fields, "tokenizer.ggml.scores": list(values), "tokenizer.ggml.add_space_prefix": add, **name},
        )
        for name in named
        for add in (prefix, not prefix)
        for source, values in scores
    ]


def space_before(tokenizer: Mapping[str, Any]) -> str:
    """Where a space is put before text.

    "never", or "prepend": before the text and after special tokens, as llama.cpp does; "always": the same, but
    not before a space; "first": the latter, and not after special tokens.
    """
    for part in ("normalizer", "pre_tokenizer"):
        for step in steps(tokenizer.get(part)):
            if step.get("type") == "Prepend":
                return "prepend"
            if step.get("type") == "Metaspace":
                older = "always" if step.get("add_prefix_space", True) else "never"
                return str(step.get("prepend_scheme", older))
    return "never"


def limits(scheme: str, added: Sequence[Mapping[str, Any]]) -> list[Limit]:
    """Where llama.cpp puts a space before text and the original none."""
    contents = [str(token["content"]) for token in added]
    found = []
    if scheme in ("always", "first"):
        found.append(
            Limit(
                "llama.cpp puts a space before text that begins with one too",
                lambda difference: difference.text.startswith((" ", SPACE)),
            )
        )
    if scheme == "first":
        found.append(
            Limit(
                "llama.cpp puts a space before text after a special token too",
                lambda difference: any(content in difference.text for content in contents),
            )
        )
    return found
