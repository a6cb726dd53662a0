"""DeBERTa-v2 and -v3: BERT's pass with attention between contents and distances apart.

Sources: He et al., 2021, arXiv:2006.03654 (disentangled attention) and arXiv:2111.09543 (v3). llama.cpp has no such
architecture: ONNX only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.errors import ConversionError

from . import encoder, encoder_config
from .config import given, layers_of, need
from .encoder import plain_notes as notes
from .encoder import renamed
from .encoder_config import ACTIVATIONS, Head, Names, task_of
from .weight import Array, Weight

__all__ = ["forward", "notes", "read_config", "rename", "weights"]

NAMES = Names(
    layer="encoder.layer.{}",
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    output_norm="output.LayerNorm",
)
# Numbers from 0 on, the heads of pretraining, positions that the input is not biased by
IGNORED = (
    *(r"embeddings\.position_ids", r"(cls|lm_predictions|mask_predictions)\..*", r"pooler\.dense\..*"),
    r"embeddings\.position_embeddings\.weight",
)
ROWS, ROWS_NORM = "encoder.rel_embeddings.weight", "encoder.LayerNorm"
CONVOLUTION = "encoder.conv.conv", "encoder.conv.LayerNorm"
WIDEST = 15  # tokens that a convolution sees; the models have 3
PARTS = ("c2p", "p2c")  # contents' attention to distances, and the other way


@dataclass(frozen=True)
class Config(encoder_config.Config):
    """`parts` are those of PARTS that the scores have; `buckets` of distances, 0 for one each, up to `farthest`.

    `shared`: distances are projected as contents are; `normed`: their embeddings are normed first. `kernel` is how many
    tokens the convolution beside the first layer sees, 0 where there is none.
    """

    parts: tuple[str, ...] = ()
    relative: bool = False
    buckets: int = 0
    farthest: int = 0
    shared: bool = False
    normed: bool = False
    kernel: int = 0
    kernel_activation: str = "tanh"

    @property
    def span(self) -> int:
        """Rows of the table of distances on each side of 0."""
        return self.buckets or self.farthest


def rename(name: str) -> str:
    """The table's name for a checkpoint's."""
    return renamed(name, "deberta.")


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    width, context = need(raw, "hidden_size"), need(raw, "max_position_embeddings")
    for key in ("embedding_size", "pooler_hidden_size"):
        if given(raw, key, width) != width:
            raise ConversionError(
                f"{key} is {raw[key]}", hint=f"this family is known with hidden_size, {width}, only"
            )
    kernel = given_or_none(raw, "conv_kernel_size")
    if kernel and (kernel % 2 == 0 or kernel > WIDEST or given(raw, "conv_groups", 1) != 1):
        raise ConversionError(
            f"config.json makes a convolution of {kernel} tokens in {raw.get('conv_groups', 1)} groups",
            hint=f"this family is known with an odd number up to {WIDEST} and one group",
        )
    parts, normed = parts_of(raw, "pos_att_type"), parts_of(raw, "norm_rel_ebd")
    for part in parts:
        if part not in PARTS:
            raise ConversionError(f"pos_att_type has {part!r:.40}", hint=f"known are {', '.join(PARTS)}")
    relative = bool(raw.get("relative_attention", False))
    sizes = {
        "layers": layers_of(raw),
        "width": width,
        "inner": need(raw, "intermediate_size"),
        "heads": need(raw, "num_attention_heads"),
        "context": context,
        "offset": 0,
        "token_types": given_or_none(raw, "type_vocab_size"),
        "positioned": bool(raw.get("position_biased_input", True)),
        "parts": parts,
        "relative": relative,
        "buckets": given_or_none(raw, "position_buckets"),
        "farthest": given_or_none(raw, "max_relative_positions") or context,
        "shared": bool(raw.get("share_att_key", False)),
        "normed": "layer_norm" in normed,
        "kernel": kernel,
        "kernel_activation": function_of(raw, "conv_act", "tanh") if kernel else "tanh",
    }
    if 0 < sizes["buckets"] < 4 or sizes["buckets"] >= 2 * (sizes["farthest"] - 1):
        raise ConversionError(
            f"config.json makes {sizes['buckets']} buckets of {sizes['farthest']} distances",
            hint="config.json contradicts itself",
        )
    epsilon = need(raw, "layer_norm_eps", float) if "layer_norm_eps" in raw else 1e-7
    return encoder_config.read(
        raw, sizes, NAMES, head_of(raw), activation="hidden_act", epsilon=epsilon, kind=Config
    )


def given_or_none(raw: Mapping[str, Any], key: str) -> int:
    """A number of config.json, 0 where it has none or one below 1, which both mean that there is no such part."""
    value = raw.get(key)
    return need(raw, key) if isinstance(value, int) and value > 0 else 0


def parts_of(raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of words, or words between bars. Raises ConversionError for anything else."""
    said = raw.get(key) or []
    words = said.lower().split("|") if isinstance(said, str) else said
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConversionError(f"{key} is {said!r:.60}", hint="it is a list of words")
    return tuple(word.strip() for word in words)


