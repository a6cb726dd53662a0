"""An encoder as a GGUF file in llama.cpp: several texts a batch, heads that llama.cpp lacks applied in NumPy.

One model, and a context of one thread for each worker: contexts side by side need no barriers between threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, get_ident
from typing import Any

import numpy as np

from edge import gguf_header
from edge.engine import heads
from edge.engine.binding import interrupts_held, listen, llama, why
from edge.engine.encoding import About, Array, Tokens
from edge.engine.tokenizer import TextTokenizer
from edge.engine.vocab import Vocab
from edge.errors import BadGGUF, EngineError, RequestError
from edge.gguf_header import Header
from edge.machine import host

BACKEND = "llama.cpp-cpu"
NONE, RANK = 0, 4  # llama.h, enum llama_pooling_type
TEXTS = 32  # at most at once
# Tokens at once, but for a longer text: attention is computed over the square of a batch, whichever text is whose.
# MiniLM's pace to that in batches of 128: F16 1.01, Q8_0 1.11 in 256; 0.97 and 1.00 in 512; 0.58 and 0.66 in 64.
TOKENS = 256
MOST_TOKENS = 1 << 16
AGAIN = "convert the checkpoint again: such files now carry its tokenizer"


class GgufEncoder:
    """The encoder in a GGUF file. `run` may be called from several threads at once.

    `threads`, one a core if not given, are for callers: as many compute at once, each on one thread.
    Raises RequestError for a model that writes text or does not say how it pools, BadGGUF for a damaged head,
    EngineError where llama.cpp refuses.
    """

    def __init__(self, path: Path, name: str | None = None, threads: int | None = None) -> None:
        self.reason = ""  # why it was picked, where there was a choice
        self._lib = llama()
        self._model: Any = None
        self._workers: list[Worker] = []
        self._closing, self._path = Lock(), path
        header = gguf_header.read(path)
        task = task_of(header)
        if task == "generation":
            raise RequestError(f"{name or path.name} writes text", hint="talk to it with `edge chat`")
        self._pooling = header.get("{arch}.pooling_type", int, NONE)
        self._head = heads.read(path) if task != "embedding" and self._pooling != RANK else None
        if task == "embedding" and self._pooling == NONE:
            raise RequestError(
                f"{name or path.name} does not say how it makes one vector of a text",
                hint="convert the checkpoint with its modules.json and 1_Pooling/config.json beside it",
            )
        if task != "embedding" and self._pooling != RANK and self._head is None:
            raise BadGGUF(f"{path.name} has no head to classify with", hint=heads.AGAIN)
        self._normalize = header.get("edge.normalize", bool, False)
        self._types = header.get("tokenizer.ggml.token_type_count", int, 1)
        context = min(header.get("{arch}.context_length", int), MOST_TOKENS)
        most = min(context, header.get("edge.max_tokens", int, context))
        if most < 1:
            raise BadGGUF(f"{path.name} reads {most} tokens of a text", hint=heads.AGAIN)
        text = header.get(gguf_header.HF_TOKENIZER, str, None)
        self._tokenizer = TextTokenizer(text, f"{path.name}'s tokenizer") if text is not None else None
        # A multiple of the sequences: llama.cpp ends the process where it pools by mean and they do not divide it
        self._room = -(-max(TOKENS, most) // TEXTS) * TEXTS
        try:
            self._load(path)
            count = threads or host().cpu.performance_cores
            self._workers = [Worker(Batch(self._lib, self._room)) for _ in range(count)]
            with self._free():
                pass  # what llama.cpp refuses it refuses now
            self._vocab = Vocab(self._model)
            self._width: int = self._lib.llama_model_n_embd(self._model)
            self._columns: int = self._width
            if self._pooling == RANK:
                self._columns = self._lib.llama_model_n_cls_out(self._model)
            labels = labels_of(path, header, self._columns if self._head is None else len(self._head.output))
            if self._tokenizer is not None and self._tokenizer.size() > self._vocab.size:
                raise BadGGUF(f"{path.name} has a tokenizer of more tokens than its model", hint=heads.AGAIN)
        except BaseException:
            self.close()
            raise
        self.about = About(
            name=name or path.name,
            path=path,
            backend=BACKEND,
            level=header.quantization.lower(),
            task=task,
            labels=() if task == "embedding" else labels,
            problem=header.get("edge.problem_type", str, None),
            max_tokens=most,
            width=self._width,
            workers=count,
        )

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, spans: bool = False
    ) -> list[Tokens]:
        """Texts, or pairs of texts, in tokens, each cut at `about.max_tokens`; spans and words only where asked for.

        Raises RequestError for what this file cannot do: pairs of a model that tells first from second text, and
        spans or pairs where the file carries no tokenizer of its own.
        """
        if self._tokenizer is None:
            if spans or pairs is not None:
                raise RequestError(
                    f"{self.about.name} has llama.cpp's tokenizer only, which "
                    + ("does not say where its tokens stand" if spans else "joins no pairs"),
                    hint=AGAIN,
                )
            return [self._plain(text) for text in texts]
        found = self._tokenizer.tokenize(texts, pairs, self.about.max_tokens, spans=spans)
        if self._types > 1 and any(one.types.any() for one in found):
            raise RequestError(
                f"llama.cpp reads the second text of a pair as a first one, and {self.about.name} tells them apart",
                hint="convert the checkpoint with --to onnx for pairs",
            )
        return found

    def run(self, batch: Sequence[Tokens]) -> list[Array]:
        """float32 for each text: logits (labels,), for tokens (its tokens, labels), or the embedding (width,).

        Raises EngineError where llama.cpp fails, or gives NaN or infinity.
        """
        with self._free() as worker:
            found = [row for group in groups(batch) for row in self._encode(worker, group)]
        if self._head is not None:
            found = [heads.apply(self._head, row) for row in found]
        if self._normalize:
            found = [row / max(float(np.linalg.norm(row)), 1e-12) for row in found]
        if not all(np.isfinite(row).all() for row in found):
            raise EngineError(
                f"{self.about.name} gives NaN or infinity", hint="its weights are damaged: convert it again"
            )
        return found

    def close(self) -> None:
        """Free the memory, once what runs is done; safe to call twice, and from any thread."""
        for worker in self._workers:
            with worker.lock:
                worker.closed = True
                if worker.context is not None:
                    self._lib.llama_free(worker.context)
                worker.context = None
        with self._closing:
            if self._model is not None:
                self._lib.llama_model_free(self._model)
            self._model = None

    @contextmanager
    def _free(self) -> Iterator[Worker]:
        """A worker that nobody else uses meanwhile, with its context, which is made when first needed.

        Raises EngineError where the model is closed or llama.cpp opens no context.
        """
        idle = (worker for worker in self._workers if not worker.lock.locked())
        worker = next(idle, self._workers[get_ident() % len(self._workers)])
        with worker.lock:  # somebody else may have come first; then it is waited for
            if worker.closed:
                raise closed()
            if worker.context is None:
                worker.context = self._open()
            yield worker

    def _load(self, path: Path) -> None:
        lib = self._lib
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        listen()
        with interrupts_held():
            self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise EngineError(
                f"llama.cpp cannot load {path.name}: {why('it gives no reason')}",
                hint="a newer llama-cpp-python may know it: pip install --upgrade llama-cpp-python",
            )

    def _open(self) -> Any:
        """A context of one thread."""
        settings = self._lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = self._room
        settings.n_seq_max = TEXTS
        settings.n_threads = settings.n_threads_batch = 1
        settings.embeddings = True
        settings.pooling_type = self._pooling
        settings.no_perf = True
        listen()
        with interrupts_held():
            context = self._lib.llama_init_from_model(self._model, settings)
        if not context:
            raise EngineError(
                f"llama.cpp opens no context for {self._path.name}: {why('it gives no reason')}",
                hint="fewer --threads need less memory",
            )
        return context

    def _plain(self, text: str) -> Tokens:
        """A text in llama.cpp's own tokens; a longer one loses its end but for the last special token."""
        if self._model is None:
            raise closed()
        ids = self._vocab.tokens(text)
        most = self.about.max_tokens
        left_out = max(0, len(ids) - most)
        if left_out:
            bare = len(self._vocab.tokens(text, add_special=False))
            ends = len(ids) - bare - 1 > 0  # one special token stands before the text and one after it
            ids = [*ids[: most - 1], ids[-1]] if ends else ids[:most]
        if not ids:
            raise RequestError(
                "a text has no tokens", hint="leave out empty texts: this model cannot read them"
            )
        return Tokens(np.array(ids, np.int64), np.zeros(len(ids), np.int64), left_out=left_out)

    def _encode(self, worker: Worker, texts: Sequence[Array]) -> list[Array]:
        """Hidden states (tokens, width) of each text, or what they are pooled to (columns,)."""
        lib = self._lib
        if code := lib.llama_encode(worker.context, worker.rows.filled(texts)):
            raise EngineError(f"llama.cpp failed to encode (code {code}): {why('it gives no reason')}")
        if self._pooling != NONE:
            return [
                floats(lib.llama_get_embeddings_seq(worker.context, row), 1, self._columns)[0]
                for row in range(len(texts))
            ]
        hidden = floats(lib.llama_get_embeddings(worker.context), sum(map(len, texts)), self._columns)
        return np.split(hidden, np.cumsum([len(ids) for ids in texts])[:-1])


