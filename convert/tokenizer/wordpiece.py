"""WordPiece → `bert`: `##ing` becomes `ing`, and a word's first piece starts with ▁."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from edge.errors import ConversionError

from .parts import steps
from .trial import Candidate, Fields, Limit
from .vocabulary import NORMAL, Vocabulary

SPACE = "▁"
CONTROL_SPACES = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"  # BERT drops them as control characters


def from_vocab_txt(
    words: Sequence[str], settings: Mapping[str, Any], specials: Mapping[str, str]
) -> dict[str, Any]:
    """The tokenizer.json that BERT's older files, vocab.txt and tokenizer_config.json, stand for.

    Raises ConversionError for a token that stands twice and where [CLS], [SEP] or [UNK] is not in it.
    """
    while words and not words[-1]:
        words = words[:-1]
    vocab: dict[str, int] = {}
    for line, word in enumerate(words):
        if vocab.setdefault(word, line) != line:
            raise ConversionError(f"vocab.txt has {word!r} in lines {vocab[word] + 1} and {line + 1}")
    texts = {
        which: specials.get(which, f"[{which.upper()}]") for which in ("cls", "sep", "unk", "pad", "mask")
    }
    for which in ("cls", "sep", "unk"):
        if texts[which] not in vocab:
            raise ConversionError(f"vocab.txt does not have {texts[which]!r}")
    around = [{"SpecialToken": {"id": texts[which], "type_id": 0}} for which in ("cls", "sep")]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": vocab[text], "content": text, **flags}
            for text in sorted(set(texts.values()), key=lambda text: vocab.get(text, -1))
            if text in vocab
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
            "strip_accents": settings.get("strip_accents"),
            "lowercase": settings.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [around[0], {"Sequence": {"id": "A", "type_id": 0}}, around[1]],
            "pair": [
                around[0],
                {"Sequence": {"id": "A", "type_id": 0}},
                around[1],
                {"Sequence": {"id": "B", "type_id": 1}},
                {"SpecialToken": {"id": texts["sep"], "type_id": 1}},
            ],
            "special_tokens": {
                texts[which]: {"id": texts[which], "ids": [vocab[texts[which]]], "tokens": [texts[which]]}
                for which in ("cls", "sep")
            },
        },
        "model": {
            "type": "WordPiece",
            "unk_token": texts["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def tokens(vocabulary: Vocabulary, model: Mapping[str, Any]) -> list[str]:
    """As llama.cpp matches them: it puts ▁ before each word and takes the longest token at each place."""
    prefix = str(model.get("continuing_subword_prefix") or "##")
    return [
        token
        if kind != NORMAL
        else token[len(prefix) :]
        if token.startswith(prefix) and len(token) > len(prefix)
        else SPACE + token
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
    ]


def candidates(tokenizer: Mapping[str, Any], fields: Fields) -> list[Candidate]:
    """The one way: lower case and accents as the normalizer says."""
    lowercase, strip = _case(tokenizer)
    case = {
        "tokenizer.ggml.normalizer.lowercase": lowercase,
        "tokenizer.ggml.normalizer.strip_accents": strip,
    }
    return [Candidate("bert", {**fields, **case})]


def limits(tokenizer: Mapping[str, Any]) -> list[Limit]:
    """Where llama.cpp's WordPiece is another than BERT's (llama-vocab.cpp, llm_tokenizer_wpm_session)."""
    longest = tokenizer["model"].get("max_input_chars_per_word", 100)
    found = [
        Limit(
            f"llama.cpp splits words of more than {longest} characters, which are one unknown token",
            lambda difference: any(len(word) > longest for word in difference.text.split()),
        ),
        Limit(
            "llama.cpp splits words at control characters that are white space, such as U+0085",
            lambda difference: any(letter in CONTROL_SPACES for letter in difference.text),
        ),
    ]
    if _case(tokenizer)[1]:
        found.append(
            Limit(
                "llama.cpp strips more than accents, and takes Hangul apart otherwise",
                lambda difference: any(map(_decomposed_otherwise, difference.text)),
            )
        )
    return found


def _decomposed_otherwise(letter: str) -> bool:
    """Whether it is a spacing or enclosing mark, which BERT keeps, or several letters when taken apart."""
    if unicodedata.category(letter) in ("Mc", "Me"):
        return True
    return sum(not unicodedata.combining(part) for part in unicodedata.normalize("NFD", letter)) > 1


def _case(tokenizer: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether text is lowered, and stripped of accents: by default where it is lowered."""
    lowercase = strip = False
    for step in steps(tokenizer.get("normalizer")):
        if step.get("type") == "BertNormalizer":
            lowercase = bool(step.get("lowercase", True))
            said = step.get("strip_accents")
            strip = lowercase if said is None else bool(said)
        lowercase |= step.get("type") == "Lowercase"
        strip |= step.get("type") == "StripAccents"
    return lowercase, strip
