"""llama.cpp as a backend: the model, its one context, and one batch that is filled in place."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import create_string_buffer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.adapters import Adapter, apply, check_base, load_adapters
from edge.engine.backend import Row
from edge.engine.binding import interrupts_held, listen, llama, why
from edge.engine.chain import Chain
from edge.engine.vocab import LoadedFile, Vocab
from edge.errors import EngineError, RequestError
from edge.memory import BATCH, LOGITS_ROWS
from edge.planner import Plan

# llama.h, llama_decode: what its codes mean
NO_ROOM, ABORTED = 1, 2
LOAD_AUTO, LOAD_NONE = -1, 0  # llama.h, enum llama_load_mode: mapped where that is possible, or read


class LlamaBackend:
    """A GGUF model loaded as a plan says, a `Backend`. Raises EngineError where llama.cpp refuses.

    `adapters` are the LoRA adapters that `use` can choose from: llama.cpp makes room for them as it opens.
    """

    every_row = True

    def __init__(self, plan: Plan, adapters: Sequence[Adapter] = ()) -> None:
        self._lib = llama()
        self._model: Any = None
        self._file: LoadedFile | None = None
        self._context: Any = None
        self._aborted = ctypes.create_string_buffer(2)  # a text of no or of one character
        for adapter in adapters:
            check_base(plan.path, adapter)
        try:
            with interrupts_held() as interrupts:
                self._model = self._load_model(plan, interrupts)
                self._file = LoadedFile(self._model)
                self._check_it_writes(plan)
                handles = load_adapters(self._lib, self._model, adapters)
                self._context = self._open_context(plan)
        except BaseException:
            self.close()
            raise
        self._handles = dict(zip((adapter.path for adapter in adapters), handles, strict=True))
        self._used: tuple[Adapter, ...] = ()
        self._memory = self._lib.llama_get_memory(self._context)
        self._batch = Batch(self._lib, plan.sequences)
        self._unified = plan.unified
        self.vocab = Vocab(self._model, self._file)
        self.context = plan.context  # llama.cpp may have rounded its own up
        self.window: int = self._lib.llama_model_n_swa(self._model)
        remembers = self._lib.llama_model_is_recurrent(self._model)
        self.rolls_back = not (remembers or self._lib.llama_model_is_hybrid(self._model))

    def close(self) -> None:
        """Free the context and the model, once no thread reads the vocabulary; safe to call twice."""
        if self._context is not None:
            self._lib.llama_free(self._context)
        self._context = self._file = None

    def meta(self, key: str) -> str | None:
        """A text or number from the file's metadata, as text; None where the file has no such key.

        Raises EngineError when the model is closed.
        """
        size, file = 256, self._file
        if file is None:
            raise EngineError("the model is closed", hint="load it again")
        while True:
            buffer = create_string_buffer(size)
            length = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
            if length < size:
                return buffer.value.decode("utf-8", "replace") if length >= 0 else None
            size = length + 1

    def use(self, adapters: Sequence[Adapter]) -> None:
        """Decode with these, of those that were loaded, from here on. Raises RequestError for another."""
        if tuple(adapters) == self._used:
            return
        for adapter in adapters:
            if adapter.path not in self._handles:
                raise RequestError(
                    f"the adapter {adapter.path.name} was not loaded with the model",
                    hint="name it when the model is loaded",
                )
        apply(self._lib, self._context, [self._handles[adapter.path] for adapter in adapters], adapters)
        self._used = tuple(adapters)

    def decode(self, rows: Sequence[Row]) -> None:
        """Raises EngineError with llama.cpp's reason; what its batch's sequences hold is then unknown."""
        self._batch.fill(rows)
        listen()
        code = self._lib.llama_decode(self._context, self._batch.struct)
        if code == NO_ROOM:
            raise EngineError("the KV cache has no room for the next tokens", hint="raise --ctx")
        if code == ABORTED:
            raise EngineError("the model is closed", hint="load it again")
        if code:
            raise EngineError(f"llama.cpp failed to decode (code {code}): {why('it gives no reason')}")

    def draw(self, chain: Chain, row: int) -> int:
        return chain.draw(self._context, row)

    def logits(self, row: int) -> NDArray[np.float32]:
        pointer = self._lib.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab.size,))

    def embedding(self, row: Row) -> NDArray[np.float32]:
        """Decode a row and give what the last layer makes of it (width,), instead of logits."""
        self._lib.llama_set_embeddings(self._context, True)
        try:
            self.decode([row])
            width = self._lib.llama_model_n_embd(self._model)
            pointer = self._lib.llama_get_embeddings_ith(self._context, 0)
            found: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(width,)).copy()
            return found
        finally:
            self._lib.llama_set_embeddings(self._context, False)

    def copy(self, source: int, target: int, length: int | None = None) -> None:
        if self._unified:  # the cells are shared, nothing is copied
            end = -1 if length is None else length
            self._lib.llama_memory_seq_rm(self._memory, target, -1, -1)
            self._lib.llama_memory_seq_cp(self._memory, source, target, 0, end)
            return
        # Between streams llama.cpp would copy their whole buffers, used or not
        self.load(target, self.save(source))
        if length is not None:
            self.keep(target, length)

    def keep(self, sequence: int, length: int) -> bool:
        # A sliding window forgets: the layers may no longer hold what position `length` looks back to.
        oldest = self._lib.llama_memory_seq_pos_min(self._memory, sequence)
        forgotten = self.window and oldest > max(0, length - self.window)
        if not forgotten and self._lib.llama_memory_seq_rm(self._memory, sequence, length, -1):
            return True
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def save(self, sequence: int) -> NDArray[np.uint8]:
        size = self._lib.llama_state_seq_get_size(self._context, sequence)
        state = np.empty(size, np.uint8)
        self._lib.llama_state_seq_get_data(self._context, as_bytes(state), size, sequence)
        return state

    def load(self, sequence: int, state: NDArray[np.uint8]) -> bool:
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        state = np.ascontiguousarray(state)
        if self._lib.llama_state_seq_set_data(self._context, as_bytes(state), state.size, sequence):
            return True
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return False

    def abort(self) -> None:
        self._aborted.value = b"!"

    def _load_model(self, plan: Plan, interrupts: Sequence[int]) -> Any:
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = plan.gpu_layers
        params.load_mode = LOAD_AUTO if plan.mmap else LOAD_NONE
        # A large file takes minutes; llama.cpp asks after each tensor whether to go on.
        go_on = self._lib.llama_progress_callback(lambda share, _: not interrupts)
        params.progress_callback = go_on
        listen()
        model = self._lib.llama_model_load_from_file(os.fsencode(plan.path), params)
        if not model:
            raise EngineError(
                f"llama.cpp cannot load {plan.path.name}: {why('it gives no reason')}",
                hint="a newer llama-cpp-python may know it: pip install --upgrade llama-cpp-python",
            )
        return model

    def _check_it_writes(self, plan: Plan) -> None:
        """Refuse what llama.cpp loads and then ends the whole process over, when it is asked for text."""
        lib, architecture = self._lib, self.meta("general.architecture") or ""
        if lib.llama_vocab_type(lib.llama_model_get_vocab(self._model)) == lib.LLAMA_VOCAB_TYPE_NONE:
            raise EngineError(
                f"{plan.artifact} has no tokenizer", hint="convert it again together with its own"
            )
        if (
            "bert" in architecture  # not every such file says that it looks ahead
            or self.meta(f"{architecture}.attention.causal") == "false"
            or lib.llama_model_has_encoder(self._model)
            or lib.llama_model_is_diffusion(self._model)
        ):
            raise EngineError(
                f"{plan.artifact} is a model of kind {architecture}, which does not continue a text",
                hint="`edge list` names some that do",
            )

    def _context_params(self, plan: Plan) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = plan.context * plan.parallel
        params.n_batch, params.n_ubatch = BATCH, plan.batch
        params.n_seq_max = plan.sequences
        # Only the last token of a prompt needs logits: a row of them each for a whole batch is up to 512 MB.
        params.n_outputs_max = max(plan.sequences, LOGITS_ROWS)
        params.n_threads, params.n_threads_batch = plan.threads.decode, plan.threads.prefill
        params.kv_unified = plan.unified
        params.type_k = params.type_v = getattr(self._lib, f"GGML_TYPE_{plan.kv.upper()}")
        if plan.flash is not None:
            params.flash_attn_type = int(plan.flash)
        params.swa_full = False  # a sliding-window layer keeps its window, as the plan counts it
        params.no_perf = True
        # llama.cpp asks between the nodes of a graph whether to stop: a thousand times a token, too often for a
        # Python function. C's strlen answers as well: 0 for no character, 1 for one.
        params.abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, self._lib.ggml_abort_callback)
        params.abort_callback_data = ctypes.addressof(self._aborted)
        return params

    def _open_context(self, plan: Plan) -> Any:
        params = self._context_params(plan)
        listen()
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise EngineError(
                f"llama.cpp cannot open a context of {plan.context} tokens: {why('it gives no reason')}",
                hint="try a smaller --ctx",
            )
        return context


class Batch:
    """A llama_batch over NumPy arrays, filled a column at a time."""

    def __init__(self, lib: Any, sequences: int) -> None:
        self._tokens = np.zeros(BATCH, np.int32)
        self._positions = np.zeros(BATCH, np.int32)
        self._counts = np.ones(BATCH, np.int32)
        self._sequences = np.zeros((BATCH, sequences), np.int32)
        stride = self._sequences.strides[0]
        self._rows = self._sequences.ctypes.data + stride * np.arange(BATCH, dtype=np.uint64)
        self._wanted = np.zeros(BATCH, np.int8)
        pointers: dict[str, NDArray[Any]] = {
            "token": self._tokens,
            "pos": self._positions,
            "n_seq_id": self._counts,
            "seq_id": self._rows,
            "logits": self._wanted,
        }
        self.struct = lib.llama_batch()
        for name, kind in lib.llama_batch._fields_:
            if name in pointers:
                setattr(self.struct, name, ctypes.cast(pointers[name].ctypes.data, kind))

    def fill(self, rows: Sequence[Row]) -> None:
        """Write the rows down; the struct is then theirs."""
        count = len(rows)
        self._tokens[:count] = [row.token for row in rows]
        self._positions[:count] = [row.position for row in rows]
        self._wanted[:count] = [row.wanted for row in rows]
        self._counts[:count] = [len(row.sequences) for row in rows]
        for at, row in enumerate(rows):
            self._sequences[at, : len(row.sequences)] = row.sequences
        self.struct.n_tokens = count


def as_bytes(array: NDArray[np.uint8]) -> Any:
    """The array's memory as llama.cpp's functions take it."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
