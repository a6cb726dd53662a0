"""What a choice is to be good at: `speed`, `quality` or `balanced`, within `memory=SIZE` and `ttft=SECONDS`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge.errors import RequestError
from edge.sizes import parse_size

SPEED, QUALITY, BALANCED = "speed", "quality", "balanced"
AIMS = (SPEED, QUALITY, BALANCED)
FORMS = "speed, quality, balanced, memory=SIZE or ttft=SECONDS"


@dataclass(frozen=True)
class Goal:
    """One aim, and bounds that hold beside it.

    aim     "balanced" where nothing is said; "quality" where only bounds are: the best there is within them
    memory  bytes that the whole process may take; None leaves it to what is available
    ttft    seconds to the first token of a prompt of 512
    """

    aim: str = BALANCED
    memory: int | None = None
    ttft: float | None = None


def goal_of(texts: Sequence[str]) -> Goal:
    """The goal that some texts make up. Raises RequestError for one that is unknown, and for two that contradict."""
    aims: list[str] = []
    bounds: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.strip().partition("=")
        if name in AIMS and not equals:
            aims.append(name)
        elif name in ("memory", "ttft") and value:
            if bounds.setdefault(name, value) != value:
                raise RequestError(
                    f"the goals {name}={bounds[name]} and {name}={value} contradict each other",
                    hint="give the smaller",
                )
        else:
            raise RequestError(f"{text!r} is not a goal", hint=f"give {FORMS}")
    if len(set(aims)) > 1:
        raise RequestError(
            f"the goals {' and '.join(dict.fromkeys(aims))} contradict each other",
            hint="give one of them; memory=SIZE and ttft=SECONDS go with any",
        )
    return Goal(
        aim=aims[0] if aims else QUALITY if bounds else BALANCED,
        memory=parse_size(bounds["memory"]) if "memory" in bounds else None,
        ttft=seconds(bounds["ttft"]) if "ttft" in bounds else None,
    )


def seconds(text: str) -> float:
    try:
        found = float(text.removesuffix("s"))
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise RequestError(f"ttft={text} is no time", hint="give seconds, such as ttft=0.5")
    return found
