"""An encoder as an ONNX folder: texts in batches, padded to the longest, through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge import onnx_folder
from edge.engine.encoding import About, Array, Tokens
from edge.engine.tokenizer import MAX_BYTES, TextTokenizer
from edge.errors import BadONNX, EngineError, RequestError, UnsafeFile
from edge.machine import host
from edge.onnx.check import Graph, Value
from edge.onnx.session import BACKEND, Session, float32
from edge.onnx_folder import OnnxFolder

IDS, MASK, TYPES, POSITIONS = "input_ids", "attention_mask", "token_type_ids", "position_ids"
# What exporters call the output that is wanted, by task, the surest first
VECTORS = ("embedding", "sentence_embedding")
NAMES = {
    "classification": ("logits",),
    "tokens": ("logits",),
    "embedding": (*VECTORS, "last_hidden_state", "token_embeddings"),
}
FLOATS = ("float32", "float16")
ELSEWHERE = "export it with transformers' names, or convert the checkpoint with `edge convert … --to onnx`"


class OnnxEncoder:
    """The encoder in an ONNX folder, ours or one made elsewhere. `run` may be called from several threads at once.

    `threads`, one a core if not given, are for callers: each runs batches of its own on one thread, faster than
    several on one batch. Raises RequestError where a part is missing or the model is none that reads texts,
    UnsafeFile (BadONNX) where its parts are damaged or contradict each other.
    """

    def __init__(self, path: Path, name: str | None = None, threads: int | None = None) -> None:
        folder = onnx_folder.read(path)
        if folder.task not in NAMES:
            raise RequestError(
                f"{name or path.name} writes text ({folder.task})", hint="talk to it with `edge chat`"
            )
        self.reason = ""  # why it was picked, where there was a choice
        self._tokenizer = tokenizer_of(folder)
        check_vocabulary(folder, self._tokenizer.size())
        self._session = Session(folder.graph, 1)
        graph = self._session.graph
        self._inputs = inputs_of(graph)
        self._batch, length = fixed(self._inputs[IDS])
        self._length = length
        output = output_of(graph, folder)
        self._output = output.name
        self._pool = pooling(folder, output)
        if folder.task != "embedding":
            check_labels(folder, output.shape)
        self._normalize = folder.task == "embedding" and folder.normalize
        pad = folder.config.get("pad_token_id")
        self._pad = self._tokenizer.pad or (pad if isinstance(pad, int) else 0) or 0
        self.about = About(
            name=name or folder.path.name,
            path=folder.path,
            backend=BACKEND,
            level=folder.level,
            task=folder.task,
            labels=folder.labels,
            problem=folder.problem,
            max_tokens=min(folder.max_tokens, length or folder.max_tokens),
            width=folder.width or (output.shape[-1] if output.shape else None) or 0,
            workers=threads or host().cpu.performance_cores,
        )
        self._check_by_trial(folder)

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, spans: bool = False
    ) -> list[Tokens]:
        """Texts, or pairs of texts, in tokens, each cut at `about.max_tokens`; spans and words only where asked for."""
        return self._tokenizer.tokenize(texts, pairs, self.about.max_tokens, spans=spans)

    def run(self, batch: Sequence[Tokens]) -> list[Array]:
        """float32 for each text: logits (labels,), for tokens (its tokens, labels), or the embedding (width,).

        Raises EngineError where ONNX Runtime fails, or gives NaN or infinity.
        """
        if not batch:
            return []
        if self._batch and len(batch) != self._batch:
            if self._batch != 1:
                raise RequestError(f"the graph reads {self._batch} texts at once only", hint=ELSEWHERE)
            return [found for one in batch for found in self.run([one])]
        feeds, mask = self._padded(batch)
        (found,) = self._session.run(feeds, [self._output])
        values = float32(found)
        if self._pool:
            values = pooled(values, mask, self._pool)
        if self._normalize:
            values = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
        # copies: a view of a row would keep the whole batch
        rows = [
            np.array(row[: len(one.ids)] if self.about.task == "tokens" else row)
            for row, one in zip(values, batch, strict=True)
        ]
        if not all(np.isfinite(row).all() for row in rows):
            raise EngineError(
                f"{self.about.name} gives NaN or infinity", hint="its weights are damaged: convert it again"
            )
        return rows

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self._session.close()

    def _padded(self, batch: Sequence[Tokens]) -> tuple[dict[str, Array], Array]:
        """The graph's inputs (texts, longest), and the mask."""
        longest = self._length or max(len(one.ids) for one in batch)
        shape = (len(batch), longest)
        ids, mask = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        types = np.zeros(shape, np.int64)
        for row, one in enumerate(batch):
            ids[row, : len(one.ids)] = one.ids
            types[row, : len(one.ids)] = one.types
            mask[row, : len(one.ids)] = 1
        every = {IDS: ids, MASK: mask, TYPES: types}
        if POSITIONS in self._inputs:
            every[POSITIONS] = np.broadcast_to(np.arange(longest), shape)
        return {
            name: np.ascontiguousarray(every[name], dtype=value.type) for name, value in self._inputs.items()
        }, mask

    def _check_by_trial(self, folder: OnnxFolder) -> None:
        """Run one text: what a file says of its shapes may be left out, or wrong."""
        (tokens,) = self.tokenize(["a"])
        try:
            (found,) = self.run([tokens])
        except ValueError as error:
            raise BadONNX(
                f"{folder.graph.name} does not give what {folder.task} needs: {error}"[:200]
            ) from None
        if folder.task == "embedding":
            if found.ndim != 1:
                raise BadONNX(f"{folder.graph.name} gives no vector for a text", hint=ELSEWHERE)
            return
        check_labels(folder, found.shape)
        if found.ndim != (2 if folder.task == "tokens" else 1):
            raise BadONNX(
                f"{folder.graph.name} gives {found.ndim}-dimensional logits for a text",
                hint=f"config.json says {folder.task}: is it that model's?",
            )


