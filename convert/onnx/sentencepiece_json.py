"""A tokenizer.json out of a lone SentencePiece file, as transformers makes it for XLM-R, DeBERTa and ALBERT.

Sources: the models' published tokenizer.json files and the tokenizers library's documentation.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from edge.errors import ConversionError

from ..tokenizer.sentencepiece import UNIGRAM, Model

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
SPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
NAMES = ("pad", "unk", "cls", "sep", "mask")
BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTA = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
ALBERT = {**BERT, "pad": "<pad>", "unk": "<unk>"}
# What a class's name begins with → its special tokens where no file names them
KINDS = {"XLMRoberta": ROBERTA, "Deberta": BERT, "Albert": ALBERT}


def tokenizer_json(
    model: Model, architecture: str, specials: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The tokenizer of a class, `specials` and `settings` being what its files say.

    Raises ConversionError for classes that are not among KINDS, and a model that is not Unigram.
    """
    kind = next((kind for kind in KINDS if architecture.startswith(kind)), None)
    if kind is None or model.model_type != UNIGRAM:
        raise ConversionError(
            f"the folder has a SentencePiece file alone, and of {architecture} nobody here knows what goes with it",
            hint="transformers' save_pretrained of the fast tokenizer writes a tokenizer.json",
        )
    texts = {name: specials.get(name, KINDS[kind][name]) for name in NAMES}
    pieces = list(zip(model.pieces, model.scores, strict=True))
    if kind == "XLMRoberta":  # fairseq has its own four first; the file's first three are among them
        first = [(texts[name], 0.0) for name in ("cls", "pad", "sep", "unk")]
        pieces = [*first, *pieces[3:]]
    ids = {text: index for index, (text, _) in enumerate(pieces)}
    if texts["mask"] not in ids:
        ids[texts["mask"]] = len(pieces)
        if kind == "XLMRoberta":
            pieces.append((texts["mask"], 0.0))
    missing = [text for text in texts.values() if text not in ids]
    if missing:
        raise ConversionError(f"the SentencePiece file has no {missing[0]}", hint="it is of another model")
    added = sorted((ids[text], text) for text in texts.values())
    return {
        "version": "1.0",
        "added_tokens": [{"id": index, "content": text, **FLAGS} for index, text in added],
        "normalizer": {"type": "Sequence", "normalizers": normalizers(kind, model, settings)},
        "pre_tokenizer": SPACE,
        "post_processor": around(texts, ids, typed=kind != "XLMRoberta"),
        "decoder": SPACE,
        "model": {
            "type": "Unigram",
            "unk_id": ids[texts["unk"]],
            "vocab": [list(piece) for piece in pieces],
            "byte_fallback": False,
        },
    }


def normalizers(kind: str, model: Model, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The family's own steps, SentencePiece's table, and runs of spaces as one."""
    steps: list[dict[str, Any]] = []
    if kind == "Deberta":
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        if settings.get("do_lower_case"):
            steps.append({"type": "Lowercase"})
    if kind == "Albert":
        steps += [
            {"type": "Replace", "pattern": {"String": quotes}, "content": '"'} for quotes in ("``", "''")
        ]
        if not settings.get("keep_accents"):
            steps += [{"type": "NFKD"}, {"type": "StripAccents"}]
        if settings.get("do_lower_case", True):
            steps.append({"type": "Lowercase"})
    if model.charsmap:
        table = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    return [*steps, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]


def around(texts: Mapping[str, str], ids: Mapping[str, int], *, typed: bool) -> dict[str, Any]:
    """[CLS] A [SEP] B [SEP], B of type 1; RoBERTa's kind has no types, and two of its marks between the texts."""
    begin, end = ({"SpecialToken": {"id": texts[name], "type_id": 0}} for name in ("cls", "sep"))
    first = [begin, {"Sequence": {"id": "A", "type_id": 0}}, end]
    kind = int(typed)
    second = [
        {"Sequence": {"id": "B", "type_id": kind}},
        {"SpecialToken": {"id": texts["sep"], "type_id": kind}},
    ]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second] if typed else [*first, end, *second],
        "special_tokens": {
            text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in (texts["cls"], texts["sep"])
        },
    }
