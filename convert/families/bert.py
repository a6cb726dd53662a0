"""BERT, and MiniLM, which is a BERT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edge.gguf_header import Header

from . import encoder_config
from .config import layers_of, need
from .encoder import extra_tensors, forward, head_weights, metadata, notes, renamed, weights, whole_fields
from .encoder_config import Config, Head, Names, task_of
from .encoder_header import config_fields
from .weight import Array

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
    layer="encoder.layer.{}",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
)
HEADS = {
    "embedding": Head(dense="pooler.dense"),
    "classification": Head(dense="pooler.dense", output="classifier"),
    "tokens": Head(output="classifier", activation=None, native=False),
}
# Numbers from 0 on, the heads of pretraining, and the pooler beside a classifier of tokens, which does not read it
IGNORED = (r"embeddings\.position_ids", r"cls\.(predictions|seq_relationship)\..*", r"pooler\.dense\..*")


def rename(name: str) -> str:
    """The table's name for a checkpoint's."""
    return renamed(name, "bert.")


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    sizes = {
        "layers": layers_of(raw),
        "width": need(raw, "hidden_size"),
        "inner": need(raw, "intermediate_size"),
        "heads": need(raw, "num_attention_heads"),
        "context": need(raw, "max_position_embeddings"),
        "offset": 0,
        "token_types": need(raw, "type_vocab_size"),
    }
    epsilon = need(raw, "layer_norm_eps", float) if "layer_norm_eps" in raw else 1e-12
    head = HEADS[task_of(raw)]
    return encoder_config.read(raw, sizes, NAMES, head, activation="hidden_act", epsilon=epsilon)


def config_json(header: Header, read: Callable[[str], Array]) -> dict[str, Any]:
    """config.json for a file of the architecture `bert`, which RoBERTa and DistilBERT share: `architectures` tells."""
    return config_fields(header)
