"""A loaded model that answers many requests at once, from any thread: one thread of its own decodes for all."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from secrets import randbelow
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.artifact import ONNX_BACKEND
from edge.engine.adapters import Adapter
from edge.engine.backend import Backend, Row, Vocabulary
from edge.engine.chain import check_fit
from edge.engine.request import Chunk, Request, Stream
from edge.engine.sampling import SEEDS, Sampling
from edge.engine.scheduler import Scheduler
from edge.engine.slots import Slots
from edge.engine.speculate import Pace, PromptLookup, Proposer
from edge.errors import EngineError, PromptTooLong, QueueFull, RequestError
from edge.planner import Plan

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

    from edge.engine.disk import DiskCache
    from edge.engine.draft import DraftModel

QUEUE = 1024  # requests that may wait
T = TypeVar("T")


class Engine:
    """A model loaded as a plan says. Close it, or use it as a context manager.

    adapters  LoRA adapters that requests are decoded with unless they name others of these
    draft     a small model that guesses ahead for this one (`edge.engine.draft.draft_plan`)
    lookup    guess ahead from the text itself: wherever it pays, or never; by default where it pays and the text is, to
              the last bit, what it would be without (a lone row may be summed in another order than one of several)
    disk      where prefixes are kept beyond the process, None for nowhere
    queue     how many requests may wait for a slot

    Raises EngineError where the backend refuses to load, RequestError for a draft of another vocabulary.
    """

    def __init__(
        self,
        plan: Plan,
        adapters: Sequence[Adapter] = (),
        *,
        draft: Plan | None = None,
        lookup: bool | None = None,
        disk: DiskCache | None = None,
        queue: int = QUEUE,
    ) -> None:
        started = perf_counter()
        self.plan, self._adapters, self._queue = plan, tuple(adapters), queue
        self._backend = open_backend(plan, adapters)
        self.context = self._backend.context
        pace = Pace()
        try:
            guesser = open_draft(draft, self._backend, pace) if draft else None
        except BaseException:
            self._backend.close()
            raise
        guess = plan.lookup if lookup is None else lookup
        self._decoder = Decoder(self._backend, plan, self._adapters, disk, pace, guesser, guess)
        self._vocab = self._backend.vocab
        # The thread knows the decoder and not the engine, so an engine nobody holds any more is closed. Not waited
        # for: the garbage may be collected by a reader who has the lock that the thread needs to end its request.
        weakref.finalize(self, self._decoder.leave)
        self.load_s = perf_counter() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all requests with EngineError and free the memory; safe to call twice, and from a callback."""
        self._decoder.close()

    @property
    def vocab(self) -> Vocabulary:
        """The model's vocabulary. Raises EngineError when the model is closed, which frees it."""
        self._decoder.check_open()
        return self._vocab

    def meta(self, key: str) -> str | None:
        """What the model says under one of GGUF's keys, as text; None where it says nothing.

        Raises EngineError when the model is closed.
        """
        self._decoder.check_open()
        return self._backend.meta(key)

    def submit(
        self,
        prompt: Sequence[int],
        sampling: Sampling | None = None,
        *,
        n: int = 1,
        best_of: int | None = None,
        lora: Sequence[Adapter] | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
    ) -> Stream:
        """Ask for `n` answers to `prompt` (token ids) from one prefill; returns at once. From any thread.

        best_of   draw so many and give the n likeliest of them, once all are done
        lora      the adapters to decode with, of those that were loaded
        on_chunk  called with every chunk in the decode thread; what it raises ends the request, and its reader gets it

        Equal seeds and settings give equal texts in an engine of equally many slots, whatever else it does. Raises
        RequestError for an empty prompt, a token the model does not know or too many answers, PromptTooLong where
        the prompt leaves no room for an answer, QueueFull, EngineError after `close` or in a forked process.
        """
        sampling = sampling or Sampling()
        self._decoder.check_open()
        self._check(prompt, n, best_of)
        adapters = self._adapters if lora is None else tuple(lora)
        for adapter in adapters:
            if adapter.path not in {loaded.path for loaded in self._adapters}:
                raise RequestError(
                    f"the adapter {adapter.path.name} was not loaded with the model",
                    hint="name it when the model is loaded",
                )
        check_fit(sampling, self._vocab)
        seed = sampling.seed if sampling.seed is not None else randbelow(SEEDS)
        request = Request(
            list(prompt), sampling, seed, max(n, best_of or 0), adapters, on_chunk, n if best_of else None
        )
        stream = Stream(request)
        self._decoder.add(request, self._queue)
        return stream

    def score(
        self, prefix: Sequence[int], prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> NDArray[np.float64]:
        """log p(continuation | prompt) in nats, summed over its tokens: an array (prompts, continuations).

        `prefix` is what most prompts begin with, and shorter than each; a prompt that begins otherwise is scored
        rightly all the same. Takes its turn between requests. Raises RequestError for an empty prompt or
        continuation, PromptTooLong before anything is decoded, EngineError where decoding fails.
        """
        from edge.engine.scorer import Scorer

        if self.plan.backend == ONNX_BACKEND:
            raise RequestError("an ONNX model continues texts and does no more", hint="name a GGUF model")

        def work(backend: Backend, slots: Slots) -> NDArray[np.float64]:
            return Scorer(backend, slots, self.plan).score(prefix, prompts, continuations)

        return self._decoder.call(work)

    def embed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """What the last layer makes of the last token (width,), after the final norm: the text's embedding.

        Language models are not trained for it: texts near in meaning come out near, less so than by an encoder
        (`edge embed`). Takes its turn between requests. Raises RequestError for no tokens or an ONNX model,
        PromptTooLong, EngineError where decoding fails.
        """
        from edge.engine.llama import LlamaBackend

        self._check(tokens, 1, None)
        if not isinstance(self._backend, LlamaBackend):
            raise RequestError(
                "an ONNX decoder gives no embeddings", hint="name a GGUF model, or use an encoder"
            )
        backend = self._backend

        def work(_: Backend, slots: Slots) -> NDArray[np.float32]:
            first = slots.all[0]
            slots.clear(first)
            try:
                slots.read(first, tokens[:-1])
                return backend.embedding(Row(tokens[-1], len(tokens) - 1, (first.index,), True))
            finally:
                slots.empty(first, unknown=True)

        return self._decoder.call(work)

    def _check(self, prompt: Sequence[int], n: int, best_of: int | None) -> None:
        if not prompt:
            raise RequestError("the prompt is empty", hint="give at least one word")
        if not (min(prompt) >= 0 and max(prompt) < self._vocab.size):
            raise RequestError(
                f"the prompt has a token outside the vocabulary of {self._vocab.size}",
                hint="was it made for another model?",
            )
        if best_of is not None and best_of < n:
            raise RequestError(
                f"best_of {best_of} is less than the {n} answers asked for", hint="raise it or lower n"
            )
        needed = best_of or n
        if not n >= 1 or needed > self.plan.sequences:
            raise RequestError(
                f"{needed} answers asked for and the plan has room for {self.plan.sequences}",
                hint=f"load the model for {needed} or ask for fewer",
            )
        if len(prompt) + (needed if self.plan.unified else 1) > self.context:
            raise PromptTooLong(len(prompt), self.context)


class Decoder:
    """The decode thread and what waits for it. Any thread may call it."""

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        adapters: tuple[Adapter, ...],
        disk: DiskCache | None,
        pace: Pace,
        draft: DraftModel | None,
        lookup: bool | None,
    ) -> None:
        self._draft, self._adapters = draft, adapters
        self._backend, self._process = backend, os.getpid()
        self._slots = Slots(
            backend,
            plan.sequences,
            alike=plan.parallel > 1,
            shared_cells=plan.unified,
            disk=disk,
            own=adapters,
        )

        def propose(request: Request) -> Proposer | None:
            if request.n > 1 or (lookup is False and draft is None):
                return None
            return draft.proposer() if draft else PromptLookup(pace)

        self._scheduler = Scheduler(
            backend, plan, self._slots, propose, careful=lookup is None and draft is None
        )
        self._changed = threading.Condition()
        self._calls: list[tuple[Callable[[Backend, Slots], Any], Future[Any]]] = []
        self._closed = False
        self._thread: threading.Thread | None = None

    def check_open(self) -> None:
        """Raise EngineError when the model is closed, or belongs to the process this one was forked from."""
        if os.getpid() != self._process:
            raise EngineError(
                "the model was loaded before this process was forked", hint="load it after that"
            )
        if self._closed:
            raise EngineError("the model is closed", hint="load it again")

    def add(self, request: Request, most: int) -> None:
        """Queue a request. Raises QueueFull where `most` wait already."""
        with self._changed:
            self.check_open()
            if len(self._scheduler.waiting) >= most:
                raise QueueFull(f"{most} requests wait already", hint="wait for some of them")
            self._scheduler.waiting.append(request)
            self._start()

    def call(self, work: Callable[[Backend, Slots], T]) -> T:
        """Run `work` in the decode thread once nothing is live. It has all slots, and leaves them as they say.

        Raises RequestError in a callback, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise RequestError(
                "a callback cannot wait for the thread that called it", hint="score and embed elsewhere"
            )
        future: Future[T] = Future()
        with self._changed:
            self.check_open()
            self._calls.append((work, future))
            self._start()
        return future.result()

    def close(self) -> None:
        """End everything and free the backend; safe to call twice, and from the decode thread."""
        self.leave()
        thread = self._thread if os.getpid() == self._process else None
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def leave(self) -> None:
        """Let the decode thread end everything and free the backend, as soon as it can; safe to call twice."""
        if os.getpid() != self._process:
            return  # its threads are the parent's, and so is its memory
        with self._changed:
            already, self._closed = self._closed, True
            self._changed.notify_all()
        if not already:
            for loaded in self._loaded():
                loaded.abort()
            if self._thread is None:
                self._free()

    def _start(self) -> None:
        if self._thread is None:
            # A daemon, as a script that ends without closing is to end; `close` runs before the interpreter goes
            thread = threading.Thread(target=self._run, name="edge-decode", daemon=True)
            thread.start()
            self._thread = thread
            atexit.register(self.close)
        self._changed.notify_all()

    def _run(self) -> None:
        called = False
        while self._wait():
            try:
                # After each call a turn of those that wait, or calls without a pause would keep them waiting
                self._scheduler.step(admit=called or not self._calls)
                called = bool(self._calls) and not self._scheduler.busy
                if called:
                    self._do_call()
            except BaseException as error:
                self._scheduler.end(error)
        closed = EngineError("the model is closed", hint="load it again")
        with self._changed:
            self._scheduler.end(closed)
            for _, future in self._calls:
                future.set_exception(closed)
            self._calls.clear()
        try:
            self._slots.spill_all()
        finally:
            self._free()
            atexit.unregister(self.close)

    def _loaded(self) -> list[Backend | DraftModel]:
        return [self._backend, self._draft] if self._draft else [self._backend]

    def _free(self) -> None:
        for loaded in self._loaded():
            loaded.close()

    def _wait(self) -> bool:
        """Wait until there is something to do; False when the model is closed."""
        with self._changed:
            while not (self._closed or self._calls or self._scheduler.busy or self._scheduler.waiting):
                self._changed.wait()
            return not self._closed

    def _do_call(self) -> None:
        work, future = self._calls.pop(0)
        try:
            self._backend.use(self._adapters)
            future.set_result(work(self._backend, self._slots))
        except BaseException as error:
            future.set_exception(error)


def open_backend(plan: Plan, adapters: Sequence[Adapter]) -> Backend:
    """The backend the plan names, loaded. Raises RequestError for what only llama.cpp does, and what it raises."""
    if plan.backend != ONNX_BACKEND:
        from edge.engine.llama import LlamaBackend

        return LlamaBackend(plan, adapters)
    if adapters:
        raise RequestError(
            "LoRA adapters go with GGUF models, and this one is ONNX", hint="convert the model to GGUF too"
        )
    from edge.onnx.decoder import OnnxBackend

    return OnnxBackend(plan)


def open_draft(plan: Plan, target: Backend, pace: Pace) -> DraftModel:
    """The draft model, loaded. Raises what `DraftModel` raises."""
    from edge.engine.draft import DraftModel

    return DraftModel(plan, target, pace)
