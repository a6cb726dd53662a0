"""Reading a config.json that nobody vouches for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.errors import ConversionError

MOST: dict[type[int | float], float] = {int: (1 << 31) - 1, float: 3.4e38}  # llama.cpp's ints, GGUF's f32
MOST_LAYERS = 512  # llama.cpp, LLAMA_MAX_LAYERS: it ends the process at more


def need(
    raw: Mapping[str, Any], key: str, kind: type[int | float] = int, *, most: float | None = None
) -> Any:
    """A number of the kind above 0. Raises ConversionError where it is missing, something else or beyond `most`."""
    value, most = raw.get(key), MOST[kind] if most is None else most
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise ConversionError(
            f"config.json has no usable {key} ({value!r:.60})", hint="the checkpoint is incomplete"
        )
    if not 0 < value <= most:
        raise ConversionError(
            f"config.json says {key} is {value}", hint=f"it has to be above 0 and at most {most:g}"
        )
    return kind(value)


def layers_of(raw: Mapping[str, Any], key: str = "num_hidden_layers") -> int:
    """How many layers. Raises ConversionError for more than llama.cpp has."""
    return int(need(raw, key, most=MOST_LAYERS))


def given(raw: Mapping[str, Any], key: str, default: int) -> int:
    """`need` where config.json has the key, `default` where it does not or has null."""
    return default if raw.get(key) is None else int(need(raw, key))


def grouped_heads(raw: Mapping[str, Any]) -> tuple[int, int]:
    """Query heads and key-value heads. Raises ConversionError where one does not divide the other."""
    heads = need(raw, "num_attention_heads")
    kv_heads = given(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ConversionError(
            f"config.json has {heads} attention heads and {kv_heads} key-value heads",
            hint="each key-value head has to serve the same number of heads",
        )
    return heads, kv_heads


def head_size_of(raw: Mapping[str, Any], usual: int) -> int:
    """Elements of a head, `usual` unless config.json says it. Raises ConversionError where they are no pairs."""
    size = given(raw, "head_dim", usual)
    if size < 2 or size % 2:
        raise ConversionError(
            f"config.json makes heads of {size} elements", hint="pairs of elements rotate, one at least"
        )
    return size


def rope_of(raw: Mapping[str, Any]) -> tuple[Mapping[str, Any], str, float]:
    """The keys that describe the rotations' stretching, its kind (`default` is none) and the rotations' base.

    Since version 5 transformers writes all under rope_parameters. Raises ConversionError for what is unusable.
    """
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ConversionError(
            f"config.json's rope scaling is {rope!r:.60}", hint="the checkpoint is incomplete"
        )
    base = need(
        {"rope_theta": rope.get("rope_theta") or raw.get("rope_theta") or 10000.0}, "rope_theta", float
    )
    return rope, str(rope.get("rope_type") or rope.get("type") or "default"), float(base)
