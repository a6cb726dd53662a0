"""Reading the parts of a tokenizer.json, whose normalizers and pre-tokenizers nest in sequences.

Its format is what the `tokenizers` package writes (huggingface.co/docs/tokenizers).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from edge.errors import ConversionError

from .trial import Limit

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
FORMS: tuple[Form, ...] = ("NFC", "NFD", "NFKC", "NFKD")


def steps(part: object, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences unrolled."""
    if not isinstance(part, Mapping) or depth > 8:
        return
    inner = part.get("normalizers") or part.get("pretokenizers")
    if isinstance(inner, list):
        for one in inner:
            yield from steps(one, depth + 1)
    else:
        yield part


def model_of(tokenizer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its model. Raises ConversionError where there is none."""
    model = tokenizer.get("model")
    if not isinstance(model, Mapping):
        raise ConversionError("tokenizer.json has no model", hint="download the checkpoint again")
    return model


def model_type(model: Mapping[str, Any]) -> str:
    """Its type; old files leave it out, and their keys tell."""
    said = model.get("type")
    if said is not None:
        return str(said)
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"


def vocab_items(model: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The (token, id) pairs of a model that maps one to the other. Raises ConversionError for another shape."""
    vocab = model.get("vocab")
    if not isinstance(vocab, Mapping):
        raise ConversionError("tokenizer.json: the vocabulary does not map tokens to ids")
    return list(vocab.items())


def merges_of(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges in order: "a b" in older files, ["a", "b"] in newer. Raises ConversionError for other shapes."""
    pairs = []
    for merge in model.get("merges") or ():
        pair = merge.split(" ") if type(merge) is str else merge
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            raise ConversionError(f"tokenizer.json: {str(merge)[:60]!r} is not a merge of two tokens")
        pairs.append((pair[0], pair[1]))
    return pairs


def general_limits(tokenizer: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> list[Limit]:
    """What llama.cpp does for no kind of tokenizer: Unicode normal forms, and white space beside special tokens."""
    named = {step.get("type") for step in steps(tokenizer.get("normalizer"))}
    limits = [_form_limit(form) for form in FORMS if form in named]
    stripping = [str(token["content"]) for token in added if token.get("lstrip") or token.get("rstrip")]
    if stripping:
        limits.append(
            Limit(
                f"llama.cpp keeps the white space beside {stripping[0]}"
                + (f" and {len(stripping) - 1} more" if len(stripping) > 1 else ""),
                lambda difference: any(token in difference.text for token in stripping),
            )
        )
    return limits


def _form_limit(form: Form) -> Limit:
    return Limit(
        f"llama.cpp does not bring text to {form}",
        lambda difference: unicodedata.normalize(form, difference.text) != difference.text,
    )
