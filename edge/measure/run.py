"""Runs a made model in llama.cpp and takes the time of parts of its layers."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from edge.engine.binding import listen, llama, why
from edge.errors import EngineError

MATRICES = b"ffn_out-"  # what ends the feed-forward's three products, by llama.cpp's name
BEFORE = b"ffn_norm-"  # what stands before them


class Run:
    """A model and a context of it, for steps of at most so many rows, computed `batch` at a time; keys and values in
    the type `kv`. Raises EngineError where llama.cpp refuses."""

    def __init__(
        self, model: Any, context: int, rows: int, parts: Parts | None, *, batch: int = 0, kv: str = "f16"
    ) -> None:
        self._lib, self._rows = llama(), rows
        params = self._lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = context, 1
        params.n_batch, params.n_ubatch = rows, batch or rows
        params.type_k = params.type_v = getattr(self._lib, f"GGML_TYPE_{kv.upper()}")
        params.n_outputs_max = 1
        params.no_perf = True
        params.op_offload = params.offload_kqv = False
        if parts is not None:
            params.cb_eval = parts.callback
        listen()
        self._context = self._lib.llama_init_from_model(model, params)
        if not self._context:
            raise EngineError(f"llama.cpp does not open the model to measure: {why('it gives no reason')}")
        self._memory = self._lib.llama_get_memory(self._context)
        self._batch = self._lib.llama_batch_init(rows, 0, 1)

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)

    def threads(self, count: int) -> None:
        self._lib.llama_set_n_threads(self._context, count, count)

    def cut(self, length: int) -> None:
        """Forget all positions from `length` on."""
        self._lib.llama_memory_seq_rm(self._memory, 0, length, -1)

    def step(self, rows: int, position: int) -> float:
        """Decode so many rows from a position on; seconds."""
        batch = self._batch
        batch.n_tokens = rows
        for row in range(rows):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = row % 251, position + row, 1
            batch.seq_id[row][0], batch.logits[row] = 0, row == rows - 1
        start = perf_counter()
        code = self._lib.llama_decode(self._context, batch)
        self._lib.llama_synchronize(self._context)
        taken = perf_counter() - start
        if code:
            raise EngineError(f"llama.cpp failed to decode (code {code}): {why('it gives no reason')}")
        return taken


class Parts:
    """Seconds of each layer's parts in the last step: `inner`, the three products of its feed-forward, and `rest`, all
    before them since the last layer's."""

    def __init__(self) -> None:
        self.inner: dict[int, float] = {}
        self.rest: dict[int, float] = {}
        self._ended = self._started = 0.0
        lib = llama()
        self._name = lib._lib["ggml_get_name"]
        self._name.restype, self._name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        self.callback = lib.ggml_backend_sched_eval_callback(self._called)

    def _called(self, tensor: Any, ask: bool, _: Any) -> bool:
        name = self._name(tensor)
        ends, before = name.startswith(MATRICES), name.startswith(BEFORE)
        if ask:
            self._started = perf_counter()
            return bool(ends or before)
        taken = perf_counter() - self._started
        (self.inner if ends else self.rest)[int(name.rpartition(b"-")[2])] = taken
        return True


@contextmanager
def loaded(path: Path) -> Iterator[Any]:
    """llama.cpp's model of the file, on the CPU. Raises EngineError where it refuses."""
    lib = llama()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    listen()
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise EngineError(f"llama.cpp does not load the model to measure: {why('it gives no reason')}")
    try:
        yield model
    finally:
        lib.llama_model_free(model)


@contextmanager
def running(path: Path, context: int, rows: int, parts: Parts | None = None) -> Iterator[Run]:
    with loaded(path) as model:
        run = Run(model, context, rows, parts)
        try:
            yield run
        finally:
            run.close()
