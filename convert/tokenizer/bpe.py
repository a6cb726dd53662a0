"""Byte-level BPE → `gpt2`, with the pre-tokenizer's name found by trial."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from .parts import steps
from .trial import Candidate, Difference, Fields, Limit

# One name of each behaviour that llama.cpp has for byte-level BPE (llama-vocab.cpp, `tokenizer_pre`), with what
# its original's pre-tokenizer holds. Names that behave alike differ only in how a whole answer is tidied.
_LOWER, _ANY = "'s|'t|'re|'ve|'m|'ll|'d|", "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD, _THREE = r"[^\r\n\p{L}\p{N}]?\p{L}+|", r"\p{N}{1,3}"
SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("roberta-bpe", ("<gpt2>", "<Roberta>")),
    ("gpt-2", ("<gpt2>",)),
    ("smollm", ("<gpt2>", "<Digits>")),
    ("llama-bpe", (_ANY, _WORD + _THREE + "|", "<whole words>")),
    ("dbrx", (_ANY, _WORD + _THREE + "|")),
    ("qwen2", (_ANY, _WORD + r"\p{N}|")),
    ("qwen35", (_ANY, r"[\p{L}\p{M}]+|\p{N}|")),
    ("tekken", (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|", r"\p{N}|")),
    ("gpt-4o", (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _ANY, _THREE + "|")),
    ("granite-embed-multi-97m", (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _ANY, _THREE + "|", "<whole words>")),
    ("deepseek-v3", (_THREE, "一-龥぀-ゟ゠-ヿ", r"\p{P}\p{S}")),
    ("deepseek-coder", (r"\s?\p{L}+", r"\s?\p{P}+", r"\p{N}")),
    ("deepseek-llm", (r"\s?[A-Za-z", r"\p{N}+")),
    ("falcon", ("<Punctuation>", "<gpt2>", "[0-9][0-9][0-9]")),
    ("exaone-moe", (_ANY, r"\p{L}\p{M}*(?: \p{L}\p{M}*)*")),
    ("seed-coder", (_ANY, _WORD + r"\p{N}{1}|")),
    ("bailingmoe", (r"'(?i:[sdmt]|ll|ve|re)", r"\p{L}+|\p{N}|")),
    ("minicpm5", (_THREE, _WORD + r"\p{N}+|")),
    ("jais-2", (_ANY, _THREE, r"\s{512}(?!\S)")),
    ("youtu", ("가-힣", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _ANY)),
    ("tiny_aya", (r"\d{1,3}(?=(?:\d{3})*\b)",)),
    ("superbpe", (r"(?=(\d{3})+(?!\d))",)),
    ("laguna", (r"[^\n]+|[\n]+",)),
    ("viking", (r"[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")),
    ("bloom", (r"[^(\s|.,!?…。，、।۔،)]+",)),
    ("chameleon", ("<sentinel:",)),
    ("spark2_5", (_THREE, "一-龥぀-ゟ゠-ヿ", r"[\r\n]|\s+")),
    ("afmoe", ("一-鿿㐀-䶿",)),
    ("ufakzeka", (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",)),
    ("default", ("<Punctuation>", "<Digits>")),
)


# llama.cpp writes their regex with A-Z and a-z for the classes of upper and lower case, and without marks.
ASCII_CASE = ("tekken", "gpt-4o", "granite-embed-multi-97m", "youtu", "tiny_aya")


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether every byte is a letter of its own before the merges."""
    return any(
        step.get("type") == "ByteLevel"
        for part in ("pre_tokenizer", "normalizer")
        for step in steps(tokenizer.get(part))
    )


def candidates(tokenizer: Mapping[str, Any], fields: Fields) -> list[Candidate]:
    """All names, the likeliest first: those whose signs are all there, by how many these are."""
    text = "\n".join(_signature(tokenizer))

    def likelihood(signs: tuple[str, ...]) -> tuple[bool, float]:
        there = sum(sign in text for sign in signs)
        return there == len(signs), there if there == len(signs) else there / len(signs)

    ordered = sorted(SIGNS, key=lambda entry: likelihood(entry[1]), reverse=True)
    return [
        Candidate(name, {**fields, "tokenizer.ggml.pre": name}, (_CASE,) if name in ASCII_CASE else ())
        for name, _ in ordered
    ]


def spell(token: str) -> str:
    """The text that a token of byte letters stands for, empty where it is no whole characters."""
    try:
        return bytes(_LETTERS[letter] for letter in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return ""


def _byte_letters() -> dict[str, int]:
    """GPT-2's letter for each byte: a printable one stands for itself, the others follow U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


_LETTERS = _byte_letters()


def _cased_or_mark(difference: Difference) -> bool:
    return any(
        not letter.isascii() and (letter.lower() != letter.upper() or unicodedata.category(letter)[0] == "M")
        for letter in difference.text
    )


_CASE = Limit("llama.cpp tells upper from lower case in ASCII only, and splits before marks", _cased_or_mark)


def _signature(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    for step in steps(tokenizer.get("pre_tokenizer")):
        kind = step.get("type")
        if kind == "ByteLevel":
            if step.get("use_regex", True):
                yield "<gpt2>"
        elif kind == "Split" and isinstance(pattern := step.get("pattern"), Mapping):
            regex = str(pattern.get("Regex") or pattern.get("String"))
            yield regex
            if _LOWER in regex:
                yield "<gpt2>"
        else:
            yield f"<{kind}>"
    if tokenizer["model"].get("ignore_merges"):
        yield "<whole words>"
    processor = tokenizer.get("post_processor")
    if isinstance(processor, Mapping) and processor.get("type") == "RobertaProcessing":
        yield "<Roberta>"
