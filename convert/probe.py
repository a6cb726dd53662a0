"""A loaded model whose weights' types can be changed: what would a file with these types compute?

A tensor is changed by pointing llama.cpp's own struct at encoded blocks, so that what is measured is what a file with
that tensor at that type computes, rounded activations included, and nothing is written.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.binding import interrupts_held, listen, llama, why
from edge.engine.vocab import Vocab
from edge.errors import ConversionError, RequestError
from edge.machine import host

from . import ggml_tensors
from .computed import loaded
from .ggml_tensors import Tensor
from .ggml_types import NUMBERS, SIZES

Array = NDArray[Any]

CONTEXT = 256  # tokens of a chunk
LEAST = 4  # chunks
REFERENCE = (
    512 << 20
)  # bytes of log-probabilities that are kept of the whole model, where LEAST chunks have no more
SAMPLES = 64  # inputs of each weight that are kept, of each chunk
BLOCK = 1 << 17  # logits that one step works on: 0.5 MiB, which stays in the cache of a core


class Probe:
    """`chunks` are a text's tokens (chunks, tokens), `inputs` what some of them give each weight to multiply,
    (samples, columns) by name; a weight that is not in a plain product has none. `probe` makes one."""

    def __init__(self, contexts: Sequence[Any], chunks: Array, finder: Finder, pool: Executor) -> None:
        self.chunks, self.pool, self.idle = chunks, pool, SimpleQueue[Any]()
        for context in contexts:
            self.idle.put(context)
        self.inputs = {name: np.concatenate(parts) for name, parts in finder.inputs.items()}
        self._weights = {
            name: [Tensor.from_address(at) for at in sorted(at)] for name, at in finder.found.items()
        }
        self._own = {
            name: [(one.type, tuple(one.nb), one.data) for one in tensors]
            for name, tensors in self._weights.items()
        }
        self._blocks: dict[str, Array] = {}
        self._reference = list(pool.map(self._whole, chunks))

    def put(self, name: str, kind: str, blocks: Array) -> None:
        """Give a tensor this type and these encoded rows, which are kept."""
        self._blocks[name] = blocks
        elements, size = SIZES[kind]
        for tensor in self._weights[name]:
            tensor.type, tensor.data = NUMBERS[kind], blocks.ctypes.data
            tensor.nb[0], tensor.nb[1] = size, tensor.ne[0] // elements * size
            for axis in (2, 3):
                tensor.nb[axis] = tensor.nb[axis - 1] * tensor.ne[axis - 1]

    def restore(self, names: Iterable[str]) -> None:
        """Give tensors their own values again."""
        for name in names:
            for tensor, (kind, strides, data) in zip(self._weights[name], self._own[name], strict=True):
                tensor.type, tensor.data = kind, data
                tensor.nb[:] = strides
            self._blocks.pop(name, None)

    def divergence(self, chunks: slice = slice(None), tokens: int | None = None) -> Array:
        """KL(whole ‖ model as it is now) of the first tokens of these chunks, (chunks, tokens), in nats."""
        bases = [base[:tokens] for base in self._reference[chunks]]
        return np.stack(list(self.pool.map(self._apart, self.chunks[chunks, :tokens], bases)))

    def _whole(self, chunk: Array) -> Array:
        """Log-probabilities, (tokens, vocabulary)."""
        with self._logits(chunk) as found:
            logits: Array = found - found.max(axis=1, keepdims=True)
        for at in steps(logits):
            logits[at] -= np.log(np.exp(logits[at]).sum(axis=1, dtype=np.float64, keepdims=True))
        return logits

    def _apart(self, chunk: Array, base: Array) -> Array:
        out = np.empty(len(base))
        with self._logits(chunk) as logits:
            for at in steps(base):
                # KL = log Σ p eˣ, x what the logits differ by less its mean under p
                p, x = np.exp(base[at]), logits[at] - base[at]
                p /= p.sum(axis=1, keepdims=True)
                x -= np.einsum("ij,ij->i", p, x)[:, None]
                mean = np.einsum("ij,ij->i", p, x)
                np.expm1(x, out=x)
                out[at] = np.log1p(np.einsum("ij,ij->i", p, x)) - mean
        if not np.isfinite(out).all():
            raise ConversionError(
                "llama.cpp computes NaN or infinity for it", hint="its weights may be damaged"
            )
        return out

    @contextmanager
    def _logits(self, chunk: Array) -> Iterator[Array]:
        """llama.cpp's own buffer, (tokens, vocabulary)."""
        lib, context = llama(), self.idle.get()
        try:
            compute(context, chunk)
            size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(lib.llama_get_model(context)))
            floats = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
            yield np.ctypeslib.as_array(floats, shape=(len(chunk), size))
        finally:
            self.idle.put(context)


