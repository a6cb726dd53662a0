"""The certificate: what a file was made of, and how near it comes to what its source computes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import gguf_header
from edge.engine.encoder import task_of
from edge.errors import ConversionError
from edge.store.content import digest

from .computed import Outputs, file_logits, loaded, outputs, tokens
from .safetensors import atomic, put

__all__ = [
    "Certificate",
    "Comparison",
    "Reference",
    "certify",
    "expected",
    "file_logits",
    "loaded",
    "text_ids",
]

Array = NDArray[Any]

# Enough kinds of text to use every part of a model; all comparisons are on it. Decoders read it as one text,
# encoders, which give one answer a text, as four.
TEXTS = (
    "The ferry left at 7:45, later than the timetable said, and nobody on the quay seemed to mind.",
    "Clara counted the crates twice: forty-two of oranges, nine of lamp oil, one marked «fragile» in three languages.",
    "If x + 3 = 10, then x is 7. She wrote it all down.",
    "def total(items):\n    return sum(item.price for item in items)\n",
)
TEXT = " ".join(TEXTS[:3]) + "\n\n" + TEXTS[3]
# A file that holds every weight must compute the same, up to arithmetic in f16 and bf16.
EXACT = {"f32": 0.02, "f16": 0.05, "bf16": 0.1}
MANY = 10


@dataclass(frozen=True)
class Comparison:
    """What the file gives against the reference, over the fixed text; None where its kind of model has no such thing.

    tokens          positions that were compared
    hidden_error    greatest absolute difference of hidden states after the last norm over their greatest
                    absolute value in the reference
    logit_error     the same of logits: of a decoder's vocabulary, or of a classifier's labels
    kl_divergence   mean of KL(reference ‖ file) over positions, or over texts for a classifier of texts, in nats
    top1_agreement  share of those at which both think the same the likeliest
    cosine          smallest cosine of a text's embedding with the reference's
    """

    tokens: int
    hidden_error: float | None = None
    logit_error: float | None = None
    kl_divergence: float | None = None
    top1_agreement: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class Certificate:
    """What stands beside a file as NAME-LEVEL.json. Hashes are sha256, sizes bytes."""

    file: str
    level: str
    bytes: int
    sha256: str
    source: Mapping[str, str]
    tools: Mapping[str, str]
    tokenizer: Mapping[str, Any]
    tensor_types: Mapping[str, str]
    comparison: Comparison


@dataclass(frozen=True)
class Reference:
    """What a file is held to: the source's hashes by file, its tokenizer's proof, and what it computes.

    `ids` (tokens,) are all texts one after the other, `lengths` the tokens of each, one text where it is empty;
    `logits`, `hidden` and `pooled` are as in `Outputs`, and are not compared where they are None.
    """

    source: Mapping[str, str]
    tokenizer: Mapping[str, Any]
    ids: Array
    logits: Array | None
    hidden: Array | None = None
    pooled: Array | None = None
    lengths: tuple[int, ...] = ()

    @property
    def texts(self) -> list[Array]:
        return np.split(self.ids, np.cumsum(self.lengths)[:-1]) if self.lengths else [self.ids]


def expected(
    file: Path,
    compute: Callable[[Array], tuple[Array, Array | None]] | None,
    source: Mapping[str, str],
    tokenizer: Mapping[str, Any],
    pooling: str = "none",
) -> Reference:
    """The reference for the fixed text in the tokens of `file`.

    `compute` is a family's pass, ids → (hidden states, output), and `pooling` its configuration's (mean, cls, last,
    none); without a pass, `file` itself is the reference. Raises ConversionError as `outputs` does.
    """
    texts = tokens(file, [TEXT] if task_of(gguf_header.read(file)) == "generation" else TEXTS)
    if compute is None:
        ours = outputs(file, texts)
    else:
        passes = [compute(ids) for ids in texts]
        logits = [output for _, output in passes if output is not None]
        pooled = [pool(hidden, pooling) for hidden, output in passes if output is None and pooling != "none"]
        ours = Outputs(
            np.concatenate([hidden for hidden, _ in passes]),
            np.concatenate(logits) if logits else None,
            np.stack(pooled) if pooled else None,
        )
    lengths = tuple(len(ids) for ids in texts)
    return Reference(source, tokenizer, np.concatenate(texts), ours.logits, ours.hidden, ours.pooled, lengths)


def pool(hidden: Array, way: str) -> Array:
    """One vector (width,) of hidden states (tokens, width)."""
    return np.asarray({"mean": hidden.mean(axis=0), "cls": hidden[0], "last": hidden[-1]}[way])


def certify(path: Path, level: str, reference: Reference, *, exact: bool) -> Certificate:
    """Compare the file at `path` with the reference.

    Raises ConversionError where a level that loses nothing (`exact`: and was not bent) does not compute the same.
    """
    comparison = compare(outputs(path, reference.texts), reference)
    bound = EXACT.get(level) if exact else None
    # Of many positions few may lie between two choices; of a few texts any may.
    many = reference.logits is not None and len(reference.logits) >= MANY
    if bound is not None and (wrong := beyond(comparison, bound, many)):
        raise ConversionError(
            f"{path.name} does not compute what its source does: {', '.join(wrong)}",
            hint="this is a bug, or a model that only looks like its family",
        )
    return Certificate(
        file=path.name,
        level=level,
        bytes=path.stat().st_size,
        sha256=digest(path, lambda step: None),
        source=reference.source,
        tools=tools(),
        tokenizer=reference.tokenizer,
        tensor_types={tensor.name: tensor.type for tensor in gguf_header.read(path).tensors},
        comparison=comparison,
    )


def tools() -> dict[str, str]:
    """What a file is made with, and its version."""
    from importlib.metadata import version

    return {name: version(name) for name in ("edge-runtime", "llama-cpp-python", "gguf", "numpy")}


def beyond(comparison: Comparison, bound: float, many: bool) -> list[str]:
    """The figures that an exact file cannot have; `many` choices also have to agree."""
    wrong = [
        f"{name.replace('_', ' ')} {value:.3g}"
        for name in ("hidden_error", "logit_error")
        if (value := getattr(comparison, name)) is not None and not value <= bound
    ]
    if comparison.cosine is not None and not comparison.cosine >= 1 - bound:
        wrong.append(f"cosine {comparison.cosine:.3g}")
    if many and comparison.top1_agreement is not None and not comparison.top1_agreement >= 0.9:
        wrong.append(f"top-1 agreement {comparison.top1_agreement:.0%}")
    return wrong


def write(certificate: Certificate, path: Path) -> Path:
    """Put the certificate beside its file, atomically. Raises StoreError where the disk refuses."""
    target = path.with_suffix(".json")
    data = (json.dumps(asdict(certificate), indent=2, ensure_ascii=False) + "\n").encode()
    with atomic(target, len(data)) as fd:
        put(fd, data, target)
    return target


def compare(theirs: Outputs, reference: Reference) -> Comparison:
    """How far a file's outputs are from the reference's. Raises ConversionError where it gives others."""
    figures: dict[str, float] = {}
    if reference.hidden is not None:
        figures["hidden_error"] = error(theirs.hidden, reference.hidden)
    if reference.logits is not None:
        logits = matching("logits", theirs.logits, reference.logits)
        figures["logit_error"] = error(logits, reference.logits)
        if logits.shape[-1] > 1:  # one label is a number, not a choice
            figures |= choices(logits, reference.logits)
    if reference.pooled is not None:
        figures["cosine"] = cosine(matching("embeddings", theirs.pooled, reference.pooled), reference.pooled)
    return Comparison(len(reference.ids), **figures)


def matching(name: str, theirs: Array | None, ours: Array) -> Array:
    """The file's outputs, if they are there in the reference's shape. Raises ConversionError."""
    if theirs is None or theirs.shape != ours.shape:
        given = f"no {name}" if theirs is None else f"{name} of shape {theirs.shape}"
        raise ConversionError(
            f"the file gives {given}, its source {name} of shape {ours.shape}",
            hint="they are not of the same model",
        )
    return theirs


def error(theirs: Array, reference: Array) -> float:
    """The greatest absolute difference over the reference's greatest absolute value."""
    return float(np.abs(theirs - reference).max() / np.abs(reference).max())


def cosine(theirs: Array, reference: Array) -> float:
    """The smallest cosine of two rows."""
    lengths = np.linalg.norm(theirs, axis=-1) * np.linalg.norm(reference, axis=-1)
    return float(((theirs * reference).sum(axis=-1) / lengths).min())


def choices(theirs: Array, reference: Array) -> dict[str, float]:
    """How much the probabilities of two sets of logits (positions, classes) differ."""
    log_reference, log_theirs = log_softmax(reference), log_softmax(theirs)
    divergence = (np.exp(log_reference) * (log_reference - log_theirs)).sum(axis=-1)
    return {
        "kl_divergence": float(divergence.mean()),
        "top1_agreement": float((theirs.argmax(axis=-1) == reference.argmax(axis=-1)).mean()),
    }


def log_softmax(logits: Array) -> Array:
    """In float64: small divergences are differences of large numbers."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def text_ids(path: Path) -> Array:
    """The fixed text in the file's own tokens."""
    return tokens(path, [TEXT])[0]
