"""Decoding on ONNX Runtime: a KV cache in memory of our own, which the graph reads and writes where it lies."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.binding import llama
from edge.engine.decoding import Answer, Decoding
from edge.errors import BadONNX, EngineError
from edge.memory import BATCH
from edge.onnx.session import Session, onnxruntime
from edge.onnx.vocab import OnnxVocab
from edge.onnx_folder import TOKENIZER, DecoderFolder, decoder_of, read
from edge.planner import Plan

IDS, PAST, LOGITS = "input_ids", "past_length", "logits"
CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # llama.h, llama_token_data


class OnnxDecoder(Decoding):
    """A decoder's folder loaded as a plan says.

    Raises what `edge.onnx_folder.read` and `decoder_of` raise, BadONNX for a graph that is not the folder's,
    EngineError where ONNX Runtime refuses.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        started = perf_counter()
        folder = read(plan.path)
        self.plan, self.context, self._said = plan, plan.context, decoder_of(folder)
        self._session: Session | None = Session(folder.graph, plan.threads.decode)
        check_graph(self._session, self._said)
        self._vocab = OnnxVocab(folder.path / TOKENIZER, self._said)
        shape = (plan.sequences, self._said.kv_heads, self.context, self._said.head_size)
        # Pages of zeros take no memory until something is written there
        self._cache = {name: np.zeros(shape, np.float32) for name in cache_names(self._said)}
        self._logits = np.zeros((plan.sequences, self._said.vocabulary), np.float32)
        self._ids, self._past = np.zeros((1, 1), np.int64), np.zeros((), np.int64)
        self._binding: Any = None
        self._bound: tuple[int, int] | None = None  # the first sequence, and how many
        self._rows: list[int] = []  # where the cache of each answer lies
        self._sampler = Sampler(self._said.vocabulary)
        self.load_s = perf_counter() - started

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self._request += 1
        if self._session is not None:
            self._session.close()
        self._session = self._binding = self._bound = None
        self._cache = {}

    @property
    def vocab(self) -> OnnxVocab:
        """The model's vocabulary. Raises EngineError when the model is closed."""
        self._check_open()
        return self._vocab

    def meta(self, key: str) -> str | None:
        """What the folder says under one of GGUF's keys. Raises EngineError when the model is closed."""
        self._check_open()
        said = {
            "tokenizer.chat_template": self._said.chat_template,
            "general.architecture": self._said.architecture,
            "general.name": self.plan.artifact,
        }
        return said.get(key) or None

    def _check_open(self) -> None:
        if self._session is None:
            raise EngineError("the model is closed", hint="load it again")

    def _rewind(self, prompt: Sequence[int]) -> int:
        # What lies beyond is written over: attention looks no further than the length it is told
        self._kept = list(prompt[: self._shared(prompt)])
        return len(self._kept)

    def _prefill(self, prompt: Sequence[int], start: int) -> None:
        for at in range(start, len(prompt), BATCH):
            part = prompt[at : at + BATCH]
            self._run(np.array([part], np.int64), at, first=0)
            self._kept.extend(part)

    def _fork(self, n: int) -> None:
        self._rows = list(range(n))
        length = len(self._kept)
        for values in self._cache.values():
            values[1:n, :, :length] = values[0, :, :length]

    def _draw(self, answer: Answer, row: int) -> int:
        return self._sampler.draw(answer.chain, self._logits[max(row, 0)])

    def _step(self, live: Sequence[Answer], prompt_tokens: int) -> None:
        """All live answers are equally long. Their caches lie side by side, the first answer's always at 0."""
        length = prompt_tokens + live[0].count - 1
        first = 0 if live[0].index == 0 else 1
        for row, answer in enumerate(live, first):
            if (source := self._rows[answer.index]) != row:
                for values in self._cache.values():
                    values[row, :, :length] = values[source, :, :length]
                self._rows[answer.index] = row
        self._run(np.array([[answer.token] for answer in live], np.int64), length, first=first)
        if first == 0:
            self._kept.append(live[0].token)

    def _run(self, ids: NDArray[np.int64], past: int, *, first: int) -> None:
        """Decode ids (sequences, tokens) after `past` tokens, for the sequences from `first` on."""
        self._check_open()
        assert self._session is not None
        if self._bound != (first, len(ids)):
            self._bind(first, len(ids))
        if ids.shape != self._ids.shape:
            self._ids = ids
            self._binding.bind_ortvalue_input(IDS, value(self._ids))
        self._ids[...] = ids
        self._past[...] = past
        self._session.run_bound(self._binding)

    def _bind(self, first: int, count: int) -> None:
        """Past and present of the sequences are the same memory, so nothing is copied from step to step."""
        assert self._session is not None
        self._binding = self._session.binding()
        for name, values in self._cache.items():
            there = value(values[first : first + count])
            self._binding.bind_ortvalue_input(f"past_key_values.{name}", there)
            self._binding.bind_ortvalue_output(f"present.{name}", there)
        self._ids = np.zeros((count, 1), np.int64)
        self._binding.bind_ortvalue_input(IDS, value(self._ids))
        self._binding.bind_ortvalue_input(PAST, value(self._past))
        self._binding.bind_ortvalue_output(LOGITS, value(self._logits[:count]))
        self._bound = (first, count)


