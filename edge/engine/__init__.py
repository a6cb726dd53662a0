"""Generation on llama.cpp: `Engine` decodes, `Sampling` says how, `Chunk` is one step, `Tally` sums them up.

Each is imported when it is asked for: who only needs llama.cpp's functions does not wait for the planner.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.engine.engine import Engine
    from edge.engine.request import Chunk, Logprob, Stream
    from edge.engine.sampling import Sampling
    from edge.engine.tally import Tally, Timings, Usage

__all__ = ["Chunk", "Engine", "Logprob", "Sampling", "Stream", "Tally", "Timings", "Usage"]

_HOME = {
    "Chunk": "request",
    "Engine": "engine",
    "Logprob": "request",
    "Sampling": "sampling",
    "Stream": "request",
    "Tally": "tally",
    "Timings": "tally",
    "Usage": "tally",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edge.engine' has no attribute {name!r}")
    return getattr(import_module(f"edge.engine.{_HOME[name]}"), name)
