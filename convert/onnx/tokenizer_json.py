"""The tokenizer.json of an ONNX folder: the checkpoint's own, or what its older files stand for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import ConversionError

from ..tokenizer import files, wordpiece
from . import sentencepiece_json

# What is at most said where nothing is: transformers writes 1e30 there
SANE = 1 << 20


@dataclass(frozen=True)
class Words:
    """`tokenizer` is the tokenizers library's; `reads` how many tokens of a text its files say to take, 0 for none."""

    text: str
    tokenizer: Any
    followed: tuple[str, ...]
    reads: int
    notes: tuple[str, ...]

    def encode(
        self, texts: Sequence[str | tuple[str, str]], most: int
    ) -> list[tuple[Sequence[int], Sequence[int]]]:
        """Ids and token types of texts, or pairs of texts, at most `most` tokens each."""
        cut = [
            self.tokenizer.encode(*one) if isinstance(one, tuple) else self.tokenizer.encode(one)
            for one in texts
        ]
        for one in cut:
            one.truncate(most)
        return [(one.ids, one.type_ids) for one in cut]


def read(folder: Path, vocabulary: int, architecture: str) -> Words:
    """The tokenizer of a checkpoint of a class, without the truncation and padding it was trained with.

    Raises ConversionError where there is none that the tokenizers library reads, and for ids beyond the vocabulary.
    """
    from tokenizers import Tokenizer

    found = files.read(folder)
    if found.tokenizer_json is not None:
        described, followed = found.tokenizer_json, found.followed
    elif found.vocab_txt is not None:
        described = wordpiece.from_vocab_txt(found.vocab_txt, found.settings, found.specials)
        followed = ("vocab.txt", *found.followed)
    elif found.sentencepiece is not None:
        described = sentencepiece_json.tokenizer_json(
            found.sentencepiece, architecture, found.specials, found.settings
        )
        followed = found.followed
    else:
        raise ConversionError(
            "the folder has no tokenizer.json, and no vocab.txt or SentencePiece file to make one of",
            hint="transformers' save_pretrained of the fast tokenizer writes one",
        )
    text = json.dumps({**described, "truncation": None, "padding": None}, ensure_ascii=False)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing narrower
        raise ConversionError(f"the tokenizers package does not read tokenizer.json: {error}") from None
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocabulary:
        raise ConversionError(
            f"the tokenizer has the id {largest} and the model {vocabulary} rows",
            hint="they are not of the same model",
        )
    said = found.settings.get("model_max_length")
    reads = int(said) if isinstance(said, int | float) and 0 < said <= SANE else 0
    return Words(text, tokenizer, followed, reads, found.notes)
