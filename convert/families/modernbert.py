"""ModernBERT: norms before, rotary positions, gated GELU, attention to neighbours in most layers.

Source: Warner et al., 2024, arXiv:2412.13663. ONNX only, although llama.cpp
computes such models as have no biases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edge.errors import ConversionError

from . import encoder_config
from .config import given, head_size_of, layers_of, need
from .encoder import plain_notes as notes
from .encoder_config import ACTIVATIONS, Head, Names, task_of
from .rope import Rope
from .weight import Weight

__all__ = ["forward", "notes", "read_config", "rename", "weights"]

NAMES = Names(
    layer="layers.{}",
    query="attn.Wqkv",
    key="attn.Wqkv",
    value="attn.Wqkv",
    attention_output="attn.Wo",
    attention_norm="attn_norm",
    up="mlp.Wi",
    down="mlp.Wo",
    output_norm="mlp_norm",
)
KINDS = ("full_attention", "sliding_attention")
# The head of pretraining, and what a classifier beside the model has
IGNORED = (r"decoder\..*", r"(head|classifier)\..*")


@dataclass(frozen=True)
class Config(encoder_config.Config):
    """`windows` has one a layer: a token sees itself and window − 1 tokens on both sides; `bases` the rotations'."""

    windows: tuple[int | None, ...] = ()
    bases: tuple[float, ...] = ()
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    head_bias: bool = False


