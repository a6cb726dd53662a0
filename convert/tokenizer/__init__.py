"""From a Hugging Face folder's tokenizer files to GGUF's `tokenizer.*` fields, proven by trial.

The fields are written into a GGUF file without weights, llama.cpp loads it, and its ids are compared with the
original's over a set of hard texts. Where no way to write them gives the same ids, nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge import gguf_header
from edge.errors import ConversionError

from . import cases, files, reference, sentencepiece, wordpiece
from .trial import Difference, choose, differences, model

__all__ = ["Difference", "Proof", "Tokenizer", "compare", "convert"]

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


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
    """`fields`: `tokenizer.ggml.*` key → value, as `gguf.head` takes them.

    `json`: a tokenizer.json of it, None where only a SentencePiece file is there.
    """

    fields: dict[str, Any]
    json: str | None
    chat_template: str | None
    proof: Proof


def convert(folder: Path, config: Mapping[str, Any], vocab_rows: int) -> Tokenizer:
    """The fields for the tokenizer in `folder`, padded to `vocab_rows` tokens, the embedding's rows.

    config is the checkpoint's config.json, asked for special ids that the tokenizer's files do not name. Takes
    half a second to two for each way tried. Raises ConversionError for files that are missing, damaged, too
    large or of an unknown kind, and where llama.cpp cannot give the original's ids.
    """
    found, original, case, notes = _understood(folder, config, vocab_rows)
    texts = cases.texts(case, original)
    outcome = choose(case.candidates, original, texts, case.limits)
    return Tokenizer(
        fields=dict(outcome.candidate.fields),
        json=None if found.tokenizer_json is None else compact(found.tokenizer_json),
        chat_template=found.chat_template,
        proof=Proof(
            kind=case.kind,
            candidate=outcome.candidate.name,
            tried=outcome.tried,
            probes=outcome.probes,
            differences=outcome.differences,
            followed=found.followed,
            notes=(*notes, *_counted(outcome.differences, len(texts))),
        ),
    )


def compact(tokenizer: Mapping[str, Any]) -> str:
    """The same JSON without the indentation that makes up half of such a file."""
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))


def compare(folder: Path, config: Mapping[str, Any], file: Path) -> Proof:
    """How the tokenizer in a GGUF file made elsewhere does beside the one in `folder`.

    A difference without a reason is one that no limit of llama.cpp explains. Raises as `convert` does.
    """
    tokens = gguf_header.elements(file, TOKENS)
    found, original, case, notes = _understood(folder, config, len(tokens))
    texts = cases.texts(case, original)
    fields = {TOKENS: tokens, TYPES: gguf_header.elements(file, TYPES)}
    every = (*case.limits, *(limit for candidate in case.candidates for limit in candidate.limits))
    expected = [original.encode(text) for text in texts]
    with model(file) as vocab:
        different = tuple(
            difference
            for _, difference in differences(vocab, fields, original.parses_special, texts, expected, every)
        )
    notes = (*notes, *_counted(different, len(texts)))
    return Proof(case.kind, file.name, (file.name,), len(texts), different, found.followed, notes)


def _understood(
    folder: Path, config: Mapping[str, Any], vocab_rows: int
) -> tuple[files.Files, reference.Reference, cases.Case, tuple[str, ...]]:
    """The files that are followed, the tokenizer they describe, the ways to write it, notes."""
    found, original, notes = _original(files.read(folder))
    source = cases.Source(found, original, config, vocab_rows)
    if found.tokenizer_json is not None:
        case = cases.from_json(source, found.tokenizer_json)
    else:
        assert found.sentencepiece is not None  # _original saw to it
        case = cases.from_model(source, found.sentencepiece)
    return found, original, case, (*found.notes, *notes, *case.notes)


def _counted(differences: Sequence[Difference], probes: int) -> tuple[str, ...]:
    """How many probes differ for each reason."""
    limits: dict[str, int] = {}
    for difference in differences:
        limits[difference.reason] = limits.get(difference.reason, 0) + 1
    return tuple(f"{reason}: {count} of {probes} probes differ" for reason, count in limits.items() if reason)


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
