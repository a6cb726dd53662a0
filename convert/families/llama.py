"""Llama and what shares its shape: Llama 1 to 3, Code Llama, TinyLlama, SmolLM2, Mistral.

Sources: the models' config.json as transformers documents it; Touvron et al., 2023, arXiv:2307.09288; for the
key names the GGUF specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.errors import ConversionError

from .weight import Array, Weight, rope_rows

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
GGUF_ARCHITECTURE = "llama"


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's stretching of the slow rotations (its model card's reference code)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class Config:
    """What the tensors' shapes and the pass depend on; sizes in elements, context in tokens."""

    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    epsilon: float
    rope_base: float
    rope_linear: float
    rope_llama3: Llama3Rope | None
    window: int | None
    tied: bool
    attention_bias: bool
    mlp_bias: bool


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""

    def need(key: str, kind: type[int | float] = int) -> Any:
        value = raw.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise ConversionError(
                f"config.json has no usable {key} ({value!r})", hint="the checkpoint is incomplete"
            )
        if not value > 0:
            raise ConversionError(f"config.json says {key} is {value}", hint="it has to be above 0")
        return value

    if raw.get("hidden_act", "silu") != "silu":
        raise ConversionError(
            f"hidden_act is {raw['hidden_act']!r}", hint="this family is known with silu only"
        )
    heads, width = need("num_attention_heads"), need("hidden_size")
    base, linear, llama3 = read_rope(raw)
    return Config(
        layers=need("num_hidden_layers"),
        width=width,
        inner=need("intermediate_size"),
        heads=heads,
        kv_heads=raw.get("num_key_value_heads") or heads,
        head_size=raw.get("head_dim") or width // heads,
        vocabulary=need("vocab_size"),
        context=need("max_position_embeddings"),
        epsilon=need("rms_norm_eps", float),
        rope_base=base,
        rope_linear=linear,
        rope_llama3=llama3,
        window=raw.get("sliding_window") or None,
        tied=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
    )


def read_rope(raw: Mapping[str, Any]) -> tuple[float, float, Llama3Rope | None]:
    """Base, linear factor and Llama 3 stretching. Since version 5 transformers writes all under rope_parameters."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    base = float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return base, 1.0, None
    if kind == "linear":
        return base, float(rope["factor"]), None
    if kind == "llama3":
        stretch = Llama3Rope(
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
        return base, 1.0, stretch
    raise ConversionError(f"rope scaling {kind!r} is not known for this family", hint="known: linear, llama3")


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor, in the order of the pass."""
    width, inner, kv_width = config.width, config.inner, config.kv_heads * config.head_size
    q_width = config.heads * config.head_size
    table = [Weight("model.embed_tokens.weight", "token_embd.weight", (config.vocabulary, width))]

    def project(
        source: str, target: str, rows: int, columns: int, *, bias: bool, heads: int | None = None
    ) -> None:
        layout = rope_rows(heads) if heads else None
        table.append(Weight(f"{source}.weight", f"{target}.weight", (rows, columns), layout))
        if bias:
            table.append(Weight(f"{source}.bias", f"{target}.bias", (rows,), layout))

    for layer in range(config.layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        table.append(Weight(f"{theirs}.input_layernorm.weight", f"{ours}.attn_norm.weight", (width,)))
        biased = config.attention_bias
        project(f"{attention}.q_proj", f"{ours}.attn_q", q_width, width, bias=biased, heads=config.heads)
        project(f"{attention}.k_proj", f"{ours}.attn_k", kv_width, width, bias=biased, heads=config.kv_heads)
        project(f"{attention}.v_proj", f"{ours}.attn_v", kv_width, width, bias=biased)
        project(f"{attention}.o_proj", f"{ours}.attn_output", width, q_width, bias=biased)
        table.append(Weight(f"{theirs}.post_attention_layernorm.weight", f"{ours}.ffn_norm.weight", (width,)))
        project(f"{mlp}.gate_proj", f"{ours}.ffn_gate", inner, width, bias=config.mlp_bias)
        project(f"{mlp}.up_proj", f"{ours}.ffn_up", inner, width, bias=config.mlp_bias)
        project(f"{mlp}.down_proj", f"{ours}.ffn_down", width, inner, bias=config.mlp_bias)
    table.append(Weight("model.norm.weight", "output_norm.weight", (width,)))
    if not config.tied:
        table.append(Weight("lm_head.weight", "output.weight", (config.vocabulary, width)))
    return tuple(table)


def metadata(config: Config) -> dict[str, int | float | str]:
    """The architecture's GGUF keys, without their `llama.` prefix."""
    fields: dict[str, int | float | str] = {
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.inner,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": config.epsilon,
        "rope.dimension_count": config.head_size,
        "rope.freq_base": config.rope_base,
        "vocab_size": config.vocabulary,
    }
    if config.rope_linear != 1:
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_linear}
    return fields


