"""Sampling settings by their chat-completions names, as rows of a batch and requests of a server give them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from edge.engine.sampling import Sampling
from edge.errors import RequestError

NUMBERS = frozenset({
    "temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty", "presence_penalty",
    "dry_multiplier", "dry_base", "xtc_probability", "xtc_threshold", "mirostat_tau", "mirostat_eta",
})  # fmt: skip
WHOLES = frozenset({
    "max_tokens", "top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "seed",
})  # fmt: skip
KNOWN = NUMBERS | WHOLES | {"stop", "logprobs", "top_logprobs", "logit_bias", "ignore_eos", "grammar"}


def sampling_from(fields: Mapping[str, object], base: Sampling) -> Sampling:
    """`base` with the settings of `fields`, whose names and forms are chat completions' and llama-server's.

    null leaves a setting as it is. `stop` is a text or a list of texts; `logprobs` true or false with
    `top_logprobs`, as in chat completions, or how many likeliest, as in completions; the keys of `logit_bias`
    are token ids as JSON writes them, its values numbers or false, which bans.
    Raises RequestError naming the field for an unknown name, a wrong type or a value out of range.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    settings: dict[str, Any] = {}
    for name, value in given.items():
        if name not in KNOWN:
            raise RequestError(f"no sampling setting is called {name!r:.60}", hint=nearest(name))
        if name in NUMBERS:
            settings[name] = number(name, value)
        elif name in WHOLES:
            settings[name] = whole(name, value)
    if "stop" in given:
        settings["stop"] = texts("stop", given["stop"])
    if "logit_bias" in given:
        settings["logit_bias"] = biases(given["logit_bias"])
    for name, kind, called in (("ignore_eos", bool, "true or false"), ("grammar", str, "a text")):
        if name in given:
            settings[name] = (
                given[name] if isinstance(given[name], kind) else wrong(name, given[name], called)
            )
    if "logprobs" in given or "top_logprobs" in given:
        settings["logprobs"] = likeliest(given)
    return replace(base, **settings)


def number(name: str, value: object) -> float:
    """A JSON number. Raises RequestError for another type."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        wrong(name, value, "a number")
    return value


def whole(name: str, value: object) -> int:
    """A whole JSON number, 3.0 too. Raises RequestError for another type."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        wrong(name, value, "a whole number")
    return value


def texts(name: str, value: object) -> tuple[str, ...]:
    """One text or a list of them. Raises RequestError for another type."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        wrong(name, value, "a text or a list of texts")
    return tuple(value)


def biases(value: object) -> dict[int, float]:
    """Token ids to biases. Raises RequestError for another type."""
    if not isinstance(value, Mapping):
        wrong("logit_bias", value, "an object of token ids and numbers")
    found = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 12):
            wrong("a token id of logit_bias", key, "the digits of a token's number")
        found[int(key)] = -math.inf if bias is False else number(f"logit_bias of token {key}", bias)
    return found


def likeliest(given: Mapping[str, object]) -> int | None:
    """How many likeliest tokens to give, or None for no log-probabilities at all."""
    wanted = given.get("logprobs", False)
    if not isinstance(wanted, bool):
        if "top_logprobs" in given:
            wrong("logprobs", wanted, "true where top_logprobs stands")
        return whole("logprobs", wanted)
    count = whole("top_logprobs", given.get("top_logprobs", 0))
    if not wanted and "top_logprobs" in given and count:
        raise RequestError("top_logprobs is given without logprobs", hint="set logprobs to true")
    return count if wanted else None


def wrong(name: str, value: object, wanted: str) -> NoReturn:
    """Raise RequestError for a value that is not what the field takes."""
    shown = repr(value)
    raise RequestError(
        f"{name} is {shown if len(shown) <= 60 else type(value).__name__}", hint=f"give {wanted}"
    )


def nearest(name: str) -> str:
    """A hint: the known name that this one was to be, or all of them."""
    from difflib import get_close_matches

    found = get_close_matches(name, sorted(KNOWN), n=1)
    return f"did you mean {found[0]}?" if found else f"known are {', '.join(sorted(KNOWN))}"
