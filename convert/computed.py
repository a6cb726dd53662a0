"""What llama.cpp computes for a file: hidden states, logits, embeddings; every certificate compares them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import gguf_header
from edge.engine import heads
from edge.engine.binding import listen, llama, why
from edge.engine.encoder import task_of
from edge.engine.vocab import Vocab
from edge.errors import ConversionError
from edge.machine import host

Array = NDArray[Any]

NONE, RANK = 0, 4  # llama.h, enum llama_pooling_type
TOGETHER = (
    8  # texts that an encoder computes at once: attention's memory grows with the square of their tokens
)
Texts = Sequence[Array]  # ids (tokens,) of each


@dataclass(frozen=True)
class Outputs:
    """Of several texts, float32, one after the other.

    hidden  (tokens, width), after the last norm
    logits  (tokens, vocabulary or labels) or (texts, labels); None for a model that gives embeddings
    pooled  (texts, width), embeddings as the file pools them; None for other models, and where it does not pool
    """

    hidden: Array
    logits: Array | None = None
    pooled: Array | None = None


def outputs(path: Path, texts: Texts) -> Outputs:
    """llama.cpp's, for every position of every text; a head that it does not compute is applied here.

    Raises ConversionError where it does not load the file, does not compute it, or gives NaN or infinity.
    """
    header = gguf_header.read(path)
    task, pooling = task_of(header), header.get("{arch}.pooling_type", int, NONE)
    pooled = logits = None
    with loaded(path) as model:
        width = llama().llama_model_n_embd(model)
        if task == "generation":
            hidden, logits = decoded(model, texts)
        else:
            hidden = encoded(model, texts, NONE, width)
        if task == "classification" and pooling == RANK:
            logits = encoded(model, texts, RANK, llama().llama_model_n_cls_out(model))
        elif task in ("classification", "embedding") and pooling != NONE:
            pooled = encoded(model, texts, pooling, width)
    if logits is None and task in ("classification", "tokens"):
        head, below = heads.read(path), hidden if task == "tokens" else pooled
        if head is None or below is None:
            raise ConversionError(f"{path.name} has no head to apply", hint="convert it again")
        logits, pooled = heads.apply(head, below), None
    for values in (hidden, logits, pooled):
        if values is not None and not np.isfinite(values).all():
            raise ConversionError(f"llama.cpp computes NaN or infinity for {path.name}")
    return Outputs(hidden, logits, pooled)


def file_logits(path: Path, ids: Array) -> Array:
    """The logits alone, of one text: (tokens, vocabulary) for a decoder. Raises as `outputs`."""
    logits = outputs(path, [ids]).logits
    if logits is None:
        raise ConversionError(f"{path.name} gives embeddings, no logits")
    return logits


def decoded(model: Any, texts: Texts) -> tuple[Array, Array]:
    """Hidden states and logits (tokens, …) of a model that looks back only."""
    lib = llama()
    width, vocabulary = (
        lib.llama_model_n_embd(model),
        lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)),
    )
    hidden, logits = [], []
    with context_of(model, max(map(len, texts)), NONE) as context:
        for ids in texts:
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
            run(context, [ids], lib.llama_decode)
            hidden.append(array_at(lib.llama_get_embeddings(context), len(ids), width))
            logits.append(array_at(lib.llama_get_logits(context), len(ids), vocabulary))
    return np.concatenate(hidden), np.concatenate(logits)


def encoded(model: Any, texts: Texts, pooling: int, columns: int) -> Array:
    """Hidden states (tokens, columns) of a model that looks both ways, or with a pooling (texts, columns)."""
    lib, found = llama(), []
    groups = [texts[start : start + TOGETHER] for start in range(0, len(texts), TOGETHER)]
    most = max(sum(map(len, group)) for group in groups)
    with context_of(model, most, pooling, sequences=TOGETHER) as context:
        for group in groups:
            run(context, group, lib.llama_encode)
            if pooling == NONE:
                found.append(array_at(lib.llama_get_embeddings(context), sum(map(len, group)), columns))
            else:
                rows = (lib.llama_get_embeddings_seq(context, sequence) for sequence in range(len(group)))
                found.extend(array_at(row, 1, columns) for row in rows)
    return np.concatenate(found)


def run(context: Any, texts: Texts, compute: Any) -> None:
    """Texts as sequences from 0 on, with an output at every token."""
    lib, total = llama(), sum(map(len, texts))
    batch = lib.llama_batch_init(total, 0, 1)
    places = ((sequence, place) for sequence, ids in enumerate(texts) for place in range(len(ids)))
    try:
        for row, (sequence, place) in enumerate(places):
            batch.token[row], batch.pos[row] = int(texts[sequence][place]), place
            batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, sequence, True
        batch.n_tokens = total
        if compute(context, batch):
            raise ConversionError(f"llama.cpp does not compute it: {why('it gives no reason')}")
    finally:
        lib.llama_batch_free(batch)


def array_at(pointer: Any, rows: int, columns: int) -> Array:
    """A copy of llama.cpp's floats: its buffer is used again."""
    if not pointer:
        raise ConversionError("llama.cpp gives no output for it")
    floats = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
    return np.array(np.ctypeslib.as_array(floats, shape=(rows, columns)))


@contextmanager
def loaded(path: Path, *, vocab_only: bool = False, repacked: bool = True) -> Iterator[Any]:
    """A model on the CPU, freed afterwards; not `repacked`, its weights lie in memory as in the file.

    Raises ConversionError where llama.cpp does not load it.
    """
    lib = llama()
    listen()
    params = lib.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only, params.use_extra_bufts = 0, vocab_only, repacked
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ConversionError(f"llama.cpp does not load {path.name}: {why('it gives no reason')}")
    try:
        yield model
    finally:
        lib.llama_model_free(model)


@contextmanager
def context_of(model: Any, tokens: int, pooling: int, sequences: int = 1) -> Iterator[Any]:
    """A context for so many tokens at once, of several texts, that gives hidden states; freed afterwards."""
    lib = llama()
    params = lib.llama_context_default_params()
    # A multiple of the sequences: llama.cpp ends the process where it pools by mean and they do not divide it.
    params.n_ctx = params.n_batch = params.n_ubatch = -(-tokens // 256) * 256
    params.n_threads = params.n_threads_batch = host().cpu.cores
    params.n_seq_max = sequences
    params.embeddings, params.pooling_type = True, pooling
    # The weights are judged, not the cache; flash attention would round keys and values to f16 all the same.
    params.type_k = params.type_v = lib.GGML_TYPE_F32
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ConversionError(f"llama.cpp opens no context for it: {why('it gives no reason')}")
    try:
        yield context
    finally:
        lib.llama_free(context)


def tokens(path: Path, texts: Sequence[str]) -> list[Array]:
    """Texts in the file's own tokens, no more of each than its context holds."""
    with loaded(path, vocab_only=True) as model:
        vocab, context = Vocab(model), gguf_header.read(path).get("{arch}.context_length", int)
        return [np.array(vocab.tokens(text)[:context]) for text in texts]
