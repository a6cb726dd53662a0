"""Each kind of tokenizer made ready for the trial: its vocabulary, the ways to write it, llama.cpp's limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import ConversionError

from . import bpe, bytefallback, parts, probes, sentencepiece, specials, unigram, wordpiece
from .files import Files
from .reference import Reference, from_sentencepiece
from .trial import Candidate, Limit
from .vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary, assemble, check_distinct


def _spaced(token: str) -> str:
    return token.replace("▁", " ")


@dataclass(frozen=True)
class Case:
    """`notes` say what the files disagree on; `spell` gives the text that a token stands for."""

    kind: str
    candidates: Sequence[Candidate]
    limits: Sequence[Limit]
    vocabulary: Vocabulary
    notes: tuple[str, ...] = ()
    spell: Callable[[str], str] = _spaced


@dataclass(frozen=True)
class Source:
    """The files, the reference that reads them, the checkpoint's config.json and its embedding's rows."""

    files: Files
    reference: Reference
    config: Mapping[str, Any]
    rows: int

    def assemble(
        self, pairs: Sequence[tuple[str, int]], unknown: str | None, kinds: Mapping[int, int] | None = None
    ) -> Vocabulary:
        """The vocabulary with the added tokens. Raises ConversionError as `vocabulary.assemble`."""
        controls = [text for which, text in self.files.specials.items() if which != "unk"]
        return assemble(
            pairs, self.files.added, unknown=unknown, controls=controls, kinds=kinds, rows=self.rows
        )

    def common(
        self, model: str, vocabulary: Vocabulary, tokens: Sequence[str], own: Mapping[str, int]
    ) -> dict[str, Any]:
        """The fields that every kind has; own: special ids that the tokenizer's model itself names."""
        check_distinct(tokens)
        ids = {**own, **specials.known(self.files, self.config, vocabulary)}
        return {
            "tokenizer.ggml.model": model,
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": list(tokens),
            "tokenizer.ggml.token_type": list(vocabulary.types),
            **specials.fields(ids, self.reference, vocabulary),
        }


def from_json(source: Source, tokenizer: Mapping[str, Any]) -> Case:
    """Of a tokenizer.json. Raises ConversionError for a kind that llama.cpp does not have."""
    model = parts.model_of(tokenizer)
    kind = parts.model_type(model)
    if kind == "WordPiece":
        return _wordpiece(source, tokenizer, model)
    if kind == "Unigram":
        return _unigram(source, tokenizer, model)
    if kind == "BPE" and bpe.is_byte_level(tokenizer):
        return _byte_level(source, tokenizer, model)
    if kind == "BPE" and model.get("byte_fallback"):
        return _byte_fallback(source, tokenizer, model)
    what = "BPE without bytes" if kind == "BPE" else kind
    raise ConversionError(
        f"tokenizer.json is of a kind that llama.cpp does not have: {what[:40]}",
        hint="byte-level BPE, BPE with byte fallback, WordPiece and Unigram convert",
    )


def from_model(source: Source, model: sentencepiece.Model) -> Case:
    """Of a lone SentencePiece file. Raises ConversionError for one that is neither BPE nor Unigram."""
    pairs = [(piece, index) for index, piece in enumerate(model.pieces)]
    unknown = model.pieces[model.specials["unk"]] if "unk" in model.specials else None
    base = source.assemble(pairs, unknown, dict(enumerate(model.kinds)))
    vocabulary = base.padded(source.rows)
    notes = _uncovered(source.files.added, len(pairs))
    if model.model_type == sentencepiece.BPE:
        bytefallback.byte_kinds(pairs)
        tokens = bytefallback.tokens(vocabulary)
        fields = source.common("llama", vocabulary, tokens, model.specials)
        scores = [*model.scores, *[0.0] * (len(tokens) - len(pairs))]
        ways = bytefallback.candidates(fields, [("tokenizer.model", scores)], prefix=model.add_dummy_prefix)
        return Case("SentencePiece BPE", ways, (), base, notes)
    if model.model_type == sentencepiece.UNIGRAM:
        fields = source.common("t5", vocabulary, vocabulary.tokens, model.specials)
        fields["tokenizer.ggml.scores"] = unigram.padded(model.scores, len(vocabulary.tokens))
        ways = unigram.candidates(
            fields, model.charsmap, prefix=model.add_dummy_prefix, remove=model.remove_extra_whitespaces
        )
        return Case("SentencePiece Unigram", ways, (), base, notes)
    raise ConversionError(
        "the SentencePiece model is neither BPE nor Unigram", hint="llama.cpp has these two"
    )


def texts(case: Case, original: Reference) -> tuple[str, ...]:
    """The probes for this vocabulary: the hard ones, its own words, its special tokens (the first 12)."""
    typed = list(zip(case.vocabulary.tokens, case.vocabulary.types, strict=True))
    normal = [token for token, kind in typed if kind == NORMAL]
    marked = [token for token, kind in typed if kind in (CONTROL, USER_DEFINED)][:12]
    own = probes.from_vocabulary(normal, case.spell)
    return (*probes.HARD, *own, *(probes.around(marked) if original.parses_special else ()))


