"""DistilBERT: BERT's pass without token types, a head whose ReLU llama.cpp would compute as tanh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import encoder_config
from .bert import config_json
from .config import layers_of, need
from .encoder import extra_tensors, forward, head_weights, metadata, notes, renamed, weights, whole_fields
from .encoder_config import Config, Head, Names, task_of

__all__ = [
    "config_json",
    "extra_tensors",
    "forward",
    "head_weights",
    "metadata",
    "notes",
    "read_config",
    "rename",
    "weights",
    "whole_fields",
]

NAMES = Names(
    layer="transformer.layer.{}",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    output_norm="output_layer_norm",
)
HEADS = {
    "embedding": Head(),
    "classification": Head(dense="pre_classifier", output="classifier", activation="relu", native=False),
    "tokens": Head(output="classifier", activation=None, native=False),
}
# Numbers from 0 on, and the head of pretraining
IGNORED = (r"embeddings\.position_ids", r"vocab_(transform|layer_norm|projector)\..*")


def rename(name: str) -> str:
    """The table's name for a checkpoint's."""
    return renamed(name, "distilbert.")


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    sizes = {
        "layers": layers_of(raw, "n_layers"),
        "width": need(raw, "dim"),
        "inner": need(raw, "hidden_dim"),
        "heads": need(raw, "n_heads"),
        "context": need(raw, "max_position_embeddings"),
        "offset": 0,
        "token_types": 0,
    }
    head = HEADS[task_of(raw)]
    return encoder_config.read(raw, sizes, NAMES, head, activation="activation", epsilon=1e-12)
