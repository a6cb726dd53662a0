"""The ids of the original: the `tokenizers` package for a tokenizer.json, `sentencepiece` for a lone model file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge.errors import ConversionError

INSTALL = "pip install tokenizers sentencepiece"


@dataclass(frozen=True)
class Reference:
    """How the original encodes a text, and what it puts around it.

    encode gives ids with the special tokens around the text; `before` and `after` are those. parses_special:
    a special token spelled in a text is read as that token.
    """

    encode: Callable[[str], list[int]]
    before: tuple[int, ...]
    after: tuple[int, ...]
    parses_special: bool


def from_json(text: str) -> Reference:
    """Of a tokenizer.json's text. Raises ConversionError where the package is missing or does not read it."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConversionError("the tokenizers package is not installed", hint=INSTALL) from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing narrower
        raise ConversionError(f"the tokenizers package does not read tokenizer.json: {error}") from error
    tokenizer.no_truncation()  # saved checkpoints carry the one they were trained with
    tokenizer.no_padding()

    def encode(text: str, special: bool = True) -> list[int]:
        try:
            return list(tokenizer.encode(text, add_special_tokens=special).ids)
        except Exception as error:
            raise ConversionError(f"the tokenizers package cannot encode {text[:40]!r}: {error}") from error

    before, after = around(encode("a"), encode("a", special=False))
    return Reference(encode, before, after, parses_special=True)


def from_sentencepiece(raw: bytes, bos: int | None, eos: int | None) -> Reference:
    """Of a model file's bytes, with `bos` before and `eos` after a text. Raises ConversionError as `from_json`."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise ConversionError("the sentencepiece package is not installed", hint=INSTALL) from error
    try:
        processor = SentencePieceProcessor(model_proto=raw)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConversionError(f"the sentencepiece package does not read the model file: {error}") from error
    before, after = tuple(x for x in (bos,) if x is not None), tuple(x for x in (eos,) if x is not None)

    def encode(text: str) -> list[int]:
        return [*before, *processor.encode(text), *after]

    return Reference(encode, before, after, parses_special=False)


def around(full: list[int], plain: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after `plain` in `full`. Raises ConversionError where it is more than one token."""
    for first in range(len(full) - len(plain) + 1):
        if full[first : first + len(plain)] == plain:
            before, after = tuple(full[:first]), tuple(full[first + len(plain) :])
            if len(before) <= 1 and len(after) <= 1:
                return before, after
    raise ConversionError(
        "the tokenizer puts more than one token before or after a text",
        hint="llama.cpp adds one on each side",
    )
