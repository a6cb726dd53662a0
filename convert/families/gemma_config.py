"""Gemma's configuration: out of config.json, and back into one out of a GGUF file's header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge.errors import ConversionError
from edge.gguf_header import Header

from .config import grouped_heads, head_size_of, layers_of, need
from .from_header import Read, number, rope_fields, same_in_all_layers, shapes, vocabulary, without
from .rope import Rope, read_rope

# What transformers takes where config.json is silent, as Gemma 3's of 4B and more are about most of it.
DEFAULTS: dict[str, Mapping[str, Any]] = {
    "Gemma2ForCausalLM": {
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "Gemma3ForCausalLM": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
}
PICTURES = "Gemma3ForConditionalGeneration"
# One layer in so many attends to everything, the others to a window.
PERIOD = {2: 2, 3: 6}
PATTERN_KEYS = ("sliding_window_pattern", "_sliding_window_pattern")
# The largest of each generation, told by its layers: llama.cpp divides its queries' scale by other numbers.
LARGEST = {2: 46, 3: 62}


@dataclass(frozen=True)
class Config:
    """What the tensors' shapes and the pass depend on; sizes in elements, context and window in tokens.

    Queries are divided by √query_scalar. `sliding` says of each layer whether its attention has the window; those
    that have it rotate by `local_rope`; a window of 0 is none at all. `prefix` begins the checkpoint's names.
    """

    generation: int
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    epsilon: float
    query_scalar: float
    rope: Rope
    local_rope: Rope
    window: int
    sliding: tuple[bool, ...]
    attention_cap: float | None
    final_cap: float | None
    tied: bool
    prefix: str = "model."

    def __post_init__(self) -> None:
        """Raise ConversionError where llama.cpp would divide queries by another number, also after pruning."""
        scalar = scalar_of(self.generation, self.layers, self.width, self.heads, self.head_size)
        if self.query_scalar != scalar:
            raise ConversionError(
                f"query_pre_attn_scalar is {self.query_scalar:g}, where llama.cpp's {self.gguf_architecture} of "
                f"{self.layers} layers takes {scalar}"
            )

    @property
    def gguf_architecture(self) -> str:
        return f"gemma{self.generation}"


def read_config(raw: Mapping[str, Any]) -> Config:
    """The configuration out of config.json. Raises ConversionError for what is missing or not supported."""
    architecture, prefix = raw["architectures"][0], "model."
    if architecture == PICTURES:
        inside = raw.get("text_config")
        if not isinstance(inside, Mapping):
            raise ConversionError("config.json has no text_config", hint="the checkpoint is incomplete")
        architecture, prefix = "Gemma3ForCausalLM", "language_model.model."
        raw = {"tie_word_embeddings": raw.get("tie_word_embeddings", True), **inside}
    raw = {**DEFAULTS[architecture], **raw}
    generation = 2 if architecture == "Gemma2ForCausalLM" else 3
    layers = layers_of(raw)
    sliding = sliding_layers(raw, layers, PERIOD[generation])
    rope, local_rope = ropes(raw, generation)
    heads, kv_heads = grouped_heads(raw)
    config = Config(
        generation=generation,
        layers=layers,
        width=need(raw, "hidden_size"),
        inner=need(raw, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size_of(raw, 256),
        vocabulary=need(raw, "vocab_size"),
        context=need(raw, "max_position_embeddings"),
        epsilon=need(raw, "rms_norm_eps", float),
        query_scalar=float(need(raw, "query_pre_attn_scalar", float)),
        rope=rope,
        local_rope=local_rope,
        window=need(raw, "sliding_window") if any(sliding) else 0,
        sliding=sliding,
        attention_cap=cap(raw, "attn_logit_softcapping"),
        final_cap=cap(raw, "final_logit_softcapping"),
        tied=bool(raw.get("tie_word_embeddings", True)),
        prefix=prefix,
    )
    check(raw, config)
    return config


def ropes(raw: Mapping[str, Any], generation: int) -> tuple[Rope, Rope]:
    """(of the layers that see everything, of those with a window)."""
    both = raw.get("rope_parameters")
    if isinstance(both, Mapping) and isinstance(both.get("full_attention"), Mapping):
        plain = {key: value for key, value in raw.items() if key not in ("rope_parameters", "rope_scaling")}
        wide = read_rope({**plain, "rope_parameters": both["full_attention"]})
        local = both.get("sliding_attention") or {"rope_theta": raw["rope_local_base_freq"]}
        return wide, read_rope({**plain, "rope_parameters": local})
    wide = read_rope(raw)
    return wide, wide if generation == 2 else Rope(float(need(raw, "rope_local_base_freq", float)))


def every_but(period: int, layers: int) -> tuple[bool, ...]:
    """A window in every layer but one of so many, the last of each group; 0: in every layer."""
    return tuple(period == 0 or (layer + 1) % period != 0 for layer in range(layers))


def sliding_layers(raw: Mapping[str, Any], layers: int, period: int) -> tuple[bool, ...]:
    """Which layers have a window: those listed, or all but one in so many."""
    kinds = raw.get("layer_types")
    if kinds is None:
        key = next((key for key in PATTERN_KEYS if raw.get(key) is not None), None)
        return every_but(need(raw, key) if key else period, layers)
    known = {"sliding_attention": True, "full_attention": False}
    if not isinstance(kinds, list) or len(kinds) != layers or not set(map(str, kinds)) <= set(known):
        raise ConversionError(
            f"config.json's layer_types is not a list of {layers} times sliding_attention or full_attention",
            hint="it has to say of each layer what it attends to",
        )
    return tuple(known[kind] for kind in kinds)


def cap(raw: Mapping[str, Any], key: str) -> float | None:
    return None if raw.get(key) is None else float(need(raw, key, float))


def scalar_of(generation: int, layers: int, width: int, heads: int, head_size: int) -> int:
    """What llama.cpp takes for query_pre_attn_scalar, which GGUF has no key for."""
    return width // heads if layers == LARGEST[generation] else head_size


def check(raw: Mapping[str, Any], config: Config) -> None:
    """Raise ConversionError for what llama.cpp would compute differently, naming it."""
    name = config.gguf_architecture
    activation = raw.get("hidden_activation") or "gelu_pytorch_tanh"
    refused = {
        f"hidden_activation is {activation!r}": activation != "gelu_pytorch_tanh",
        "attention_bias is true": bool(raw.get("attention_bias")),
        "use_bidirectional_attention is true": bool(raw.get("use_bidirectional_attention")),
        "the rope scaling is llama3": bool(config.rope.llama3 or config.local_rope.llama3),
        "layers with a window scale their rope in another way": (
            config.local_rope.linear != (config.rope.linear if config.generation == 2 else 1)
        ),
        f"attn_logit_softcapping is {config.attention_cap}": (
            (config.attention_cap is None) == (config.generation == 2)
        ),
        f"final_logit_softcapping is {config.final_cap}": config.generation == 2 and config.final_cap is None,
        "the output is not tied to the embedding": config.generation == 2 and not config.tied,
    }
    for what, wrong in refused.items():
        if wrong:
            raise ConversionError(f"{what}: llama.cpp's {name} computes something else")


def config_json(header: Header, read: Read) -> dict[str, Any]:
    """The config.json a GGUF file of this family stands for.

    Raises BadGGUF for keys that are missing, ConversionError for what config.json cannot say.
    """
    generation = int(header.architecture.removeprefix("gemma"))
    heads = same_in_all_layers(header, "{arch}.attention.head_count")
    width = header.get("{arch}.embedding_length", int)
    head_size = header.get("{arch}.attention.key_length", int, width // max(1, heads))
    window = header.get("{arch}.attention.sliding_window", int, 4096 if generation == 2 else 0)
    harmless: dict[str, Any] = {"attention.value_length": head_size, "rope.dimension_count": head_size}
    if generation == 2:
        harmless["rope.freq_base_swa"] = header.get("{arch}.rope.freq_base", float, 10000.0)
    without(header, {"{arch}." + key: value for key, value in harmless.items()})
    raw = {
        "architectures": [f"Gemma{generation}ForCausalLM"],
        "model_type": "gemma2" if generation == 2 else "gemma3_text",
        "hidden_size": width,
        "intermediate_size": same_in_all_layers(header, "{arch}.feed_forward_length"),
        "num_hidden_layers": header.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": same_in_all_layers(header, "{arch}.attention.head_count_kv", heads),
        "head_dim": head_size,
        "query_pre_attn_scalar": scalar_of(generation, header.layers, width, heads, head_size),
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": header.get("{arch}.context_length", int),
        "rms_norm_eps": number(header, "{arch}.attention.layer_norm_rms_epsilon"),
        "vocab_size": vocabulary(header),
        "tie_word_embeddings": "output.weight" not in shapes(header),
        "layer_types": [
            "sliding_attention" if slides else "full_attention"
            for slides in header_layers(header, generation, window)
        ],
        **rope_fields(header, read, head_size),
    }
    if window:
        raw["sliding_window"] = window
    final_cap = number(header, "{arch}.final_logit_softcapping", 30.0 if generation == 2 else 0.0)
    raw["final_logit_softcapping"] = final_cap or None
    if generation == 2:
        raw["attn_logit_softcapping"] = number(header, "{arch}.attn_logit_softcapping", 50.0)
    else:
        raw["rope_local_base_freq"] = number(header, "{arch}.rope.freq_base_swa", 10000.0)
    return raw


def header_layers(header: Header, generation: int, window: int) -> tuple[bool, ...]:
    """Which layers have the window, as llama.cpp reads a header: a list, a period, or its own pattern."""
    pattern = header.metadata.get(
        f"{header.architecture}.attention.sliding_window_pattern", PERIOD[generation]
    )
    if not window:
        return (False,) * header.layers
    if isinstance(pattern, tuple) and len(pattern) == header.layers:
        return tuple(bool(slides) for slides in pattern)
    if isinstance(pattern, int):
        return every_but(pattern, header.layers)
    raise ConversionError(
        f"{header.architecture}.attention.sliding_window_pattern does not say it of {header.layers} layers",
        hint="the file is damaged",
    )
