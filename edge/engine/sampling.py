"""How the next token is chosen: settings and their limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edge.engine.gbnf import check_grammar
from edge.errors import RequestError

SEEDS = 2**32 - 1  # the next number, LLAMA_DEFAULT_SEED in llama.h, means: draw one
WHOLE = 2**31 - 1  # llama.cpp's int32_t
LONGEST_WINDOW = 2**20  # a window takes its memory at once
LIKELIEST = 20  # the most that chat completions give beside the chosen token
BIAS = 100  # the ends of chat completions' range, which ban and force


@dataclass(frozen=True)
class Sampling:
    """Settings of one request; the defaults are llama.cpp's.

    temperature     0 picks the most likely token every time
    top_k           keep the k most likely tokens; 0 keeps all
    top_p           keep the smallest set whose probabilities sum to top_p; 1 keeps all
    min_p           drop tokens less likely than min_p times the likeliest; 0 drops none
    typical_p       keep the tokens nearest the expected surprise up to this sum (arXiv:2202.00666); 1 keeps all
    repeat_penalty  divide the logits of the last tokens, the prompt's among them, by this; 1 is off
    frequency_penalty, presence_penalty
                    take this from such a token's logit for each time it stands there, or once; 0 is off
    repeat_last_n   how many last tokens these three look at; 0 is off
    dry_multiplier  take dry_multiplier · dry_base^(n − dry_allowed_length) from the logit of a token that would
                    go on with a run of n tokens said before, within dry_penalty_last_n; 0 is off
    xtc_probability how often to drop all but the least likely of the tokens at or above xtc_threshold; 0 is off
    mirostat        1 or 2: steer the surprise to mirostat_tau bits at the rate mirostat_eta (arXiv:2007.14966)
                    instead of penalties and truncation, all of which llama.cpp then leaves out
    logit_bias      what to add to the logits of token ids, a mapping or pairs; −inf bans
    grammar         GBNF text whose rule `root` the answer has to match; empty: none
    seed            0 to 4,294,967,294; equal seeds give equal texts; None draws one
    max_tokens      the longest answer, in tokens; None means until the context is full
    stop            texts that end the answer; they are not part of it
    ignore_eos      never end the answer by its own end-of-turn token
    logprobs        0 to 20: log-probabilities of the chosen token and of so many likeliest; None: none

    Raises RequestError for a value outside its range and for a grammar that cannot be used.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()
    grammar: str = ""
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for field, (low, high) in RANGES.items():
            if (value := getattr(self, field)) is not None:
                within(field.replace("_", "-"), value, low, high)
        object.__setattr__(self, "logit_bias", pairs(self.logit_bias))
        check_stop(self.stop)
        if self.grammar:
            check_grammar(self.grammar)
            if self.ignore_eos:
                raise RequestError(
                    "ignore-eos and a grammar contradict each other",
                    hint="an answer of a grammar ends where the grammar does",
                )


# As llama.cpp and the chat-completions interface document them
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_k": (0, WHOLE),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "repeat_last_n": (0, LONGEST_WINDOW),
    "dry_multiplier": (0, 100),
    "dry_base": (1, 100),
    "dry_allowed_length": (0, WHOLE),
    "dry_penalty_last_n": (0, LONGEST_WINDOW),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "mirostat": (0, 2),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 1),
    "seed": (0, SEEDS - 1),
    "max_tokens": (1, WHOLE),
    "logprobs": (0, LIKELIEST),
}


def pairs(given: Mapping[int, float] | Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Biases as pairs in the order of their tokens. Raises RequestError for one that cannot be."""
    try:
        found = dict(given)
        whole = all(type(token) is int for token in found)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise RequestError(
            "logit-bias is not a mapping of token ids to numbers", hint="give {token id: bias}"
        )
    for token, bias in found.items():
        within("a token id of logit-bias", token, 0, WHOLE)
        if bias != -math.inf:
            within(f"the logit-bias of token {token}", bias, -BIAS, BIAS)
    return tuple(sorted((token, float(bias)) for token, bias in found.items()))


def check_stop(texts: tuple[str, ...]) -> None:
    """Raise RequestError for stop texts that are one text, or that no answer can hold."""
    if isinstance(texts, str):
        raise RequestError(
            "stop is one text", hint="give a tuple of texts: its letters would be taken singly"
        )
    for stop in texts:
        if not stop:
            raise RequestError("an empty stop text would end every answer at once", hint="leave it out")
        if any("\ud800" <= character <= "\udfff" for character in stop):
            raise RequestError(f"the stop text {stop!r} is not valid Unicode", hint="no answer can hold it")


def within(name: str, value: float, low: float, high: float) -> None:
    """Raise RequestError unless low ≤ value ≤ high; NaN is never within."""
    if not (low <= value <= high):
        raise RequestError(
            f"{name} is {written(value)}", hint=f"give a value from {written(low)} to {written(high)}"
        )


def written(value: float) -> str:
    """A number for people. One with hundreds of digits, which no float can hold, is not written out."""
    if isinstance(value, float):
        return "not a number" if math.isnan(value) else f"{value:g}"
    return str(value) if abs(value) < 10**18 else "far out of range"
