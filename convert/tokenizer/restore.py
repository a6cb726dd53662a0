"""From a GGUF file's `tokenizer.*` keys back to tokenizer.json and tokenizer_config.json.

The way back is proven as the way there is: the `tokenizers` package's ids of the rebuilt tokenizer.json are
compared with those of llama.cpp's own vocabulary of the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import gguf_header
from edge.engine.vocab import Vocab
from edge.errors import ConversionError
from edge.gguf_header import Header

from . import cases, files, models, reference, specials
from .models import Words
from .pretokenizers import SAME
from .trial import differences
from .vocabulary import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, check_distinct

PRE = "tokenizer.ggml.pre"
ADDED = (CONTROL, USER_DEFINED, UNKNOWN)  # what llama.cpp finds in a text before it splits the rest
# Where a file names no such token, llama.cpp has these (llama-vocab.cpp; SentencePiece's and BERT's own).
DEFAULTS: dict[str, dict[str, int]] = {
    "gpt2": {},
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "bert": {"cls": 101, "sep": 102, "unk": 100, "pad": 0, "mask": 103},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
}


@dataclass(frozen=True)
class Restored:
    """The two files as JSON objects."""

    tokenizer: dict[str, Any]
    settings: dict[str, Any]


def restore(path: Path, header: Header, vocab: Vocab) -> Restored:
    """The tokenizer in the file at `path`, which llama.cpp has loaded as `vocab`.

    Raises ConversionError for a kind or a pre-tokenizer that is not known here, BadGGUF for keys that are missing
    or of another type.
    """
    words = _words(path, header)
    before, after = reference.around(vocab.tokens("a"), vocab.tokens("a", add_special=False))
    ids = _special_ids(words, header, before, after)
    parts = models.parts(words, header, path, ids.get("unk"))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(index, *typed) for index, typed in _listed(words)],
        **parts,
        "post_processor": _around(words, before, after),
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # without it transformers hands token types to models that take none
        "model_input_names": ["input_ids", *["token_type_ids"] * (words.kind == "bert"), "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(before),
        "add_eos_token": bool(after),
        "model_max_length": header.get("{arch}.context_length", int),
        **{f"{which}_token": words.tokens[index] for which, index in ids.items()},
    }
    if words.kind == "bert":
        settings |= models.bert_case(header)
    if header.chat_template:
        settings["chat_template"] = header.chat_template
    return Restored({key: tokenizer[key] for key in KEYS}, settings)


KEYS = (
    "version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder",
    "model",
)  # fmt: skip


def check(folder: Path, config: Mapping[str, Any], rows: int, pre: str, vocab: Vocab) -> tuple[str, ...]:
    """Compare the tokenizer written into `folder` with llama.cpp's of the file; returns notes.

    pre is the file's tokenizer.ggml.pre. Raises ConversionError with the first text whose ids differ outside the
    known limits of llama.cpp.
    """
    found = files.read(folder)
    assert found.tokenizer_json is not None  # restore wrote it
    ours = reference.from_json(found.tokenizer_text)
    case = cases.from_json(cases.Source(found, ours, config, rows), found.tokenizer_json)
    same = (pre, SAME.get(pre, pre))
    own = [limit for way in case.candidates if way.fields[PRE] in same for limit in way.limits]
    fields = {
        "tokenizer.ggml.tokens": case.vocabulary.tokens,
        "tokenizer.ggml.token_type": case.vocabulary.types,
    }
    texts = cases.texts(case, ours)
    expected = [ours.encode(text) for text in texts]
    reasons: Counter[str] = Counter()
    for _, difference in differences(vocab, fields, True, texts, expected, (*case.limits, *own)):
        if not difference.reason:
            raise ConversionError(
                f"the tokenizer rebuilt from the file is not what llama.cpp makes of it: {difference}",
                hint="report the file",
            )
        reasons[difference.reason] += 1
    return tuple(
        f"tokenizer: {reason}: {count} of {len(texts)} probes differ" for reason, count in reasons.items()
    )


def _words(path: Path, header: Header) -> Words:
    """The vocabulary without the padding at its end. Raises as `restore`."""
    kind = header.get("tokenizer.ggml.model", str, "none")
    if kind not in DEFAULTS:
        raise ConversionError(
            f"the file's tokenizer is of the kind {kind[:40]!r}", hint=f"known are {', '.join(DEFAULTS)}"
        )

    def listed(key: str, of: type[Any]) -> list[Any]:
        found = gguf_header.elements(path, key) if key in header.metadata else ()
        if any(type(item) is not of for item in found):
            raise ConversionError(f"{key} holds other things than {of.__name__}")
        return list(found)

    tokens = listed("tokenizer.ggml.tokens", str)
    types = listed("tokenizer.ggml.token_type", int) or [NORMAL] * len(tokens)
    scores = listed("tokenizer.ggml.scores", float)
    merges = listed("tokenizer.ggml.merges", str)
    if not tokens or len(types) != len(tokens) or (scores and len(scores) != len(tokens)):
        raise ConversionError(
            f"the file's tokenizer has {len(tokens)} tokens, {len(types)} types and {len(scores)} scores"
        )
    check_distinct(tokens)
    while tokens and types[-1] == UNUSED and re.fullmatch(r"\[PAD\d+\]", tokens[-1]):
        tokens.pop(), types.pop()
    pre = header.get(PRE, str, "default")
    return Words(kind, pre, tokens, types, scores[: len(tokens)], merges)


def _special_ids(words: Words, header: Header, before: Sequence[int], after: Sequence[int]) -> dict[str, int]:
    """bos, eos, unk… → id, as the header says or llama.cpp has by default."""
    typed = enumerate(words.types)
    special = {index for index, kind in typed if kind in (CONTROL, UNKNOWN)}
    ids = {which: index for which, index in DEFAULTS[words.kind].items() if index in special}
    for which, key in specials.KEYS.items():
        index = header.get(key, int, -1)
        if index >= 0:
            ids[which] = index
    if words.kind == "bert" and before and after:
        ids |= {"cls": before[0], "sep": after[0]}
        ids = {which: index for which, index in ids.items() if which not in ("bos", "eos")}
    return {which: index for which, index in ids.items() if index < len(words.tokens)}


def _listed(words: Words) -> list[tuple[int, tuple[str, int]]]:
    typed = enumerate(zip(words.tokens, words.types, strict=True))
    return [(index, entry) for index, entry in typed if entry[1] in ADDED]


def _added(index: int, token: str, kind: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": token, **flags, "special": kind != USER_DEFINED}


def _around(words: Words, before: Sequence[int], after: Sequence[int]) -> dict[str, Any] | None:
    """The post-processor that puts these around a text, and between the two of a pair."""
    if words.pre == "roberta-bpe" and words.kind == "gpt2" and before and after:
        ends = {which: [words.tokens[ids[0]], ids[0]] for which, ids in (("sep", after), ("cls", before))}
        return {"type": "RobertaProcessing", **ends, "trim_offsets": True, "add_prefix_space": False}
    if not before and not after:
        return None

    def put(ids: Sequence[int], which: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": words.tokens[index], "type_id": which}} for index in ids]

    def text(name: str, which: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": which}}

    first = [*put(before, 0), text("A", 0), *put(after, 0)]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *([] if after else put(before, 1)), text("B", 1), *put(after, 1)],
        "special_tokens": {
            words.tokens[index]: {"id": words.tokens[index], "ids": [index], "tokens": [words.tokens[index]]}
            for index in {*before, *after}
        },
    }
