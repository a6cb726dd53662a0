"""Decoding on llama.cpp: one context, a few sequences that share a prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from ctypes import create_string_buffer
from time import perf_counter
from typing import Any

from edge.engine.adapters import Adapter, apply, check_base, load_adapters
from edge.engine.binding import interrupts_held, listen, llama, why
from edge.engine.decoding import Answer, Decoding
from edge.engine.vocab import Vocab
from edge.errors import EngineError
from edge.memory import BATCH
from edge.planner import Plan


class Engine(Decoding):
    """A model loaded as a plan says, with LoRA adapters added. Close it, or use it as a context manager.

    One request runs at a time: a second `stream` ends the first. Raises EngineError where llama.cpp refuses.
    """

    def __init__(self, plan: Plan, adapters: Sequence[Adapter] = ()) -> None:
        super().__init__()
        self._lib = llama()
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        started = perf_counter()
        for adapter in adapters:
            check_base(plan.path, adapter)
        try:
            with interrupts_held() as interrupts:
                self._model = self._load(plan, interrupts)
                self._check_it_writes(plan)
                handles = load_adapters(self._lib, self._model, adapters)
                self._context = self._open_context(plan.context, self._context_params(plan))
                if handles:
                    apply(self._lib, self._context, handles, adapters)
            self._memory = self._lib.llama_get_memory(self._context)
            self._batch = self._lib.llama_batch_init(BATCH, 0, 1)
        except BaseException:
            self.close()
            raise
        self.plan = plan
        self._vocab = Vocab(self._model)
        self.context = plan.context  # llama.cpp may have rounded its own up
        self._window: int = self._lib.llama_model_n_swa(self._model)
        self.load_s = perf_counter() - started

    def close(self) -> None:
        """Free the context and the model; safe to call twice."""
        self._request += 1
        if self._batch is not None:
            self._lib.llama_batch_free(self._batch)
        if self._context is not None:
            self._lib.llama_free(self._context)
        if self._model is not None:
            self._lib.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    @property
    def vocab(self) -> Vocab:
        """The model's vocabulary. Raises EngineError when the model is closed, which frees it."""
        self._check_open()
        return self._vocab

    def meta(self, key: str) -> str | None:
        """A text or number from the file's metadata, as text; None where the file has no such key.

        Raises EngineError when the model is closed.
        """
        self._check_open()
        size = 256
        while True:
            buffer = create_string_buffer(size)
            length = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
            if length < size:
                return buffer.value.decode("utf-8", "replace") if length >= 0 else None
            size = length + 1

    def _load(self, plan: Plan, interrupts: Sequence[int]) -> Any:
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = plan.gpu_layers
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
        params.n_ctx = plan.context
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = plan.sequences
        # Only the last token of a prompt needs logits: a row of them each for a whole batch is up to 512 MB.
        params.n_outputs_max = plan.sequences
        params.n_threads, params.n_threads_batch = plan.threads.decode, plan.threads.prefill
        params.kv_unified = True  # n answers share the cells of their one prompt
        params.swa_full = False  # a sliding-window layer keeps its window, as the plan counts it
        params.no_perf = True
        return params

    def _open_context(self, tokens: int, params: Any) -> Any:
        listen()
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise EngineError(
                f"llama.cpp cannot open a context of {tokens} tokens: {why('it gives no reason')}",
                hint="try a smaller --ctx",
            )
        return context

    def _check_open(self) -> None:
        if self._model is None:
            raise EngineError("the model is closed", hint="load it again")

    def _rewind(self, prompt: Sequence[int]) -> int:
        """Keep the KV state that the prompt shares with what is there; return how many tokens that is."""
        # A request that was left half-way, or taken over by this one, leaves its other answers behind.
        for index in range(1, self.plan.sequences):
            self._lib.llama_memory_seq_rm(self._memory, index, -1, -1)
        shared = self._shared(prompt)
        # A sliding window forgets: the layers may no longer hold what position `shared` looks back to.
        oldest = self._lib.llama_memory_seq_pos_min(self._memory, 0)
        forgotten = self._window and oldest > max(0, shared - self._window)
        # Written before it is true: an interrupt between the two must not leave tokens that are not there.
        self._kept = list(prompt[:shared])
        # Recurrent models cannot drop the end of a sequence; then it starts over.
        if forgotten or not self._lib.llama_memory_seq_rm(self._memory, 0, shared, -1):
            self._kept = []
            self._lib.llama_memory_clear(self._memory, False)
        return len(self._kept)

    def _prefill(self, prompt: Sequence[int], start: int) -> None:
        for at in range(start, len(prompt), BATCH):
            part = prompt[at : at + BATCH]
            for i, token in enumerate(part):
                self._put(i, token, at + i, 0, False)
            self._batch.logits[len(part) - 1] = at + len(part) == len(prompt)
            self._decode(len(part))
            self._kept.extend(part)

    def _step(self, live: Sequence[Answer], prompt_tokens: int) -> None:
        """Feed every live answer its last token; row i of the logits is live[i]'s."""
        for i, answer in enumerate(live):
            self._put(i, answer.token, prompt_tokens + answer.count - 1, answer.index, True)
        self._decode(len(live))
        if live[0].index == 0:
            self._kept.append(live[0].token)

    def _fork(self, n: int) -> None:
        for index in range(1, n):
            self._lib.llama_memory_seq_cp(self._memory, 0, index, -1, -1)

    def _draw(self, answer: Answer, row: int) -> int:
        return int(self._lib.llama_sampler_sample(answer.chain, self._context, row))

    def _put(self, row: int, token: int, position: int, sequence: int, logits: bool) -> None:
        batch = self._batch
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = sequence
        batch.logits[row] = logits

    def _decode(self, count: int) -> None:
        self._batch.n_tokens = count
        code = self._lib.llama_decode(self._context, self._batch)
        if code == 1:
            raise EngineError("the KV cache has no room for the next tokens", hint="raise --ctx")
        if code:
            raise EngineError(f"llama.cpp failed to decode (code {code}): {why('it gives no reason')}")