def groups(batch: Sequence[Tokens]) -> Iterator[list[Array]]:
    """Ids of texts that fit llama.cpp's batch together, in their order."""
    group: list[Array] = []
    total = 0
    for one in batch:
        if group and (total + len(one.ids) > TOKENS or len(group) == TEXTS):
            yield group
            group, total = [], 0
        group.append(one.ids)
        total += len(one.ids)
    if group:
        yield group


class Worker:
    """A llama.cpp context with the batch it reads, for one caller at a time."""

    def __init__(self, rows: Batch) -> None:
        self.lock, self.rows, self.closed = Lock(), rows, False
        self.context: Any = None


class Batch:
    """A llama_batch whose arrays are NumPy's: filled without a Python step a token."""

    def __init__(self, lib: Any, room: int) -> None:
        self._token, self._place = np.zeros(room, np.int32), np.zeros(room, np.int32)
        self._counts, self._sequence = np.ones(room, np.int32), np.zeros(room, np.int32)
        self._output = np.ones(room, np.int8)  # an output at every token
        # each token's list of sequences has one element, which lies in self._sequence
        self._lists = self._sequence.ctypes.data + 4 * np.arange(room, dtype=np.uintp)
        self._batch = lib.llama_batch()
        for name, values in (
            ("token", self._token), ("pos", self._place), ("n_seq_id", self._counts),
            ("seq_id", self._lists), ("logits", self._output),
        ):  # fmt: skip
            kind = dict(lib.llama_batch._fields_)[name]
            setattr(self._batch, name, ctypes.cast(values.ctypes.data, kind))

    def filled(self, texts: Sequence[Array]) -> Any:
        """The batch with these texts as sequences from 0 on."""
        lengths = [len(ids) for ids in texts]
        total = sum(lengths)
        self._token[:total] = np.concatenate(texts)
        self._place[:total] = np.concatenate([np.arange(length) for length in lengths])
        self._sequence[:total] = np.repeat(np.arange(len(texts)), lengths)
        self._batch.n_tokens = total
        return self._batch