def _wordpiece(source: Source, tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Case:
    base = source.assemble(parts.vocab_items(model), str(model.get("unk_token")))
    vocabulary = base.padded(source.rows)
    unknown, reference = base.find(str(model.get("unk_token"))), source.reference
    if unknown is None or not reference.before or not reference.after:
        raise ConversionError("WordPiece without an unknown token, [CLS] before or [SEP] after a text")
    fields = source.common("bert", vocabulary, wordpiece.tokens(vocabulary, model), {"unk": unknown})
    fields |= {specials.KEYS["cls"]: reference.before[0], specials.KEYS["sep"]: reference.after[0]}
    limits = [*wordpiece.limits(tokenizer), *_general_limits(source, tokenizer)]
    return Case("WordPiece", wordpiece.candidates(tokenizer, fields), limits, base)


def _unigram(source: Source, tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Case:
    pairs, scores = unigram.pieces_of(model)
    unknown = model.get("unk_id")
    if isinstance(unknown, bool) or not isinstance(unknown, int) or not 0 <= unknown < len(pairs):
        raise ConversionError("tokenizer.json: the Unigram model names no unknown token")
    base = source.assemble(pairs, pairs[unknown][0])
    vocabulary = base.padded(source.rows)
    fields = source.common("t5", vocabulary, vocabulary.tokens, {"unk": unknown})
    fields["tokenizer.ggml.scores"] = unigram.padded(scores, len(vocabulary.tokens))
    scheme = bytefallback.space_before(tokenizer)
    remove = unigram.merges_spaces(tokenizer)
    charsmap = unigram.charsmap_of(tokenizer)
    ways = unigram.candidates(fields, charsmap, prefix=scheme != "never", remove=remove)
    limits = [
        *bytefallback.limits(scheme, _added(source)),
        *unigram.limits(charsmap),
        *_general_limits(source, tokenizer),
    ]
    return Case("Unigram", ways, limits, base)


def _byte_level(source: Source, tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Case:
    base = source.assemble(parts.vocab_items(model), None)
    vocabulary = base.padded(source.rows)
    fields = source.common("gpt2", vocabulary, vocabulary.tokens, {})
    fields["tokenizer.ggml.merges"] = [" ".join(merge) for merge in parts.merges_of(model)]
    limits = _general_limits(source, tokenizer)
    return Case("byte-level BPE", bpe.candidates(tokenizer, fields), limits, base, spell=bpe.spell)


def _byte_fallback(source: Source, tokenizer: Mapping[str, Any], model: Mapping[str, Any]) -> Case:
    pairs = parts.vocab_items(model)
    base = source.assemble(pairs, model.get("unk_token"), bytefallback.byte_kinds(pairs))
    vocabulary = base.padded(source.rows)
    fields = source.common("llama", vocabulary, bytefallback.tokens(vocabulary), {})
    scheme = bytefallback.space_before(tokenizer)
    scores = [("tokenizer.json", bytefallback.merge_scores(vocabulary, parts.merges_of(model)))]
    notes = []
    if lone := source.files.sentencepiece:
        notes = _disagreements(lone, base, source)
        if lone.pieces == base.tokens[: len(lone.pieces)]:
            rest = len(vocabulary.tokens) - len(lone.pieces)
            scores.insert(0, ("tokenizer.model", [*lone.scores, *[scores[0][1][-1]] * rest]))
    limits = [*bytefallback.limits(scheme, _added(source)), *_general_limits(source, tokenizer)]
    strips = any(token.get("rstrip") for token in _added(source))
    ways = bytefallback.candidates(fields, scores, prefix=scheme != "never", strips=strips)
    return Case("byte-fallback BPE", ways, limits, base, tuple(notes))


def _disagreements(lone: sentencepiece.Model, base: Vocabulary, source: Source) -> list[str]:
    """Where tokenizer.model and tokenizer.json, both in one folder, are not the same tokenizer."""
    follow = "tokenizer.json is followed"
    shared = zip(lone.pieces, base.tokens, strict=False)
    if (index := next((i for i, pair in enumerate(shared) if pair[0] != pair[1]), None)) is not None:
        return [f"tokenizer.model and tokenizer.json disagree on token {index}; {follow}"]
    if len(lone.pieces) > len(base.tokens):
        return [f"tokenizer.model has {len(lone.pieces)} tokens, tokenizer.json {len(base.tokens)}; {follow}"]
    before, after = source.reference.before, source.reference.after
    model = from_sentencepiece(lone.raw, next(iter(before), None), next(iter(after), None))
    contents = [str(token["content"]) for token in _added(source)]
    texts = [text for text in probes.HARD if not any(content in text for content in contents)]
    wrong = [text for text in texts if model.encode(text) != source.reference.encode(text)]
    if not wrong:
        return []
    return [
        f"tokenizer.model and tokenizer.json disagree on {len(wrong)} of {len(texts)} texts, {wrong[0]!r:.60} the "
        f"first; {follow}"
    ]


def _general_limits(source: Source, tokenizer: Mapping[str, Any]) -> list[Limit]:
    return parts.general_limits(tokenizer, _added(source))


def _added(source: Source) -> list[Mapping[str, Any]]:
    return list(source.files.added.values())


def _uncovered(added: Mapping[int, Mapping[str, Any]], pieces: int) -> tuple[str, ...]:
    count = sum(index >= pieces for index in added)
    return (f"{count} added tokens are not in the SentencePiece file, so not proven",) if count else ()