def head_of(raw: Mapping[str, Any]) -> Head:
    """Raises ConversionError for a pooler of another activation than gelu or tanh."""
    if task_of(raw) != "classification":
        return Head(output="classifier", activation=None) if task_of(raw) == "tokens" else Head()
    function = function_of(raw, "pooler_hidden_act", "gelu")
    return Head(dense="pooler.dense", output="classifier", activation=function)


def function_of(raw: Mapping[str, Any], key: str, usual: str) -> str:
    """The operation that is an activation's name in config.json. Raises ConversionError for an unknown one."""
    said = raw.get(key, usual)
    functions = {**ACTIVATIONS, "tanh": "tanh", "relu": "relu"}
    if not isinstance(said, str) or said not in functions:
        raise ConversionError(f"{key} is {said!r:.60}", hint=f"known are {', '.join(functions)}")
    return functions[said]


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor of the file."""
    table, width = [*encoder.weights(config)], config.width
    if config.kernel:
        layer, norm = CONVOLUTION
        table.append(Weight(f"{layer}.weight", "", (width, width, config.kernel)))
        vectors = (f"{layer}.bias", f"{norm}.weight", f"{norm}.bias")
        table += [Weight(name, "", (width,)) for name in vectors]
    if not config.relative:
        return tuple(table)
    table.append(Weight(ROWS, "", (2 * config.span, width)))
    if config.normed:
        table += [Weight(f"{ROWS_NORM}.{kind}", "", (width,)) for kind in ("weight", "bias")]
    if not config.shared:
        for block in config.blocks:
            for part in config.parts:
                table.append(Weight(f"{block}.{projection(config, part)}.weight", "", (width, width)))
                table.append(Weight(f"{block}.{projection(config, part)}.bias", "", (width,)))
    return tuple(table)


def projection(config: Config, part: str) -> str:
    """The layer that projects the distances which contents look at (c2p), or which look at contents."""
    if config.shared:
        return NAMES.key if part == "c2p" else NAMES.query
    return "attention.self.pos_key_proj" if part == "c2p" else "attention.self.pos_query_proj"


def forward(
    ops: Any, weight: Callable[[str], Any], config: Config, ids: Any, token_types: Any | None = None
) -> tuple[Any, Any]:
    """(hidden states, logits or None) as `encoder.forward` gives them."""
    scale = 1 / math.sqrt(config.width // config.heads * (1 + len(set(config.parts))))

    def convolved(x: Any, embedded: Any) -> Any:
        if not config.kernel:
            return x
        layer, norm = ((weight(f"{name}.weight"), weight(f"{name}.bias")) for name in CONVOLUTION)
        seen = getattr(ops, config.kernel_activation)(ops.convolution(embedded, *layer))
        return ops.layer_norm(x + seen, *norm, config.epsilon)

    if not config.relative:
        return encoder.forward(ops, weight, config, ids, token_types, scale=scale, after_first=convolved)
    rows, index = weight(ROWS), ops.distances(ids, row_of_distance(config))
    if config.normed:
        norm = weight(f"{ROWS_NORM}.weight"), weight(f"{ROWS_NORM}.bias")
        rows = ops.layer_norm(rows, *norm, config.epsilon)

    def bias(name: str, query: Any, key: Any) -> Any:
        added = None
        for part in sorted(set(config.parts)):
            layer = f"{name}.{projection(config, part)}"
            places = ops.linear(rows, weight(f"{layer}.weight"), weight(f"{layer}.bias"))
            looking, keys = (query, False) if part == "c2p" else (key, True)
            scores = ops.relative_scores(looking, ops.split_heads(places, config.heads), index, of_keys=keys)
            added = scores if added is None else added + scores
        return None if added is None else added * scale

    return encoder.forward(
        ops, weight, config, ids, token_types, bias=bias, scale=scale, after_first=convolved
    )


def row_of_distance(config: Config) -> Array:
    """The row of each distance i − j from 1 − context to context − 1, int64.

    Near ones have a row each, farther ones share one by their logarithm (float32, as transformers computes it).
    """
    distances = np.arange(1 - config.context, config.context)
    if config.buckets:
        middle = config.buckets // 2
        far = np.maximum(np.abs(distances), middle).astype(np.float32)
        whole = np.log(np.float32((config.farthest - 1) / middle))
        logs = np.ceil(np.log(far / np.float32(middle)) / whole * np.float32(middle - 1)) + middle
        distances = np.where(
            np.abs(distances) <= middle, distances, np.sign(distances) * logs.astype(np.int64)
        )
    return np.asarray(np.clip(distances + config.span, 0, 2 * config.span - 1))
