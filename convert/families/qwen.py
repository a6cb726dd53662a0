"""Qwen2, Qwen2.5 and Qwen3, the dense ones.

Sources: the models' config.json as transformers documents it; Qwen team, 2024, arXiv:2407.10671 and 2412.15115,
2025, arXiv:2505.09388; for the key names the GGUF specification.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge.errors import ConversionError
from edge.gguf_header import Header

from .config import grouped_heads, head_size_of, layers_of, need, rope_of
from .from_header import Read, number, rope_fields, same_in_all_layers, shapes, vocabulary, without
from .rope import Rope, read_rope
from .weight import Array, Weight
from .yarn import Yarn, read_yarn, yarn_fields, yarn_metadata


@dataclass(frozen=True)
class Config:
    """What the tensors' shapes and the pass depend on; sizes in elements, context and windows in tokens.

    `windows` has one a layer. `chunk` is there where the model attends in chunks beyond it (the 1M models).
    """

    gguf_architecture: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    epsilon: float
    rope: Rope | Yarn
    windows: tuple[int | None, ...]
    chunk: int | None
    tied: bool

    @property
    def normed_heads(self) -> bool:
        """Qwen3 norms each query and key head where Qwen2 has biases."""
        return self.gguf_architecture == "qwen3"

    @property
    def reach(self) -> int:
        """Tokens up to which the file computes what the checkpoint does: GGUF's Qwen has neither windows nor chunks."""
        return min(
            self.context, self.chunk or self.context, *(window or self.context for window in self.windows)
        )


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    architecture = "qwen3" if "Qwen3ForCausalLM" in raw.get("architectures", ()) else "qwen2"
    if raw.get("hidden_act", "silu") != "silu":
        raise ConversionError(
            f"hidden_act is {raw['hidden_act']!r}", hint="this family is known with silu only"
        )
    if architecture == "qwen3" and raw.get("attention_bias"):
        raise ConversionError("attention_bias is true", hint="llama.cpp's qwen3 has no place for all of them")
    (heads, kv_heads), width, layers = grouped_heads(raw), need(raw, "hidden_size"), layers_of(raw)
    # transformers' Qwen3 has heads of 128 unless told, Qwen2's divide the model
    usual = 128 if architecture == "qwen3" and "head_dim" not in raw else width // heads
    head_size = head_size_of(raw, usual)
    if architecture == "qwen2" and heads * head_size != width:
        raise ConversionError(
            f"{heads} heads of {head_size} are not as wide as the model, {width}",
            hint="llama.cpp's qwen2 has no other",
        )
    rope = read_yarn(raw) if rope_of(raw)[1] == "yarn" else read_rope(raw)
    if isinstance(rope, Rope) and rope.llama3:
        raise ConversionError(
            "rope scaling 'llama3' is not known for this family", hint="known: linear, yarn"
        )
    context = need(raw, "max_position_embeddings")
    if isinstance(rope, Yarn):  # Qwen's model cards add the scaling and leave max_position_embeddings
        context = max(context, round(rope.factor * rope.original_context))
    return Config(
        gguf_architecture=architecture,
        layers=layers,
        width=width,
        inner=need(raw, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocabulary=need(raw, "vocab_size"),
        context=context,
        epsilon=need(raw, "rms_norm_eps", float),
        rope=rope,
        windows=read_windows(raw, layers),
        chunk=read_chunk(raw),
        tied=bool(raw.get("tie_word_embeddings", False)),
    )


def read_windows(raw: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Each layer's attention window: from max_window_layers on, unless layer_types says it outright."""
    if not raw.get("use_sliding_window") or raw.get("sliding_window") is None:
        return (None,) * layers
    window, first, kinds = (
        need(raw, "sliding_window"),
        raw.get("max_window_layers", 28),
        raw.get("layer_types"),
    )
    if kinds is None and isinstance(first, int):
        return tuple(window if layer >= first else None for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ConversionError(
            f"config.json does not say which of {layers} layers have a window",
            hint="it needs layer_types, one a layer, or a number as max_window_layers",
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def read_chunk(raw: Mapping[str, Any]) -> int | None:
    """Tokens in the first chunk of dual chunk attention, within which it is plain (An et al., 2024, 2402.17463)."""
    chunks = raw.get("dual_chunk_attention_config")
    if not chunks:
        return None
    if not isinstance(chunks, Mapping) or need(chunks, "chunk_size") <= need(chunks, "local_size"):
        raise ConversionError(f"config.json's dual_chunk_attention_config {chunks!r} is not possible")
    return int(chunks["chunk_size"] - chunks["local_size"])


def config_json(header: Header, read: Read) -> dict[str, Any]:
    """The config.json a GGUF file of this family stands for.

    Windows and chunks are not in the file, and do not come back. Raises ConversionError for what config.json cannot
    say (heads that differ between layers, other scalings), BadGGUF for keys that are missing.
    """
    without(header, {"{arch}.expert_count": 0, "{arch}.attention.sliding_window": 0})
    heads = same_in_all_layers(header, "{arch}.attention.head_count")
    width = header.get("{arch}.embedding_length", int)
    head_size = header.get("{arch}.attention.key_length", int, width // max(1, heads))
    without(header, {"{arch}.attention.value_length": head_size, "{arch}.rope.dimension_count": head_size})
    yarn = header.get("{arch}.rope.scaling.type", str, "none") == "yarn"
    if not yarn:
        without(header, {"{arch}.rope.scaling.attn_factor": 1.0})
    return {
        "architectures": ["Qwen3ForCausalLM" if header.architecture == "qwen3" else "Qwen2ForCausalLM"],
        "model_type": header.architecture,
        "hidden_size": width,
        "intermediate_size": same_in_all_layers(header, "{arch}.feed_forward_length"),
        "num_hidden_layers": header.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": same_in_all_layers(header, "{arch}.attention.head_count_kv", heads),
        "head_dim": head_size,
        "hidden_act": "silu",
        "max_position_embeddings": header.get("{arch}.context_length", int),
        "rms_norm_eps": number(header, "{arch}.attention.layer_norm_rms_epsilon"),
        "vocab_size": vocabulary(header),
        "tie_word_embeddings": "output.weight" not in shapes(header),
        "use_sliding_window": False,
        **(yarn_fields(header) if yarn else rope_fields(header, read, head_size)),
    }


def weights(config: Config) -> tuple[Weight, ...]:
    """Every tensor, in the order of the pass. GGUF's Qwen rotates halves as checkpoints do: no row moves."""
    width, inner, kv_width = config.width, config.inner, config.kv_heads * config.head_size
    q_width = config.heads * config.head_size
    table = [Weight("model.embed_tokens.weight", "token_embd.weight", (config.vocabulary, width))]

    def project(source: str, target: str, rows: int, columns: int, *, bias: bool = False) -> None:
        table.append(Weight(f"{source}.weight", f"{target}.weight", (rows, columns)))
        if bias:
            table.append(Weight(f"{source}.bias", f"{target}.bias", (rows,)))

    for layer in range(config.layers):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        attention, mlp, biased = f"{theirs}.self_attn", f"{theirs}.mlp", not config.normed_heads
        table.append(Weight(f"{theirs}.input_layernorm.weight", f"{ours}.attn_norm.weight", (width,)))
        project(f"{attention}.q_proj", f"{ours}.attn_q", q_width, width, bias=biased)
        project(f"{attention}.k_proj", f"{ours}.attn_k", kv_width, width, bias=biased)
        project(f"{attention}.v_proj", f"{ours}.attn_v", kv_width, width, bias=biased)
        if config.normed_heads:
            table.append(
                Weight(f"{attention}.q_norm.weight", f"{ours}.attn_q_norm.weight", (config.head_size,))
            )
            table.append(
                Weight(f"{attention}.k_norm.weight", f"{ours}.attn_k_norm.weight", (config.head_size,))
            )
        project(f"{attention}.o_proj", f"{ours}.attn_output", width, q_width)
        table.append(Weight(f"{theirs}.post_attention_layernorm.weight", f"{ours}.ffn_norm.weight", (width,)))
        project(f"{mlp}.gate_proj", f"{ours}.ffn_gate", inner, width)
        project(f"{mlp}.up_proj", f"{ours}.ffn_up", inner, width)
        project(f"{mlp}.down_proj", f"{ours}.ffn_down", width, inner)
    table.append(Weight("model.norm.weight", "output_norm.weight", (width,)))
    if not config.tied:
        table.append(Weight("lm_head.weight", "output.weight", (config.vocabulary, width)))
    return tuple(table)


def metadata(config: Config) -> dict[str, int | float | str]:
    """The architecture's GGUF keys, without their prefix."""
    fields: dict[str, int | float | str] = {
        "context_length": config.reach,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.inner,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": config.epsilon,
        "rope.dimension_count": config.head_size,
        "rope.freq_base": config.rope.base,
        "vocab_size": config.vocabulary,
    }
    if isinstance(config.rope, Yarn):
        fields |= yarn_metadata(config.rope)
    elif config.rope.linear != 1:
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope.linear}
    return fields


def notes(config: Config) -> tuple[str, ...]:
    """What a user should know of the file."""
    if config.reach == config.context:
        return ()
    return (
        f"the file's context is {config.reach} tokens, not {config.context}: beyond its attention window "
        "llama.cpp would compute full attention",
    )


def extra_tensors(config: Config) -> dict[str, Array]:
    """Tensors that GGUF wants and no checkpoint has: none."""
    return {}


def states(ops: Any, weight: Callable[[str], Any], config: Config, ids: Any) -> Any:
    """The hidden states after the last norm, (tokens, width), from ids (tokens,), as `forward` takes them."""
    frequencies = config.rope.frequencies(config.head_size)
    scale = config.rope.scale if isinstance(config.rope, Yarn) else 1.0

    def heads_of(x: Any, name: str, count: int) -> Any:
        bias = None if config.normed_heads else weight(f"{name}_proj.bias")
        return ops.split_heads(ops.linear(x, weight(f"{name}_proj.weight"), bias), count)

    def turned(x: Any, name: str, count: int) -> Any:
        heads = heads_of(x, name, count)
        if config.normed_heads:
            heads = ops.rms_norm(heads, weight(f"{name}_norm.weight"), config.epsilon)
        return ops.rope(heads, frequencies, scale)

    x = ops.embed(weight("model.embed_tokens.weight"), ids)
    for layer in range(config.layers):
        name = f"model.layers.{layer}"
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        normed = ops.rms_norm(x, weight(f"{name}.input_layernorm.weight"), config.epsilon)
        seen = ops.attention(
            turned(normed, f"{attention}.q", config.heads),
            turned(normed, f"{attention}.k", config.kv_heads),
            heads_of(normed, f"{attention}.v", config.kv_heads),
            window=config.windows[layer],
        )
        x = x + ops.linear(ops.join_heads(seen), weight(f"{attention}.o_proj.weight"))
        normed = ops.rms_norm(x, weight(f"{name}.post_attention_layernorm.weight"), config.epsilon)
        gate = ops.silu(ops.linear(normed, weight(f"{mlp}.gate_proj.weight")))
        inner = gate * ops.linear(normed, weight(f"{mlp}.up_proj.weight"))
        x = x + ops.linear(inner, weight(f"{mlp}.down_proj.weight"))
    return ops.rms_norm(x, weight("model.norm.weight"), config.epsilon)


def forward(ops: Any, weight: Callable[[str], Any], config: Config, ids: Any) -> tuple[Any, Any]:
    """(hidden states after the last norm, logits), both (tokens, …), from ids (tokens,).

    `weight` gives a tensor by its name in the checkpoint; `ops` is `numpy_ops` or a module like it.
    """
    hidden = states(ops, weight, config, ids)
    output = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    return hidden, ops.linear(hidden, weight(output))