class Sampler:
    """llama.cpp's native chains over a row of logits, so that a seed draws what it draws on llama.cpp."""

    def __init__(self, vocabulary: int) -> None:
        self._lib = llama()
        self._candidates = np.zeros(vocabulary, CANDIDATE)
        self._ids = np.arange(vocabulary, dtype=np.int32)
        pointer = self._candidates.ctypes.data_as(ctypes.POINTER(self._lib.llama_token_data))
        self._array = self._lib.llama_token_data_array(pointer, vocabulary, -1, False)

    def draw(self, chain: Any, logits: NDArray[np.float32]) -> int:
        """The token a chain chooses, which the chain then has seen (llama.h, llama_sampler_sample)."""
        self._candidates["id"] = self._ids  # samplers sort them, and drop some
        self._candidates["logit"] = logits
        self._candidates["p"] = 0
        array = self._array
        array.size, array.selected, array.sorted = len(logits), -1, False
        self._lib.llama_sampler_apply(chain, ctypes.byref(array))
        if array.selected < 0:
            raise EngineError(
                "no token could be drawn", hint="the model computes no numbers; get another file"
            )
        token = int(self._candidates["id"][array.selected])
        self._lib.llama_sampler_accept(chain, token)
        return token


def cache_names(said: DecoderFolder) -> list[str]:
    """Keys and values of each layer, as the graph calls them behind `past_key_values.` and `present.`."""
    return [f"{layer}.{kind}" for layer in range(said.layers) for kind in ("key", "value")]


def check_graph(session: Session, said: DecoderFolder) -> None:
    """Raise BadONNX where the graph takes or gives other than the folder says."""
    cache = (None, said.kv_heads, None, said.head_size)
    wanted: dict[str, tuple[str, tuple[int | None, ...]]]
    wanted = {IDS: ("int64", (None, None)), PAST: ("int64", ())}
    wanted |= {f"past_key_values.{name}": ("float32", cache) for name in cache_names(said)}
    given: dict[str, tuple[str, tuple[int | None, ...]]]
    given = {LOGITS: ("float32", (None, said.vocabulary))}
    given |= {f"present.{name}": ("float32", cache) for name in cache_names(said)}
    graph = session.graph
    for has, needs in ((graph.inputs, wanted), (graph.outputs, given)):
        if {one.name: (one.type, one.shape) for one in has} != needs:
            raise BadONNX(
                "model.onnx is not the decoder that its config.json describes",
                hint="convert the checkpoint again",
            )


def value(array: NDArray[Any]) -> Any:
    """An OrtValue of the array's own memory, which has to stay."""
    return onnxruntime().OrtValue.ortvalue_from_numpy(array)
