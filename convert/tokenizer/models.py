"""tokenizer.json's model, normalizer, pre-tokenizer and decoder for each kind of GGUF vocabulary."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import gguf_header
from edge.errors import ConversionError
from edge.gguf_header import Header

from . import wordpiece
from .pretokenizers import WHOLE_WORDS, steps_for
from .vocabulary import BYTE, NORMAL, USER_DEFINED

SPACE = "▁"
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"


@dataclass(frozen=True)
class Words:
    """A GGUF vocabulary by id: `kind` is tokenizer.ggml.model, `types` are GGUF's."""

    kind: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]

    @property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}


def parts(words: Words, header: Header, path: Path, unknown: int | None) -> dict[str, Any]:
    """`normalizer`, `pre_tokenizer`, `decoder` and `model`. Raises ConversionError for a vocabulary without scores
    or an unknown token where its kind needs them."""
    if words.kind == "gpt2":
        return _byte_level(words)
    if words.kind == "bert":
        return _wordpiece(words, header)
    if unknown is None or not 0 <= unknown < len(words.tokens) or not words.scores:
        raise ConversionError("the file's tokenizer has no unknown token or no scores")
    if words.kind == "llama":
        return _byte_fallback(words, header, unknown)
    return _unigram(words, header, path, unknown)


def _byte_level(words: Words) -> dict[str, Any]:
    flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": steps_for(words.pre),
        "decoder": {"type": "ByteLevel", **flags},
        "model": _bpe(words.ids, words.merges, ignore_merges=words.pre in WHOLE_WORDS),
    }


def _byte_fallback(words: Words, header: Header, unknown: int) -> dict[str, Any]:
    """SentencePiece's BPE: spaces are ▁, and one before the text unless the file says no."""
    prefix = header.get("tokenizer.ggml.add_space_prefix", bool, True)
    normal = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decode: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decode.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = _bpe(
        words.ids, merges_by_score(words), unk_token=words.tokens[unknown], fuse_unk=True, byte_fallback=True
    )
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*normal, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decode},
        "model": model,
    }


def _bpe(vocab: dict[str, int], merges: Sequence[str], **settings: Any) -> dict[str, Any]:
    usual = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
    }
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **usual, **flags, **settings, "vocab": vocab, "merges": list(merges)}


def merges_by_score(words: Words) -> list[str]:
    """Every way to make a token of two others, the best-scored token first: SentencePiece joins in that order.

    Control tokens and the like are made by no merge, nor is a token with a space in it, which is ▁ by then. Of one
    token's ways those of the older tokens come first.
    """
    ids = words.ids
    found: list[tuple[float, int, int]] = []
    for index, (token, kind) in enumerate(zip(words.tokens, words.types, strict=True)):
        if kind not in (NORMAL, USER_DEFINED) or " " in token:
            continue
        ways = []
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None and BYTE not in (words.types[left], words.types[right]):
                ways.append((-words.scores[index], left, right))
        found += sorted(ways)
    found.sort(key=lambda merge: merge[0])  # stable: ways of one token stay together
    return [f"{words.tokens[left]} {words.tokens[right]}" for _, left, right in found]


def _unigram(words: Words, header: Header, path: Path, unknown: int) -> dict[str, Any]:
    """SentencePiece's Unigram: its table of replacements, runs of spaces as one where the file says so."""
    prefix = header.get("tokenizer.ggml.add_space_prefix", bool, True)
    remove = header.get("tokenizer.ggml.remove_extra_whitespaces", bool, False)
    table = bytes(gguf_header.elements(path, CHARSMAP)) if CHARSMAP in header.metadata else b""
    normal: list[dict[str, Any]] = []
    if table:
        encoded = base64.b64encode(table).decode("ascii")
        normal.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    spaces = {"replacement": SPACE, "prepend_scheme": "always" if prefix else "never", "split": True}
    steps: list[dict[str, Any]] = [{"type": "Metaspace", **spaces}]
    if remove and table and prefix:  # the table makes a space of all white space
        steps.insert(0, {"type": "WhitespaceSplit"})
    elif remove:
        normal.append({"type": "Strip", "strip_left": True, "strip_right": True})
        normal.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    return {
        "normalizer": {"type": "Sequence", "normalizers": normal} if normal else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "Metaspace", **spaces},
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "byte_fallback": False,
            "vocab": [list(pair) for pair in zip(words.tokens, words.scores, strict=True)],
        },
    }


def _wordpiece(words: Words, header: Header) -> dict[str, Any]:
    case = bert_case(header)
    spelt = [_word(token, kind) for token, kind in zip(words.tokens, words.types, strict=True)]
    made = wordpiece.from_vocab_txt(spelt, case, {})
    return {
        "normalizer": made["normalizer"],
        "pre_tokenizer": made["pre_tokenizer"],
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": made["model"],
    }


def _word(token: str, kind: int) -> str:
    """BERT's spelling: ▁ begins a word, other pieces continue one; `[unused0]` and the like are neither."""
    if kind != NORMAL or re.fullmatch(r"\[.+\]", token):
        return token
    return token[1:] if token.startswith(SPACE) and len(token) > 1 else f"##{token}"


def bert_case(header: Header) -> dict[str, bool]:
    """tokenizer_config.json's words for what llama.cpp does to case and accents: both go, unless the file says no."""
    lower = header.get("tokenizer.ggml.normalizer.lowercase", bool, True)
    strip = header.get("tokenizer.ggml.normalizer.strip_accents", bool, lower)
    return {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": True}