def extra_tensors(config: Config) -> dict[str, Array]:
    """Tensors that GGUF wants and no checkpoint has: Llama 3's divisors of the rotation frequencies, f32."""
    if config.rope_llama3 is None:
        return {}
    return {"rope_freqs.weight": llama3_divisors(config, config.rope_llama3).astype(np.float32)}


def llama3_divisors(config: Config, stretch: Llama3Rope) -> Array:
    """1 for fast rotations, `factor` for slow ones, a smooth way in between: (head size / 2,)."""
    wavelengths = 2 * math.pi / base_frequencies(config)
    smooth = (stretch.original_context / wavelengths - stretch.low_freq_factor) / (
        stretch.high_freq_factor - stretch.low_freq_factor
    )
    smooth = np.clip(smooth, 0, 1)
    return np.asarray(1 / ((1 - smooth) / stretch.factor + smooth))


def base_frequencies(config: Config) -> Array:
    """Radians a position, one a pair of a head's elements, float64: (head size / 2,)."""
    return np.asarray(config.rope_base ** -(np.arange(0, config.head_size, 2) / config.head_size))


def forward(ops: Any, weight: Callable[[str], Any], config: Config, ids: Any) -> tuple[Any, Any]:
    """(hidden states after the last norm, logits), both (tokens, …), from ids (tokens,).

    `weight` gives a tensor by its name in the checkpoint; `ops` is `numpy_ops` or a module like it.
    """
    frequencies = base_frequencies(config) / config.rope_linear
    if config.rope_llama3:
        frequencies = frequencies / llama3_divisors(config, config.rope_llama3)

    def project(x: Any, name: str, *, bias: bool) -> Any:
        return ops.linear(x, weight(f"{name}.weight"), weight(f"{name}.bias") if bias else None)

    x = ops.embed(weight("model.embed_tokens.weight"), ids)
    for layer in range(config.layers):
        name = f"model.layers.{layer}"
        attention, mlp, biased = f"{name}.self_attn", f"{name}.mlp", config.attention_bias
        normed = ops.rms_norm(x, weight(f"{name}.input_layernorm.weight"), config.epsilon)
        query = ops.split_heads(project(normed, f"{attention}.q_proj", bias=biased), config.heads)
        key = ops.split_heads(project(normed, f"{attention}.k_proj", bias=biased), config.kv_heads)
        value = ops.split_heads(project(normed, f"{attention}.v_proj", bias=biased), config.kv_heads)
        seen = ops.attention(
            ops.rope(query, frequencies), ops.rope(key, frequencies), value, window=config.window
        )
        x = x + project(ops.join_heads(seen), f"{attention}.o_proj", bias=biased)
        normed = ops.rms_norm(x, weight(f"{name}.post_attention_layernorm.weight"), config.epsilon)
        gate = ops.silu(project(normed, f"{mlp}.gate_proj", bias=config.mlp_bias))
        inner = gate * project(normed, f"{mlp}.up_proj", bias=config.mlp_bias)
        x = x + project(inner, f"{mlp}.down_proj", bias=config.mlp_bias)
    hidden = ops.rms_norm(x, weight("model.norm.weight"), config.epsilon)
    output = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    return hidden, ops.linear(hidden, weight(output))
