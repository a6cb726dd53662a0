"""Collects an importance matrix while llama.cpp reads a text, in this process.

What is summed, and over which pieces of the text, is as in llama-imatrix (llama.cpp, tools/imatrix), so that the
two agree; the products behind the last layer, whose inputs no one asks for, are not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import gguf_header
from edge.engine.binding import interrupts_held, listen, llama, why
from edge.engine.vocab import Vocab
from edge.errors import ConversionError, RequestError
from edge.machine import host

from . import ggml_tensors
from .computed import loaded
from .imatrix import Importance

Array = NDArray[Any]

LEAST = 16  # rows of a product that count: as in llama-imatrix
BATCH = 512  # tokens computed at once
LOGITS = 128 << 20  # bytes; llama.cpp sets aside a row of the vocabulary for every token of a batch
WEIGHT, LAST = b"blk.", b"result_norm"  # what a layer's weights and the last layer's output are called


def collect(
    model: Path,
    texts: str,
    *,
    chunk: int = 512,
    threads: int = 0,
    name: str,
    progress: Callable[[int, int], None] | None = None,
) -> Importance:
    """Mean squared inputs of the weights of `model`, a GGUF file, over whole chunks of the text.

    A chunk is `chunk` tokens, or the context that the model was trained with where that is less; a rest is left
    out. `name` is what the matrix calls the text. `progress` gets the chunks done and all of them after each;
    threads 0 takes all cores. Raises RequestError for a text shorter than a chunk, ConversionError where llama.cpp
    does not compute it, EngineError for a llama.cpp whose tensors cannot be read, BadGGUF for a damaged model.
    """
    if chunk < LEAST:
        raise RequestError(f"a chunk of {chunk} tokens is too short", hint=f"{LEAST} is the least")
    header = gguf_header.read(model)
    lib, collector = llama(), Collector(ggml_tensors.ops())
    with ExitStack() as stack:
        with interrupts_held():
            handle = stack.enter_context(loaded(model))
        vocab = Vocab(handle)
        chunk = min(chunk, lib.llama_model_n_ctx_train(handle))
        # A model that looks both ways reads a chunk at once; others in parts of about one size.
        parts = 1
        if header.get("{arch}.attention.causal", bool, True):
            parts = -(-chunk // max(LEAST, min(BATCH, LOGITS // (4 * vocab.size))))
        size = -(-chunk // parts)
        ids = np.array(vocab.tokens(texts), np.int32)
        chunks = len(ids) // chunk
        if not chunks:
            raise RequestError(
                f"the text is {len(ids)} tokens and a chunk {chunk}",
                hint=f"give one of at least {chunk} tokens",
            )
        with interrupts_held():
            context = open_context(handle, chunk, size, threads or host().cpu.cores, collector)
        stack.callback(lib.llama_free, context)
        batch = lib.llama_batch_init(size, 0, 1)
        stack.callback(lib.llama_batch_free, batch)
        bos = lib.llama_vocab_bos(lib.llama_model_get_vocab(handle)) if vocab.adds_bos else None
        for index in range(chunks):
            piece = ids[index * chunk : (index + 1) * chunk].copy()
            if bos is not None:
                piece[0] = bos
            lib.llama_memory_clear(lib.llama_get_memory(context), True)
            for start in range(0, chunk, size):
                fill(batch, piece[start : start + size], start)
                decode(context, batch, collector)
            if progress:
                progress(index + 1, chunks)
    return collector.importance(name, chunks, chunk)


class Collector:
    """Sums of squared inputs by weight, filled by llama.cpp's scheduler through `callback`."""

    def __init__(self, ops: ggml_tensors.Ops) -> None:
        self.ops = ops
        self.sums: dict[str, Array] = {}
        self.counts: dict[str, Array] = {}
        self.error: BaseException | None = None
        self.interrupts: list[int] = []
        self._last: tuple[int, Array] | None = None
        self.callback = llama().ggml_backend_sched_eval_callback(self._called)

    def begin(self, interrupts: list[int]) -> None:
        """Another batch: tensors at known addresses hold other numbers now."""
        self._last, self.interrupts = None, interrupts

    def _called(self, address: int, ask: bool, _: int | None) -> bool:
        """For each tensor first whether it is wanted (ask), then, computed, whether to go on. Must not raise."""
        try:
            if self.error or self.interrupts:
                return ask  # computed up to here, then stopped
            tensor = ggml_tensors.Tensor.from_address(address)
            return self._wanted(tensor) if ask else self._take(tensor)
        except BaseException as error:
            self.error = error
            return ask

    def _wanted(self, tensor: ggml_tensors.Tensor) -> bool:
        if tensor.op not in (self.ops.mul_mat, self.ops.mul_mat_id):
            return bool(tensor.name == LAST)
        weight, x = (ggml_tensors.Tensor.from_address(address) for address in tensor.src[:2])
        if not weight.name.startswith(WEIGHT) or x.type != ggml_tensors.F32:
            return False
        return bool(tensor.op == self.ops.mul_mat_id or x.ne[1] >= LEAST)

    def _take(self, tensor: ggml_tensors.Tensor) -> bool:
        if tensor.name == LAST:
            return False
        weight, source = (ggml_tensors.Tensor.from_address(address) for address in tensor.src[:2])
        name = weight.name.decode(errors="replace")
        if not self.ops.is_host(source.buffer):
            raise ConversionError(f"the inputs of {name} are not in memory", hint="collect on the CPU")
        x = ggml_tensors.view(source)
        if tensor.op == self.ops.mul_mat_id:
            ids = ggml_tensors.view(ggml_tensors.Tensor.from_address(tensor.src[2]), "<i4")[0, 0]
            self._add(name, *by_expert(x[0], ids, weight.ne[2]))
            return True
        matrices = weight.ne[2] * weight.ne[3]
        if (
            self._last is None or self._last[0] != tensor.src[1] or matrices > 1
        ):  # q, k and v share their input
            self._last = tensor.src[1], by_matrix(x, weight.ne[2], weight.ne[3])
        self._add(name, self._last[1], np.array([x.size // x.shape[-1] // matrices]))
        return True

    def _add(self, name: str, sums: Array, counts: Array) -> None:
        if not np.isfinite(sums).all():
            raise ConversionError(
                f"the inputs of {name} are not finite", hint="the model's weights may be damaged"
            )
        if name not in self.sums:
            self.sums[name], self.counts[name] = np.zeros(sums.shape), np.zeros(counts.shape, np.int64)
        self.sums[name] += sums
        self.counts[name] += counts

    def importance(self, name: str, chunks: int, chunk: int) -> Importance:
        if not self.sums:
            raise ConversionError(
                "the model multiplies by no weight of a layer", hint="is it a language model?"
            )
        sums = {key: self.sums[key].astype(np.float32) for key in sorted(self.sums)}
        return Importance(sums, {key: self.counts[key] for key in sums}, (name,), chunks, chunk)


def by_matrix(x: Array, inner: int, outer: int) -> Array:
    """Sums of squares by column, f32 (inner · outer, columns): x (ne3, ne2, rows, columns) repeats the matrices."""
    sums = np.zeros((outer, inner, x.shape[-1]), np.float32)
    for third in range(x.shape[0]):
        for second in range(x.shape[1]):
            rows = x[third, second]
            sums[third % outer, second % inner] += np.einsum("rc,rc->c", rows, rows)
    return sums.reshape(-1, x.shape[-1])


def by_expert(x: Array, ids: Array, experts: int) -> tuple[Array, Array]:
    """Sums of squares by column, f32 (experts, columns), and rows summed, (experts,).

    x is (tokens, 1 or used, columns), ids (tokens, used): which experts each token goes to.
    """
    uses = np.zeros((experts, len(x), x.shape[1]), np.float32)
    token, slot = np.indices(ids.shape)
    np.add.at(uses, (ids, token, slot % x.shape[1]), 1)
    squares = np.square(x).reshape(-1, x.shape[-1])
    return uses.reshape(experts, -1) @ squares, np.bincount(ids.ravel(), minlength=experts)


def open_context(model: Any, chunk: int, size: int, threads: int, collector: Collector) -> Any:
    lib = llama()
    listen()
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_seq_max = chunk, 1
    params.n_batch = params.n_ubatch = size
    params.n_threads = params.n_threads_batch = threads
    params.cb_eval = collector.callback
    params.op_offload = params.offload_kqv = False  # what a GPU holds cannot be read from here
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ConversionError(f"llama.cpp opens no context for it: {why('it gives no reason')}")
    return context


def fill(batch: Any, ids: Array, start: int) -> None:
    """Tokens of sequence 0 from position `start` on. All are outputs, or the last layer would leave some out."""
    batch.n_tokens = len(ids)
    for row, token in enumerate(ids.tolist()):
        batch.token[row], batch.pos[row], batch.n_seq_id[row], batch.logits[row] = token, start + row, 1, True
        batch.seq_id[row][0] = 0


def decode(context: Any, batch: Any, collector: Collector) -> None:
    """Raises what the collector met, KeyboardInterrupt for Ctrl-C, ConversionError where llama.cpp fails."""
    listen()
    with interrupts_held() as interrupts:
        collector.begin(interrupts)
        failed = llama().llama_decode(context, batch)
    if collector.error:
        raise collector.error
    if failed:
        raise ConversionError(f"llama.cpp does not decode it: {why('it gives no reason')}")