def rename(name: str) -> str:
    """The table's name for a checkpoint's."""
    return name.removeprefix("model.")


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    layers, task = layers_of(raw), task_of(raw)
    kinds = kinds_of(raw, layers)
    bases = {kind: base_of(raw, kind) for kind in KINDS}
    window = given(raw, "local_attention", 128) // 2 + 1
    pooling = raw.get("classifier_pooling", "cls")
    if task == "classification" and pooling not in ("cls", "mean"):
        raise ConversionError(f"classifier_pooling is {pooling!r:.40}", hint="known are cls and mean")
    function = raw.get("classifier_activation", "gelu")
    if task != "embedding" and (not isinstance(function, str) or function not in ACTIVATIONS):
        raise ConversionError(
            f"classifier_activation is {function!r:.60}", hint="this family is known with gelu only"
        )
    sizes = {
        "layers": layers,
        "width": need(raw, "hidden_size"),
        "inner": need(raw, "intermediate_size"),
        "heads": need(raw, "num_attention_heads"),
        "context": need(raw, "max_position_embeddings"),
        "offset": 0,
        "token_types": 0,
        "positioned": False,
        "windows": tuple(window if kind == "sliding_attention" else None for kind in kinds),
        "bases": tuple(bases[kind] for kind in kinds),
        "attention_bias": bool(raw.get("attention_bias", False)),
        "mlp_bias": bool(raw.get("mlp_bias", False)),
        "norm_bias": bool(raw.get("norm_bias", False)),
        "head_bias": bool(raw.get("classifier_bias", False)),
    }
    head_size_of({}, sizes["width"] // sizes["heads"])
    epsilon = need(raw, "norm_eps", float) if "norm_eps" in raw else 1e-5
    head = Head() if task == "embedding" else Head("head.dense", "classifier", ACTIVATIONS[function])
    config = encoder_config.read(
        raw, sizes, NAMES, head, activation="hidden_activation", epsilon=epsilon, kind=Config
    )
    return replace(config, pooling=pooling) if task == "classification" else config


def kinds_of(raw: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    """What each layer attends to, one of KINDS. Raises ConversionError for a list that does not fit."""
    listed = raw.get("layer_types")
    if listed is None:
        every = given(raw, "global_attn_every_n_layers", 3)
        return tuple(KINDS[bool(layer % every)] for layer in range(layers))
    if not isinstance(listed, list) or len(listed) != layers or any(kind not in KINDS for kind in listed):
        raise ConversionError(
            f"config.json's layer_types are no list of {layers}", hint=f"known are {', '.join(KINDS)}"
        )
    return tuple(listed)


def base_of(raw: Mapping[str, Any], kind: str) -> float:
    """The base of the rotations in such layers. Raises ConversionError where they are stretched."""
    key, usual = (
        ("global_rope_theta", 160000.0) if kind == "full_attention" else ("local_rope_theta", 10000.0)
    )
    kinds = raw.get("rope_parameters") or {}
    said = (kinds.get(kind) or {}) if isinstance(kinds, Mapping) else None
    if not isinstance(said, Mapping):
        raise ConversionError(
            f"config.json's rope_parameters are {kinds!r:.60}", hint="the checkpoint is incomplete"
        )
    if raw.get("rope_scaling") or said.get("rope_type", "default") != "default":
        raise ConversionError(
            "config.json stretches the rotary positions", hint="this family is known without rope scaling"
        )
    base = said.get("rope_theta") or raw.get(key) or usual
    return float(need({key: base}, key, float))


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor of the file, in the order of the pass."""
    width, inner = config.width, config.inner
    table = [Weight("embeddings.tok_embeddings.weight", "", (config.vocabulary, width))]

    def layer(name: str, rows: int, columns: int | None, *, bias: bool) -> None:
        table.append(Weight(f"{name}.weight", "", (rows, columns) if columns else (rows,)))
        if bias:
            table.append(Weight(f"{name}.bias", "", (rows,)))

    layer("embeddings.norm", width, None, bias=config.norm_bias)
    for index, block in enumerate(config.blocks):
        if index:  # the first layer reads what the embeddings' norm gives
            layer(f"{block}.attn_norm", width, None, bias=config.norm_bias)
        layer(f"{block}.attn.Wqkv", 3 * width, width, bias=config.attention_bias)
        layer(f"{block}.attn.Wo", width, width, bias=config.attention_bias)
        layer(f"{block}.mlp_norm", width, None, bias=config.norm_bias)
        layer(f"{block}.mlp.Wi", 2 * inner, width, bias=config.mlp_bias)
        layer(f"{block}.mlp.Wo", width, inner, bias=config.mlp_bias)
    layer("final_norm", width, None, bias=config.norm_bias)
    if config.head.output:
        layer("head.dense", width, width, bias=config.head_bias)
        layer("head.norm", width, None, bias=config.norm_bias)
        layer("classifier", len(config.labels), width, bias=True)
    return tuple(table)


def forward(
    ops: Any, weight: Callable[[str], Any], config: Config, ids: Any, token_types: Any | None = None
) -> tuple[Any, Any]:
    """(hidden states, logits or None) as `encoder.forward` gives them; there are no token types."""

    def project(x: Any, name: str, *, bias: bool) -> Any:
        return ops.linear(x, weight(f"{name}.weight"), weight(f"{name}.bias") if bias else None)

    def norm(x: Any, name: str) -> Any:
        bias = weight(f"{name}.bias") if config.norm_bias else None
        return ops.layer_norm(x, weight(f"{name}.weight"), bias, config.epsilon)

    size, width, activation = config.width // config.heads, config.width, getattr(ops, config.activation)
    x = norm(ops.embed(weight("embeddings.tok_embeddings.weight"), ids), "embeddings.norm")
    for index, name in enumerate(config.blocks):
        frequencies = Rope(config.bases[index]).frequencies(size)
        normed = norm(x, f"{name}.attn_norm") if index else x
        joined = project(normed, f"{name}.attn.Wqkv", bias=config.attention_bias)
        query, key, value = (
            ops.split_heads(part, config.heads) for part in ops.split(joined, (width, width, width))
        )
        query, key = ops.rope(query, frequencies), ops.rope(key, frequencies)
        seen = ops.attention(query, key, value, window=config.windows[index], causal=False)
        x = x + project(ops.join_heads(seen), f"{name}.attn.Wo", bias=config.attention_bias)
        wide = project(norm(x, f"{name}.mlp_norm"), f"{name}.mlp.Wi", bias=config.mlp_bias)
        inner, gate = ops.split(wide, (config.inner, config.inner))
        x = x + project(activation(inner) * gate, f"{name}.mlp.Wo", bias=config.mlp_bias)
    x = norm(x, "final_norm")
    if not config.head.output:
        return x, None
    top = x if config.task == "tokens" else ops.mean(x) if config.pooling == "mean" else ops.first(x)
    dense = getattr(ops, config.head.activation or "gelu")(project(top, "head.dense", bias=config.head_bias))
    return x, project(norm(dense, "head.norm"), "classifier", bias=True)
