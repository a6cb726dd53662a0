"""The graph of a decoder: new tokens and the cache in, the last one's logits and the cache out."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto, helper

from edge.errors import ConversionError

from ..understood import Understood
from . import lower
from .decoder_ops import IDS, PAST, DecoderOps, past_and_present
from .emit import Emission
from .graph import Graph
from .levels import LEVELS
from .model import LOGITS, handles

FAMILIES = ("llama", "qwen")  # modules whose passes are known to need no more than DecoderOps has


def check_family(model: Understood) -> None:
    """Raise ConversionError for a decoder that is not among FAMILIES."""
    name = model.family.__name__.rpartition(".")[2]
    if name not in FAMILIES:
        raise ConversionError(
            f"decoders of the family {name} are not written as ONNX",
            hint="convert it to GGUF; the families Llama, Mistral and Qwen are written as ONNX too",
        )


def context_of(config: Any) -> int:
    """Tokens up to which the graph computes what the checkpoint does: it has windows, and no chunks."""
    context: int = config.context
    return min(context, getattr(config, "chunk", None) or context)


def decoder(model: Understood, level: str, name: str) -> Graph:
    """The graph at a level, its weights not read yet.

    Inputs: input_ids int64 (batch, tokens), past_length int64 () the tokens before them, and of each layer keys and
    values float32 (batch, kv heads, room, head size), whose first past_length places are filled. Outputs: logits
    float32 (batch, vocabulary) of the last token, and keys and values with the new tokens in their places: into the
    same buffers where the caller binds them so, or in new ones of past_length + tokens.
    """
    check_family(model)
    ops, config, weight = DecoderOps(), model.config, handles(model)
    hidden = model.family.states(ops, weight, config, ops.input(IDS))
    head = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    logits = ops.output(ops.newest(hidden), weight(head), tied=config.tied)
    graph = Graph(name)
    graph.inputs += [
        helper.make_tensor_value_info(IDS, TensorProto.INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info(PAST, TensorProto.INT64, []),
    ]
    graph.outputs.append(
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", config.vocabulary])
    )
    for layer in range(config.layers):
        past, present = past_and_present(layer)
        for entries, names, room in ((graph.inputs, past, "room"), (graph.outputs, present, "room after")):
            shape = ["batch", config.kv_heads, room, config.head_size]
            entries += [helper.make_tensor_value_info(one, TensorProto.FLOAT, shape) for one in names]
    (found,) = lower.lower(ops.made, [logits], Emission(graph, LEVELS[level]))
    graph.node("Identity", [found], outputs=[LOGITS])
    return graph