def steps(logits: Array) -> list[slice]:
    """Rows that one step works on."""
    step = max(1, BLOCK // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]


@contextmanager
def probe(
    model: Path, text: str, names: Collection[str], *, chunks: int, threads: int = 0
) -> Iterator[Probe]:
    """The GGUF file `model`, whose tensors `names` are to be changed, and as many chunks from all over the text.

    Fewer where the text or what may be kept of a large vocabulary has no more. Raises RequestError for a text of
    fewer than LEAST, ConversionError where llama.cpp does not compute it or computes without one of the tensors,
    EngineError for a llama.cpp whose tensors cannot be read.
    """
    lib, threads = llama(), threads or host().cpu.cores
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        with interrupts_held():
            handle = stack.enter_context(loaded(model, repacked=False))
        vocab = Vocab(handle)
        size = min(CONTEXT, lib.llama_model_n_ctx_train(handle))
        ids = cut(
            np.array(vocab.tokens(text), np.int32), size, min(chunks, REFERENCE // (4 * size * vocab.size))
        )
        if vocab.adds_bos:
            ids[:, 0] = lib.llama_vocab_bos(lib.llama_model_get_vocab(handle))
        finder = Finder(names)
        with opened(handle, size, finder.callback) as context:
            finder.find(context, ids[::2])  # every other chunk is held back
        # A thread a context: llama.cpp's own threads wait for each other after every product.
        contexts = [stack.enter_context(opened(handle, size)) for _ in range(min(threads, len(ids)))]
        # After an error or Ctrl-C other threads still compute, with contexts and blocks that are about to be freed.
        stack.callback(pool.shutdown, cancel_futures=True)
        found = Probe(contexts, ids, finder, pool)
        try:
            yield found
        finally:
            pool.shutdown(cancel_futures=True)
            found.restore(names)


def cut(ids: Array, size: int, most: int) -> Array:
    """Chunks of a text from all over it, (chunks, size). Raises RequestError for fewer than LEAST."""
    count = len(ids) // size
    if count < LEAST:
        raise RequestError(
            f"the calibration text is {len(ids)} tokens, too short to measure on",
            hint=f"give one of at least {LEAST * size}",
        )
    chosen = np.linspace(0, count - 1, min(count, max(LEAST, most))).astype(int)
    chunks: Array = ids[: count * size].reshape(count, size)[chosen]
    return chunks


class Finder:
    """Where llama.cpp's graph has the weights of these names (`found`: addresses), and samples of their inputs."""

    def __init__(self, names: Collection[str]) -> None:
        self.ops = ggml_tensors.ops()
        self.names = {name.encode(): name for name in names}
        self.found: dict[str, set[int]] = {name: set() for name in names}
        self.inputs: dict[str, list[Array]] = {}
        self.error: BaseException | None = None
        self.callback = llama().ggml_backend_sched_eval_callback(self._called)

    def _called(self, address: int, ask: bool, _: int | None) -> bool:
        """For each tensor first whether it is wanted (ask), then, computed, whether to go on. Must not raise."""
        try:
            tensor = Tensor.from_address(address)
            known = [at for at in tensor.src if at and Tensor.from_address(at).name in self.names]
            for at in known:
                self.found[self.names[Tensor.from_address(at).name]].add(at)
            wanted = tensor.op == self.ops.mul_mat and tensor.src[0] in known
            if wanted and not ask:
                self._keep(
                    self.names[Tensor.from_address(tensor.src[0]).name], Tensor.from_address(tensor.src[1])
                )
            return wanted or not ask
        except BaseException as error:
            self.error = error
            return not ask

    def _keep(self, name: str, source: Tensor) -> None:
        if source.type != ggml_tensors.F32 or not self.ops.is_host(source.buffer):
            return
        x = ggml_tensors.view(source).reshape(-1, source.ne[0])
        self.inputs.setdefault(name, []).append(
            x[np.linspace(0, len(x) - 1, min(SAMPLES, len(x))).astype(int)]
        )

    def find(self, context: Any, chunks: Array) -> None:
        """Raises ConversionError for a weight that is not in the graph."""
        for chunk in chunks:
            compute(context, chunk)
            if self.error:
                raise self.error
        missing = [name for name, addresses in self.found.items() if not addresses]
        if missing:
            raise ConversionError(
                f"llama.cpp computes without {missing[0]}, so what it is worth cannot be measured",
                hint="choose a level instead",
            )


def compute(context: Any, chunk: Array) -> None:
    """Decode a chunk from its beginning, every token an output. Raises ConversionError."""
    lib = llama()
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    batch = lib.llama_batch_init(len(chunk), 0, 1)
    try:
        batch.n_tokens = len(chunk)
        for row, token in enumerate(chunk.tolist()):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, row, 1
            batch.seq_id[row][0], batch.logits[row] = 0, True
        with interrupts_held():
            failed = lib.llama_decode(context, batch)
    finally:
        lib.llama_batch_free(batch)
    if failed:
        raise ConversionError(f"llama.cpp does not compute it: {why('it gives no reason')}")


@contextmanager
def opened(model: Any, size: int, callback: Any = None) -> Iterator[Any]:
    """A context of one chunk and one thread, freed afterwards."""
    lib = llama()
    listen()
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = size
    params.n_seq_max = params.n_threads = params.n_threads_batch = 1
    if callback:
        params.cb_eval = callback
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ConversionError(f"llama.cpp opens no context for it: {why('it gives no reason')}")
    try:
        yield context
    finally:
        lib.llama_free(context)
