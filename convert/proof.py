"""The certificate: what a file was made of, and how near it comes to what its source computes."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import gguf_header
from edge.engine.binding import listen, llama, why
from edge.engine.vocab import Vocab
from edge.errors import ConversionError
from edge.store.content import digest

Array = NDArray[Any]

# Enough kinds of text to use every part of a model; all comparisons are on it.
TEXT = (
    "The ferry left at 7:45, later than the timetable said, and nobody on the quay seemed to mind. Clara counted "
    "the crates twice: forty-two of oranges, nine of lamp oil, one marked «fragile» in three languages. "
    "If x + 3 = 10, then x is 7. She wrote it all down.\n\n"
    "def total(items):\n    return sum(item.price for item in items)\n"
)
# A file that holds every weight must compute the same, up to arithmetic in f16 and bf16.
EXACT = {"f32": 0.02, "f16": 0.05, "bf16": 0.1}


@dataclass(frozen=True)
class Comparison:
    """Logits of the file against the reference's, over all positions of the fixed text.

    logit_error     greatest absolute difference over the reference's greatest absolute logit
    kl_divergence   mean over positions of KL(reference ‖ file), in nats
    top1_agreement  share of positions at which both think the same token the likeliest
    """

    tokens: int
    logit_error: float
    kl_divergence: float
    top1_agreement: float


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
    """What a file is held to: the source's hashes by file, its tokenizer's proof, ids and logits of the text."""

    source: Mapping[str, str]
    tokenizer: Mapping[str, Any]
    ids: Array
    logits: Array


def certify(path: Path, level: str, reference: Reference, *, exact: bool) -> Certificate:
    """Compare the file at `path` with the reference.

    Raises ConversionError where a level that loses nothing (`exact`: and was not bent) does not compute the same.
    """
    comparison = compare(file_logits(path, reference.ids), reference.logits)
    bound = EXACT.get(level) if exact else None
    if bound is not None and not (comparison.logit_error <= bound and comparison.top1_agreement >= 0.9):
        raise ConversionError(
            f"{path.name} does not compute what its source does: logit error {comparison.logit_error:.3g}, "
            f"top-1 agreement {comparison.top1_agreement:.0%}",
            hint="this is a bug, or a model that only looks like its family",
        )
    return Certificate(
        file=path.name,
        level=level,
        bytes=path.stat().st_size,
        sha256=digest(path, lambda step: None),
        source=reference.source,
        tools={name: version(name) for name in ("edge-runtime", "llama-cpp-python", "gguf", "numpy")},
        tokenizer=reference.tokenizer,
        tensor_types={tensor.name: tensor.type for tensor in gguf_header.read(path).tensors},
        comparison=comparison,
    )


def write(certificate: Certificate, path: Path) -> Path:
    """Put the certificate beside its file, atomically."""
    target = path.with_suffix(".json")
    draft = target.with_name(target.name + ".partial")
    draft.write_text(json.dumps(asdict(certificate), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(target)
    return target


def compare(theirs: Array, reference: Array) -> Comparison:
    """How far two sets of logits (tokens, vocabulary) are apart."""
    log_reference, log_theirs = log_softmax(reference), log_softmax(theirs)
    divergence = (np.exp(log_reference) * (log_reference - log_theirs)).sum(axis=-1)
    return Comparison(
        tokens=len(reference),
        logit_error=float(np.abs(theirs - reference).max() / np.abs(reference).max()),
        kl_divergence=float(divergence.mean()),
        top1_agreement=float((theirs.argmax(axis=-1) == reference.argmax(axis=-1)).mean()),
    )


def log_softmax(logits: Array) -> Array:
    """In float64: small divergences are differences of large numbers."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def file_logits(path: Path, ids: Array) -> Array:
    """llama.cpp's logits of a file for every position of a prompt: (tokens, vocabulary), f32.

    Raises ConversionError where llama.cpp does not load or decode it.
    """
    with loaded(path) as model:
        return model_logits(llama(), model, ids)


def text_ids(path: Path) -> Array:
    """The fixed text in the file's own tokens."""
    with loaded(path, vocab_only=True) as model:
        return np.array(Vocab(model).tokens(TEXT))


@contextmanager
def loaded(path: Path, *, vocab_only: bool = False) -> Iterator[Any]:
    """A model on the CPU, freed afterwards. Raises ConversionError where llama.cpp does not load it."""
    lib = llama()
    listen()
    params = lib.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only = 0, vocab_only
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ConversionError(f"llama.cpp does not load {path.name}: {why('it gives no reason')}")
    try:
        yield model
    finally:
        lib.llama_model_free(model)


def model_logits(lib: Any, model: Any, ids: Array) -> Array:
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(256, len(ids))
    params.n_threads = params.n_threads_batch = os.cpu_count() or 1
    # The weights are judged, not the cache; flash attention would round keys and values to f16 all the same.
    params.type_k = params.type_v = lib.GGML_TYPE_F32
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ConversionError(f"llama.cpp opens no context for it: {why('it gives no reason')}")
    batch = lib.llama_batch_init(len(ids), 0, 1)
    try:
        for row, token in enumerate(ids):
            batch.token[row], batch.pos[row], batch.n_seq_id[row], batch.logits[row] = (
                int(token),
                row,
                1,
                True,
            )
            batch.seq_id[row][0] = 0
        batch.n_tokens = len(ids)
        if lib.llama_decode(context, batch):
            raise ConversionError(f"llama.cpp does not decode it: {why('it gives no reason')}")
        size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        rows = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
        return np.array(np.ctypeslib.as_array(rows, shape=(len(ids), size)))
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(context)