def closed() -> EngineError:
    return EngineError("the model is closed", hint="load it again")


def task_of(header: Header) -> str:
    """generation, embedding, classification or tokens: as the file says, or as llama.cpp would run it."""
    said = header.get("edge.task", str, None)
    if said is not None:
        return said
    if not ("bert" in header.architecture or header.get("{arch}.attention.causal", bool, True) is False):
        return "generation"
    return "classification" if header.get("{arch}.pooling_type", int, NONE) == RANK else "embedding"


def labels_of(path: Path, header: Header, count: int) -> tuple[str, ...]:
    """A classifier's labels. Raises BadGGUF where they are not as many as its head gives."""
    key = f"{header.architecture}.classifier.output_labels"
    if key not in header.metadata:
        return tuple(f"LABEL_{index}" for index in range(count))
    labels = gguf_header.elements(path, key)
    if len(labels) != count or not all(isinstance(label, str) for label in labels):
        raise BadGGUF(f"{path.name} has {len(labels)} labels and a head that gives {count}", hint=heads.AGAIN)
    return labels


def floats(pointer: Any, rows: int, columns: int) -> Array:
    """A copy of llama.cpp's floats (rows, columns): its buffer is used again."""
    if not pointer:
        raise EngineError("llama.cpp gives no output", hint="convert the checkpoint again")
    values = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
    return np.array(np.ctypeslib.as_array(values, shape=(rows, columns)))
