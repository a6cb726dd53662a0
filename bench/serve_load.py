"""What several clients ask at once, over HTTP, by a generator of load that costs next to no processor time.

One asyncio loop holds all connections and parses the JSON of no event but the last.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

from edge.errors import EngineError

TEXT = (
    "the keeper of lighthouse wrote in evening what ships had gone by and from where wind came over water while "
    "his daughter counted birds that slept under roof before winter closed road to village market where people "
    "sold bread apples wool candles paper lamps for long nights near old stone bridge with seven arches"
)
EVENT = b"data: "


@dataclass(frozen=True)
class Load:
    """What came of a turn: all requests start at 0 seconds.

    ttft_s  of each request
    cpu_s   processor seconds of the process that holds the clients
    """

    seconds: float
    tokens: int
    ttft_s: tuple[float, ...]
    cpu_s: float


def prompts(count: int, seed: int) -> list[str]:
    """Texts of 30 to 55 words, no two beginning alike, the same for the same seed."""
    draw, words = random.Random(seed), TEXT.split()
    return [
        f"{seed}.{at} Once " + " ".join(draw.choice(words) for _ in range(draw.randint(30, 55))) + "."
        for at in range(count)
    ]


async def asked(port: int, path: str, bodies: Sequence[Mapping[str, Any]]) -> Load:
    """POST all bodies at once to this machine and read the events of every answer.

    Raises EngineError where a server answers otherwise than by a stream of events, or without one token.
    """
    started, cpu = perf_counter(), process_time()
    answers = await asyncio.gather(*(ask(port, path, body, started) for body in bodies))
    if not any(tokens for _, tokens in answers):
        raise EngineError("a server ended its answers before their first token", hint="measure another model")
    return Load(
        seconds=perf_counter() - started,
        tokens=sum(tokens for _, tokens in answers),
        ttft_s=tuple(first for first, _ in answers),
        cpu_s=process_time() - cpu,
    )


async def ask(port: int, path: str, body: Mapping[str, Any], started: float) -> tuple[float, int]:
    """Seconds from `started` to the first event of one answer, and its tokens."""
    text = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(head.encode() + f"Content-Length: {len(text)}\r\n\r\n".encode() + text)
        status = await reader.readline()
        first, events, last = 0.0, 0, b""
        async for line in reader:
            if line.startswith(EVENT) and not line.startswith(b"data: [DONE]"):
                first = first or perf_counter() - started
                events, last = events + 1, line
    finally:
        writer.close()
    if b" 200 " not in status or not events:
        raise EngineError(f"a server answered {status.decode('latin-1').strip() or 'nothing'}")
    return first, tokens_of(json.loads(last[len(EVENT) :]), events, body)


def tokens_of(last: Mapping[str, Any], events: int, body: Mapping[str, Any]) -> int:
    """How many tokens an answer has: as its last event says, else all it may have, else one an event before the last.

    Raises EngineError where the last event is an error.
    """
    if "tokens_predicted" in last:  # llama-server
        return int(last["tokens_predicted"])
    if "choices" not in last:
        raise EngineError(f"a server ended its answer with {json.dumps(last)[:200]}")
    cut = last["choices"][0].get("finish_reason") == "length"
    return int(body["max_tokens"]) if cut else events - 1