def tokenizer_of(folder: OnnxFolder) -> TextTokenizer:
    """Raises UnsafeFile for a tokenizer.json that is none."""
    path = onnx_folder.beside(folder.graph, onnx_folder.TOKENIZER)
    with path.open("rb") as file:
        return TextTokenizer(file.read(MAX_BYTES + 1), str(path))


def check_vocabulary(folder: OnnxFolder, tokens: int) -> None:
    """Raise UnsafeFile where the tokenizer may give ids that the model has no row for."""
    rows = folder.config.get("vocab_size")
    if isinstance(rows, int) and tokens > rows:
        raise UnsafeFile(
            f"{folder.path} has a tokenizer of {tokens:,} tokens and a model of {rows:,}",
            hint="put the tokenizer.json of the same checkpoint there",
        )


def inputs_of(graph: Graph) -> dict[str, Value]:
    """The inputs by name. Raises RequestError for one that is not known."""
    for value in graph.inputs:
        if value.name not in (IDS, MASK, TYPES, POSITIONS) or value.type not in ("int64", "int32"):
            raise RequestError(
                f"the graph asks for an input {value.name[:60]!r} of {value.type or 'another kind'}",
                hint=ELSEWHERE,
            )
    found = {value.name: value for value in graph.inputs}
    if IDS not in found:
        raise RequestError(f"the graph has no input {IDS}", hint=ELSEWHERE)
    return found


def fixed(ids: Value) -> tuple[int | None, int | None]:
    """Texts a batch and tokens a text, where the graph takes no others. Raises BadONNX for more than any text has."""
    if ids.shape is None or len(ids.shape) != 2:
        return None, None
    if (ids.shape[1] or 0) > onnx_folder.MOST_TOKENS:
        raise BadONNX(f"the graph reads {ids.shape[1]:,} tokens and no fewer", hint=ELSEWHERE)
    return ids.shape[0] or None, ids.shape[1] or None


def output_of(graph: Graph, folder: OnnxFolder) -> Value:
    """The output that the task is about: by its name, else the only one of its kind.

    Raises RequestError where there is none, or no telling which.
    """
    floats = [value for value in graph.outputs if value.type in FLOATS]
    by_name = {value.name: value for value in floats}
    for name in NAMES[folder.task]:
        if name in by_name:
            return by_name[name]
    ranks = (3, 2) if folder.task == "embedding" else (3,) if folder.task == "tokens" else (2,)
    for rank in ranks:
        fitting = [value for value in floats if value.shape is None or len(value.shape) == rank]
        if len(fitting) == 1:
            return fitting[0]
    names = ", ".join(value.name[:40] for value in graph.outputs[:8])
    raise RequestError(
        f"{folder.graph.name} has no output that is {folder.task}'s (it has {names or 'none'})",
        hint=ELSEWHERE,
    )


def pooling(folder: OnnxFolder, output: Value) -> str:
    """How hidden states become one vector here; empty where the graph does that, or none is wanted."""
    vector = output.name in VECTORS or (output.shape is not None and len(output.shape) == 2)
    if folder.task != "embedding" or vector:
        return ""
    if folder.pooling == "none":
        raise RequestError(
            f"{folder.path} does not say how {output.name[:40]} becomes one vector a text",
            hint="put the checkpoint's modules.json and 1_Pooling/config.json beside it",
        )
    return folder.pooling


def check_labels(folder: OnnxFolder, shape: Sequence[Any] | None) -> None:
    """Raise UnsafeFile where the graph gives another number of labels than config.json has."""
    count = shape[-1] if shape else None
    if count is not None and count != len(folder.labels):
        raise UnsafeFile(
            f"{folder.path} has {len(folder.labels)} labels in config.json and a graph that gives {count}",
            hint="put the config.json of the same checkpoint there",
        )


def pooled(hidden: Array, mask: Array, way: str) -> Array:
    """(texts, width) of (texts, tokens, width): the mean over a text's tokens, its first or its last."""
    if hidden.ndim == 2:
        return hidden
    if way == "cls":
        return np.asarray(hidden[:, 0])
    if way == "last":
        return np.asarray(hidden[np.arange(len(hidden)), mask.sum(1) - 1])
    weights = mask[:, None, :].astype(np.float32)
    return np.asarray((weights @ hidden)[:, 0] / weights.sum(2))
