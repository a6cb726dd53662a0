"""Decoding on ONNX Runtime: a KV cache in memory of our own, which the graph reads and writes where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.adapters import Adapter
from edge.engine.backend import Row
from edge.engine.chain import Chain
from edge.errors import BadONNX
from edge.onnx.session import Session, onnxruntime
from edge.onnx.vocab import OnnxVocab
from edge.onnx_folder import TOKENIZER, DecoderFolder, decoder_of, read
from edge.planner import Plan

IDS, PAST, LOGITS = "input_ids", "past_length", "logits"


class OnnxBackend:
    """A decoder's folder loaded as a plan says, a `Backend`.

    Raises what `edge.onnx_folder.read` and `decoder_of` raise, BadONNX for a graph that is not the folder's,
    EngineError where ONNX Runtime refuses.
    """

    rolls_back, every_row, window = True, False, 0  # the graph gives logits of the last token alone

    def __init__(self, plan: Plan) -> None:
        folder = read(plan.path)
        self.context, self._said = plan.context, decoder_of(folder)
        self._name = plan.artifact
        self._session: Session | None = Session(folder.graph, plan.threads.decode)
        check_graph(self._session, self._said)
        self.vocab = OnnxVocab(folder.path / TOKENIZER, self._said)
        shape = (plan.sequences, self._said.kv_heads, self.context, self._said.head_size)
        # Pages of zeros take no memory until something is written there
        self._cache = {name: np.zeros(shape, np.float32) for name in cache_names(self._said)}
        self._lengths = [0] * plan.sequences
        self._logits = np.zeros((plan.sequences, self._said.vocabulary), np.float32)
        self._ids, self._past = np.zeros((1, 1), np.int64), np.zeros((), np.int64)
        self._binding: Any = None
        self._bound: tuple[int, int] | None = None  # the first sequence, and how many
        self._rows: list[int] = []  # the sequence of each row of the last decode

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        if self._session is not None:
            self._session.close()
        self._session = self._binding = self._bound = None
        self._cache = {}

    def meta(self, key: str) -> str | None:
        """What the folder says under one of GGUF's keys."""
        said = {
            "tokenizer.chat_template": self._said.chat_template,
            "general.architecture": self._said.architecture,
            "general.name": self._name,
        }
        return said.get(key) or None

    def use(self, adapters: Sequence[Adapter]) -> None:
        """There are none for ONNX models; `open_backend` says so."""

    def decode(self, rows: Sequence[Row]) -> None:
        """One run for sequences side by side that are equally long, else one for each."""
        self._rows = [row.sequences[0] for row in rows]
        first = rows[0]
        side_by_side = self._rows == list(range(first.sequences[0], first.sequences[0] + len(rows)))
        if side_by_side and all(row.position == first.position for row in rows):
            self._run(np.array([[row.token] for row in rows], np.int64), first.position, first.sequences[0])
        else:
            for sequence, part in groupby(rows, lambda row: row.sequences[0]):
                some = list(part)
                self._run(np.array([[row.token for row in some]], np.int64), some[0].position, sequence)
        for row in rows:
            self._lengths[row.sequences[0]] = row.position + 1

    def draw(self, chain: Chain, row: int) -> int:
        return chain.draw_from(self.logits(row))

    def logits(self, row: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._logits[self._rows[row]]
        return values

    def copy(self, source: int, target: int, length: int | None = None) -> None:
        length = self._lengths[source] if length is None else length
        for values in self._cache.values():
            values[target, :, :length] = values[source, :, :length]
        self._lengths[target] = length

    def keep(self, sequence: int, length: int) -> bool:
        # What lies beyond is written over: attention looks no further than the length it is told
        self._lengths[sequence] = length
        return True

    def save(self, sequence: int) -> NDArray[np.uint8]:
        length = self._lengths[sequence]
        state = np.stack([values[sequence, :, :length] for values in self._cache.values()])
        return state.reshape(-1).view(np.uint8)

    def load(self, sequence: int, state: NDArray[np.uint8]) -> bool:
        heads, size = self._said.kv_heads, self._said.head_size
        length = state.size // (4 * len(self._cache) * heads * size)
        self._lengths[sequence] = length
        layers = np.split(state.view(np.float32), len(self._cache))
        for values, layer in zip(self._cache.values(), layers, strict=True):
            values[sequence, :, :length] = layer.reshape(heads, length, size)
        return True

    def abort(self) -> None:
        """A run is not cut short: it takes no longer than a piece of a prompt."""

    def _run(self, ids: NDArray[np.int64], past: int, first: int) -> None:
        """Decode ids (sequences, tokens) after `past` tokens, for the sequences from `first` on."""
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
        self._binding.bind_ortvalue_output(LOGITS, value(self._logits[first : first + count]))
        self._bound = (first, count)


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
