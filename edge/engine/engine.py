"""Decoding on llama.cpp: one context, a few sequences that share a prompt, one loop that streams."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from ctypes import create_string_buffer
from dataclasses import dataclass
from secrets import randbelow
from time import perf_counter
from typing import Any

from edge.engine.adapters import Adapter, apply, check_base, load_adapters
from edge.engine.binding import interrupts_held, listen, llama, why
from edge.engine.sampling import SEEDS, Sampling, open_chain
from edge.engine.text import TextStream
from edge.engine.vocab import Vocab
from edge.errors import EngineError, PromptTooLong, RequestError
from edge.memory import BATCH
from edge.planner import Plan


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of one answer.

    index              which of the n answers this belongs to
    text               what the step made showable; may be empty, may end a held-back piece
    token              the id that was chosen
    finish_reason      None, or in the last chunk of an answer: "stop" (the model ended it or a stop text
                       appeared) or "length" (max_tokens reached or the context is full)
    prompt_tokens      length of the prompt
    reused_tokens      how many of those were still in the KV cache from the call before
    completion_tokens  tokens of this answer so far
    prefill_s          seconds until the prompt was processed
    elapsed_s          seconds since the request; in the first chunk this is the time to first token
    """

    index: int
    text: str
    token: int
    finish_reason: str | None
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    prefill_s: float
    elapsed_s: float


@dataclass
class _Answer:
    """One answer under way: its sequence, its sampler and the text it holds back."""

    index: int
    chain: Any
    text: TextStream
    token: int = -1
    count: int = 0


class Engine:
    """A model loaded as a plan says, with LoRA adapters added. Close it, or use it as a context manager.

    One request runs at a time: a second `stream` ends the first. Raises EngineError where llama.cpp refuses.
    """

    def __init__(self, plan: Plan, adapters: Sequence[Adapter] = ()) -> None:
        self._lib = llama()
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self._kept: list[int] = []  # the tokens whose KV state sequence 0 holds
        self._request = 0
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

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def stream(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> Generator[Chunk, None, None]:
        """Answer `prompt` n times from one prefill, a chunk a token, the answers interleaved.

        What the prompt shares with the call before is not computed again. Raises RequestError for an empty
        prompt or too many answers, PromptTooLong where the prompt leaves no room for an answer, and, while it
        streams, EngineError where decoding fails.
        """
        self._check(prompt, n)
        return self._stream(prompt, sampling, n)

    def _stream(self, prompt: Sequence[int], sampling: Sampling, n: int) -> Generator[Chunk, None, None]:
        self._check_open()  # a generator begins at its first `next`, and the model may be gone by then
        listen()
        self._request += 1
        request, started = self._request, perf_counter()
        room = (self.context - len(prompt)) // n
        limit = min(room, sampling.max_tokens or room)
        seed = sampling.seed if sampling.seed is not None else randbelow(SEEDS)
        reused = self._rewind(prompt)
        self._prefill(prompt, reused)
        prefill_s = perf_counter() - started
        for index in range(1, n):
            self._lib.llama_memory_seq_cp(self._memory, 0, index, -1, -1)
        answers = [
            _Answer(
                i,
                open_chain(sampling, self.vocab.size, (seed + i) % SEEDS, prompt),
                TextStream(sampling.stop),
            )
            for i in range(n)
        ]
        live, rows = answers, [-1] * n  # the row of logits each live answer samples from
        try:
            while live:
                for answer, row in zip(live, rows, strict=True):
                    answer.token = self._lib.llama_sampler_sample(answer.chain, self._context, row)
                    answer.count += 1
                going = []
                for answer in live:
                    text, reason = self._read(answer, limit)
                    if reason is None:
                        going.append(answer)
                    yield Chunk(
                        answer.index, text, answer.token, reason, len(prompt), reused,
                        answer.count, prefill_s, perf_counter() - started,
                    )  # fmt: skip
                    if request != self._request:
                        return  # the engine was closed or another request took the context over
                live, rows = going, list(range(len(going)))
                if live:
                    self._step(live, len(prompt))
        finally:
            for answer in answers:
                self._lib.llama_sampler_free(answer.chain)

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

    def _check(self, prompt: Sequence[int], n: int) -> None:
        self._check_open()
        if not prompt:
            raise RequestError("the prompt is empty", hint="give at least one word")
        if not 1 <= n <= self.plan.sequences:
            raise RequestError(
                f"{n} answers asked for and the plan has room for {self.plan.sequences}",
                hint=f"load the model for {n} or ask for fewer",
            )
        if len(prompt) + n > self.context:
            raise PromptTooLong(len(prompt), self.context)

    def _rewind(self, prompt: Sequence[int]) -> int:
        """Keep the KV state that the prompt shares with what is there; return how many tokens that is."""
        # A request that was left half-way, or taken over by this one, leaves its other answers behind.
        for index in range(1, self.plan.sequences):
            self._lib.llama_memory_seq_rm(self._memory, index, -1, -1)
        shared = 0
        for have, want in zip(self._kept, prompt[:-1], strict=False):
            if have != want:
                break
            shared += 1
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

    def _step(self, live: Sequence[_Answer], prompt_tokens: int) -> None:
        """Feed every live answer its last token; row i of the logits is live[i]'s."""
        for i, answer in enumerate(live):
            self._put(i, answer.token, prompt_tokens + answer.count - 1, answer.index, True)
        self._decode(len(live))
        if live[0].index == 0:
            self._kept.append(live[0].token)

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

    def _read(self, answer: _Answer, limit: int) -> tuple[str, str | None]:
        """The text the answer's new token makes showable, and the finish reason if it is the last."""
        if self.vocab.is_end(answer.token):
            return answer.text.finish(), "stop"
        text = answer.text.push(self.vocab.piece(answer.token))
        if answer.text.stopped:
            return text, "stop"
        if answer.count >= limit:
            return text + answer.text.finish(), "length"
        return text, None
