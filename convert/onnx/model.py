"""The graph of a checkpoint that was understood: inputs, its family's pass, and what its task gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import TensorProto, helper

from ..understood import Understood
from . import lower
from .emit import MASK, Emission
from .graph import Graph
from .levels import LEVELS
from .ops import Ops
from .values import Handle, Value
from .whole_text import WholeTextOps

IDS, TYPES = "input_ids", "token_type_ids"
LOGITS, EMBEDDING, HIDDEN = "logits", "sentence_embedding", "last_hidden_state"


def encoder(model: Understood, level: str, name: str) -> Graph:
    """The graph at a level, its weights not read yet.

    Inputs are int64 (batch, tokens): input_ids, attention_mask, and token_type_ids where there are several types.
    Outputs are float32: logits (batch, labels) or (batch, tokens, labels); of other models sentence_embedding
    (batch, width), as far as it is said how, and last_hidden_state (batch, tokens, width).
    """
    config = model.config
    ops = WholeTextOps() if hasattr(config, "model") else Ops()
    typed = several_types(config)
    arguments = {"token_types": ops.input(TYPES)} if typed else {}
    weight = handles(model)
    hidden, logits = model.family.forward(ops, weight, config, ops.input(IDS), **arguments)
    outputs: dict[str, tuple[Value, list[str | int]]] = {}
    if logits is not None:
        shape = ["batch", "tokens"] if config.task == "tokens" else ["batch"]
        outputs[LOGITS] = (logits, [*shape, len(config.labels)])
    else:
        if config.pooling != "none":
            pooled = {"mean": ops.mean, "cls": ops.first, "last": ops.last}[config.pooling](hidden)
            pooled = ops.normalize(pooled) if config.normalize else pooled
            outputs[EMBEDDING] = (pooled, ["batch", config.width])
        outputs[HIDDEN] = (hidden, ["batch", "tokens", config.width])
    graph = Graph(name)
    for entry in (IDS, MASK, TYPES) if typed else (IDS, MASK):
        info = helper.make_tensor_value_info(entry, TensorProto.INT64, ["batch", "tokens"])
        graph.inputs.append(info)
    found = lower.lower(ops.made, [value for value, _ in outputs.values()], Emission(graph, LEVELS[level]))
    for (title, (_, dimensions)), inner in zip(outputs.items(), found, strict=True):
        graph.node("Identity", [inner], outputs=[title])
        graph.outputs.append(helper.make_tensor_value_info(title, TensorProto.FLOAT, dimensions))
    return graph


def several_types(config: Any) -> bool:
    """Whether the model tells the texts of a pair apart by token types."""
    return getattr(config, "token_types", 0) > 1


def handles(model: Understood) -> Callable[[str], Handle]:
    """A family's `weight`: the handle of a tensor by its name in the table, the same one each time."""
    made: dict[str, Handle] = {}
    exact = {weight.source for weight in model.table if weight.float32}
    head = tuple(f"{part}." for part in head_of(model.config))

    def weight(name: str) -> Handle:
        if name not in made:
            shape = model.checkpoint.tensors[model.names[name]].shape
            kept = name in exact or (bool(head) and name.startswith(head))
            made[name] = Handle(name, shape, lambda: model.float32(name), kept)
        return made[name]

    return weight


def head_of(config: Any) -> list[str]:
    """Names of the layers after the last hidden state: they are small, and all of an answer goes through them."""
    if hasattr(config, "model"):  # a decoder's classifier
        return ["score"]
    head = getattr(config, "head", None)
    return [part for part in (head.dense, head.output) if part] if head else []
