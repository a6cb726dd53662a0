"""Reading a config.json that nobody vouches for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.errors import ConversionError


def need(raw: Mapping[str, Any], key: str, kind: type[int | float] = int) -> Any:
    """A number above 0. Raises ConversionError where it is missing or is something else."""
    value = raw.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise ConversionError(
            f"config.json has no usable {key} ({value!r})", hint="the checkpoint is incomplete"
        )
    if not value > 0:
        raise ConversionError(f"config.json says {key} is {value}", hint="it has to be above 0")
    return value
