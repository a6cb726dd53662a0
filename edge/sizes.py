"""Bytes as people write them."""

from __future__ import annotations

import re

from edge.errors import RequestError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_size(text: float | str) -> int:
    """Bytes from a number or a text such as "512MiB", "2G" or "1.5 GB". Raises RequestError for anything else."""
    if isinstance(text, int | float):
        text = f"{text:.0f}"
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]I?)?B?\s*", text.upper())
    if not match or not 0 < float(match[1]) < 10**18:
        raise RequestError(f"{text!r} is not a size", hint='write it like "512MiB" or "2GB"')
    return int(float(match[1]) * UNITS[match[2] or ""])


def mib(count: int) -> str:
    """Whole MiB."""
    return f"{count / 2**20:,.0f} MiB"
