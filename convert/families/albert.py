"""ALBERT: BERT's pass through layers that share their weights, with narrow embeddings.

Source: Lan et al., 2020, arXiv:1909.11942. llama.cpp has no such architecture: ONNX only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.errors import ConversionError

from . import encoder_config
from .config import MOST_LAYERS, given, layers_of, need
from .encoder import forward, renamed, weights
from .encoder import plain_notes as notes
from .encoder_config import Config, Head, Names, task_of

__all__ = ["forward", "notes", "read_config", "rename", "weights"]

NAMES = Names(
    layer="encoder.albert_layer_groups.{}.albert_layers.{}",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    attention_output="attention.dense",
    attention_norm="attention.LayerNorm",
    up="ffn",
    down="ffn_output",
    output_norm="full_layer_layer_norm",
)
HEADS = {
    "embedding": Head(dense="pooler"),
    "classification": Head(dense="pooler", output="classifier"),
    "tokens": Head(output="classifier", activation=None),
}
# Numbers from 0 on, the heads of pretraining, and the pooler beside a classifier of tokens, which does not read it
IGNORED = (r"embeddings\.position_ids", r"(predictions|sop_classifier)\..*", r"pooler\..*")


def rename(name: str) -> str:
    """The table's name for a checkpoint's."""
    return renamed(name, "albert.")


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    sequence = blocks(raw)
    sizes = {
        "layers": len(sequence),
        "width": need(raw, "hidden_size"),
        "inner": need(raw, "intermediate_size"),
        "heads": need(raw, "num_attention_heads"),
        "context": given(raw, "max_position_embeddings", 512),
        "offset": 0,
        "token_types": given(raw, "type_vocab_size", 2),
        "embedding": given(raw, "embedding_size", 128),
        "projection": "encoder.embedding_hidden_mapping_in",
        "sequence": sequence,
    }
    epsilon = need(raw, "layer_norm_eps", float) if "layer_norm_eps" in raw else 1e-12
    head = HEADS[task_of(raw)]
    return encoder_config.read(
        raw, sizes, NAMES, head, activation="hidden_act", usual="gelu_new", epsilon=epsilon
    )


def blocks(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the layers in the order of the pass: each group's are used several times in a row.

    Raises ConversionError for numbers that contradict each other.
    """
    layers, groups = layers_of(raw), given(raw, "num_hidden_groups", 1)
    inner = given(raw, "inner_group_num", 1)
    if groups > layers or inner * layers > MOST_LAYERS:
        raise ConversionError(
            f"config.json makes {layers} layers of {groups} groups of {inner}",
            hint=f"each group has to be used, and {MOST_LAYERS} layers are the most",
        )
    return tuple(
        NAMES.layer.format(layer * groups // layers, part) for layer in range(layers) for part in range(inner)
    )
