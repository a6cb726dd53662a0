"""The certificate of an ONNX folder: its graph run by ONNX Runtime beside the family's pass in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ConversionError, RequestError, StoreError
from edge.onnx_folder import DATA, GRAPH
from edge.store.content import digest

from .. import numpy_ops, proof
from ..understood import Understood
from . import computed
from .computed import Text
from .folder import weights_bytes
from .model import several_types
from .tokenizer_json import Words

Array = NDArray[Any]

# Most that a graph which keeps every weight (fp16: rounds it to half) may be off, relative to the greatest value
EXACT = {"fp32": 1e-4, "fp16": 0.02}
PADDED = 1e-4  # and a padded batch of it, from its texts one by one
MOST_LINES = 5000
MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Agreement:
    """How two levels answer a text of the user's, line by line.

    share  of the lines, or of their tokens where each has a label, with the same likeliest label;
    cosine of the lines' embeddings, the least and the mean;
    score_error  where the model gives one score: the greatest difference over the greatest score
    """

    text: str
    lines: int
    beside: str
    share: float | None = None
    least_cosine: float | None = None
    mean_cosine: float | None = None
    score_error: float | None = None


@dataclass(frozen=True)
class Certificate(proof.Certificate):
    """`tensor_types` are by the checkpoint's names, `sha256` is model.onnx's and `data_sha256` model.onnx.data's.

    padded_error  greatest difference between texts in a padded batch and one by one, over the greatest value
    pieces_error  a decoder's: the same between a text read at once, in pieces, and token by token
    """

    padded_error: float = 0.0
    pieces_error: float | None = None
    data_sha256: str | None = None
    agreement: Agreement | None = None


def expected(model: Understood, words: Words, most: int) -> tuple[list[Text], proof.Reference]:
    """The fixed texts in tokens, a pair where the model knows pairs, and what the family's pass makes of them."""
    typed = several_types(model.config)
    texts: list[str | tuple[str, str]] = [*proof.TEXTS]
    if typed:
        texts.append((proof.TEXTS[2], proof.TEXTS[0]))
    encoded = words.encode(texts, most)
    hidden, logits, pooled = [], [], []
    for ids, types in encoded:
        more = {"token_types": np.array(types)} if typed else {}
        states, output = model.family.forward(numpy_ops, model.float32, model.config, np.array(ids), **more)
        if output is not None:
            logits.append(output)
        else:
            hidden.append(states)
            if model.config.pooling != "none":
                pooled.append(proof.pool(states, model.config.pooling))
    return encoded, proof.Reference(
        source=model.checkpoint.sha256(),
        tokenizer={"kind": words.tokenizer.model.__class__.__name__, "followed": list(words.followed)},
        ids=np.concatenate([np.array(ids) for ids, _ in encoded]),
        logits=np.concatenate(logits) if logits else None,
        hidden=np.concatenate(hidden) if hidden else None,
        pooled=np.stack(pooled) if pooled else None,
    )


def certify(
    folder: Path, level: str, types: Mapping[str, str], texts: Sequence[Text], reference: proof.Reference
) -> Certificate:
    """Run the folder's graph on the texts one by one and in one padded batch, and compare.

    Raises ConversionError where a level that keeps every weight does not compute the same, or padding changes it.
    """
    session = computed.session(folder / GRAPH)
    single = [computed.run(session, [text])[0] for text in texts]
    comparison = proof.compare(computed.together(single), reference)
    padded = padded_error(single, computed.run(session, texts))
    if level in EXACT:
        wrong = proof.beyond(comparison, EXACT[level], many=False)
        if not padded <= PADDED:
            wrong.append(f"padded texts differ by {padded:.3g}")
        refuse(level, wrong)
    return replace(of_folder(folder, level, types, reference, comparison), padded_error=padded)


def refuse(level: str, wrong: Sequence[str]) -> None:
    """Raise ConversionError where a graph that keeps every weight is wrong in anything."""
    if wrong:
        raise ConversionError(
            f"the {level} graph does not compute what its source does: {', '.join(wrong)}",
            hint="this is a bug, or a model that only looks like its family",
        )


def of_folder(
    folder: Path,
    level: str,
    types: Mapping[str, str],
    reference: proof.Reference,
    comparison: proof.Comparison,
) -> Certificate:
    """The certificate of what a folder holds."""
    data = folder / DATA
    return Certificate(
        file=GRAPH,
        level=level,
        bytes=weights_bytes(folder),
        sha256=digest(folder / GRAPH, lambda step: None),
        source=reference.source,
        tools=tools(),
        tokenizer=reference.tokenizer,
        tensor_types=dict(types),
        comparison=comparison,
        data_sha256=digest(data, lambda step: None) if data.exists() else None,
    )


def padded_error(single: Sequence[computed.Result], padded: Sequence[computed.Result]) -> float:
    """The greatest difference, relative to the greatest value, of any output."""
    ours, theirs = computed.together(single), computed.together(padded)
    outputs = [(getattr(theirs, name), getattr(ours, name)) for name in ("hidden", "logits", "pooled")]
    return max(proof.error(found, wanted) for found, wanted in outputs if wanted is not None and wanted.size)


def tools() -> dict[str, str]:
    """What a folder is made with, and its version."""
    from importlib.metadata import version

    return {name: version(name) for name in ("edge-runtime", "onnx", "onnxruntime", "numpy", "tokenizers")}


def lines_of(path: Path) -> list[str]:
    """The lines of a text that levels are compared on. Raises StoreError, and RequestError for none or too many."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise RequestError(f"{path.name} is larger than {MOST_BYTES >> 20} MiB", hint="give fewer lines")
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is not UTF-8 text at byte {error.start}") from None
    if not 1 <= len(lines) <= MOST_LINES:
        raise RequestError(
            f"{path.name} has {len(lines):,} lines of text", hint=f"give from 1 to {MOST_LINES:,}"
        )
    return lines


def agreement(name: str, beside: str, theirs: Sequence[Array], ours: Sequence[Array], task: str) -> Agreement:
    """How the answers of a level agree with those of the level `beside`, text by text."""
    found = Agreement(name, len(ours), beside)
    if task == "embedding":
        rows = [
            (np.atleast_2d(x).mean(axis=0), np.atleast_2d(y).mean(axis=0))
            for x, y in zip(theirs, ours, strict=True)
        ]
        cosines = [float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y))) for x, y in rows]
        return replace(found, least_cosine=min(cosines), mean_cosine=float(np.mean(cosines)))
    if ours[0].shape[-1] == 1:
        return replace(found, score_error=proof.error(np.concatenate(theirs), np.concatenate(ours)))
    same = [np.ravel(x.argmax(axis=-1) == y.argmax(axis=-1)) for x, y in zip(theirs, ours, strict=True)]
    return replace(found, share=float(np.concatenate(same).mean()))
