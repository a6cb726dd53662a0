"""From a Hugging Face folder's tokenizer files to GGUF's `tokenizer.*` fields, proven by trial.

The fields are written into a GGUF file without weights, llama.cpp loads it, and its ids are compared with the
original's over a set of hard texts. Where no way to write them gives the same ids, nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.errors import ConversionError

from . import cases, files, reference, sentencepiece, wordpiece
from .trial import Difference, choose

__all__ = ["Difference", "Proof", "Tokenizer", "convert"]


@dataclass(frozen=True)
class Proof:
    """What was tried and what it showed.

    `probes` texts were compared; all but `differences` gave the original's ids, and those fall under limits of
    llama.cpp that no field lifts, each named in `notes`.
    """

    kind: str
    candidate: str
    tried: tuple[str, ...]
    probes: int
    differences: tuple[Difference, ...]
    followed: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Tokenizer:
    """`fields`: `tokenizer.ggml.*` key → value, as `gguf.head` takes them."""

    fields: dict[str, Any]
    chat_template: str | None
    proof: Proof


def convert(folder: Path, config: Mapping[str, Any], vocab_rows: int) -> Tokenizer:
    """The fields for the tokenizer in `folder`, padded to `vocab_rows` tokens, the embedding's rows.

    config is the checkpoint's config.json, asked for special ids that the tokenizer's files do not name. Takes
    half a second to two for each way tried. Raises ConversionError for files that are missing, damaged, too
    large or of an unknown kind, and where llama.cpp cannot give the original's ids.
    """
    found, original, notes = _original(files.read(folder))
    source = cases.Source(found, original, config, vocab_rows)
    if found.tokenizer_json is not None:
        case = cases.from_json(source, found.tokenizer_json)
    else:
        assert found.sentencepiece is not None  # _original saw to it
        case = cases.from_model(source, found.sentencepiece)
    texts = cases.texts(case, original)
    outcome = choose(case.candidates, original, texts, case.limits)
    limits: dict[str, int] = {}
    for difference in outcome.differences:
        limits[difference.reason] = limits.get(difference.reason, 0) + 1
    return Tokenizer(
        fields=dict(outcome.candidate.fields),
        chat_template=found.chat_template,
        proof=Proof(
            kind=case.kind,
            candidate=outcome.candidate.name,
            tried=outcome.tried,
            probes=outcome.probes,
            differences=outcome.differences,
            followed=found.followed,
            notes=(
                *found.notes,
                *notes,
                *case.notes,
                *(f"{reason}: {count} of {len(texts)} probes differ" for reason, count in limits.items()),
            ),
        ),
    )


def _original(found: files.Files) -> tuple[files.Files, reference.Reference, list[str]]:
    """The files to follow, the tokenizer they describe, and notes. Raises ConversionError where there is none."""
    if found.tokenizer_json is not None:
        try:
            return found, reference.from_json(found.tokenizer_text), []
        except ConversionError as error:
            if found.sentencepiece is None or error.hint == reference.INSTALL:
                raise
            notes = [f"{error}; the SentencePiece file is followed"]
            followed = tuple(name for name in found.followed if name != "tokenizer.json")
            original = _of_model(found.sentencepiece, found.settings)
            return replace(found, tokenizer_json=None, followed=followed), original, notes
    if found.sentencepiece is not None:
        return found, _of_model(found.sentencepiece, found.settings), []
    if found.vocab_txt is not None:
        tokenizer = wordpiece.from_vocab_txt(found.vocab_txt, found.settings, found.specials)
        added = files.checked_added([(token["id"], token) for token in tokenizer["added_tokens"]])
        found = replace(found, tokenizer_json=tokenizer, added=added, followed=("vocab.txt", *found.followed))
        return found, reference.from_json(json.dumps(tokenizer)), []
    raise ConversionError(
        "the folder has no tokenizer: no tokenizer.json, tokenizer.model or vocab.txt",
        hint="download the checkpoint's tokenizer files too",
    )


def _of_model(model: sentencepiece.Model, settings: Mapping[str, Any]) -> reference.Reference:
    """A lone SentencePiece file's, with what its kind of model has around a text unless said otherwise."""
    decoder = model.model_type == sentencepiece.BPE
    ids = model.specials
    return reference.from_sentencepiece(
        model.raw,
        ids.get("bos") if settings.get("add_bos_token", decoder) else None,
        ids.get("eos") if settings.get("add_eos_token", not decoder) else None,
    )
