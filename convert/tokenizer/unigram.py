"""Unigram → `t5`, with SentencePiece's compiled table of character replacements."""

from __future__ import annotations

import base64
import binascii
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from edge.errors import ConversionError

from .parts import steps
from .trial import Candidate, Difference, Fields, Limit

PADDING_SCORE = -1e6  # llama.cpp weighs unused tokens too


def pieces_of(model: Mapping[str, Any]) -> tuple[list[tuple[str, int]], list[float]]:
    """The (piece, id) pairs and the scores of a tokenizer.json's model. Raises ConversionError."""
    vocab = model.get("vocab")
    if not isinstance(vocab, list):
        raise ConversionError("tokenizer.json: the Unigram vocabulary is not a list")
    pairs, scores = [], []
    for index, entry in enumerate(vocab):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], int | float):
            raise ConversionError(f"tokenizer.json: {str(entry)[:60]!r} is not a piece with a score")
        pairs.append((entry[0], index))
        scores.append(float(entry[1]))
    return pairs, scores


def charsmap_of(tokenizer: Mapping[str, Any]) -> bytes:
    """The normalizer's table, empty where there is none. Raises ConversionError for one that is not base64."""
    for step in steps(tokenizer.get("normalizer")):
        if step.get("type") == "Precompiled":
            try:
                return base64.b64decode(str(step.get("precompiled_charsmap") or ""), validate=True)
            except (binascii.Error, ValueError) as error:
                raise ConversionError(
                    f"tokenizer.json: precompiled_charsmap is not base64: {error}"
                ) from error
    return b""


def candidates(fields: Fields, charsmap: bytes, *, prefix: bool, remove: bool) -> list[Candidate]:
    """A space before the text or not, runs of spaces as one or not; as the source says first."""
    if charsmap:
        fields = {**fields, "tokenizer.ggml.precompiled_charsmap": charsmap}
    found = []
    for add in (prefix, not prefix):
        for merge in (remove, not remove):
            flags = {"tokenizer.ggml.add_space_prefix": add, "tokenizer.ggml.remove_extra_whitespaces": merge}
            name = f"t5{', space before' if add else ''}{', spaces merged' if merge else ''}"
            found.append(Candidate(name, {**fields, **flags}))
    return found


def merges_spaces(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a run of spaces is one: split off as no token, or replaced."""
    for part in ("normalizer", "pre_tokenizer"):
        for step in steps(tokenizer.get(part)):
            pattern = step.get("pattern")
            if step.get("type") == "WhitespaceSplit" or (
                step.get("type") == "Replace"
                and isinstance(pattern, Mapping)
                and "{2,}" in str(pattern.get("Regex"))
            ):
                return True
    return False


def limits(charsmap: bytes) -> list[Limit]:
    """Where llama.cpp follows SentencePiece and the tokenizers package does not."""
    found = [
        Limit("llama.cpp settles a tie in score otherwise: the same tokens in another order", _tie),
        Limit("llama.cpp takes U+0085 for no white space", lambda difference: "\x85" in difference.text),
    ]
    if charsmap:
        found.append(
            Limit(
                "llama.cpp replaces the longest run of characters, the original each grapheme with its marks",
                lambda difference: any(unicodedata.category(letter)[0] == "M" for letter in difference.text),
            )
        )
    return found


def _tie(difference: Difference) -> bool:
    return sorted(difference.expected) == sorted(difference.got)


def padded(scores: Sequence[float], size: int) -> list[float]:
    """The scores with one that never wins for each added or padding token."""
    return [*scores, *[PADDING_SCORE] * (size - len(scores))]
