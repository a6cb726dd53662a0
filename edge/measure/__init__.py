"""Measures this host: memory, every type's matrices, attention, threads. `edge.speed` predicts with it."""

from __future__ import annotations

from collections.abc import Callable

from edge.rates import Rates

__all__ = ["measure"]


def measure(
    report: Callable[[str], None] = lambda _: None, kinds: tuple[str, ...] = (), seconds: float = 1.0
) -> Rates:
    """Measure this host in under 20 seconds (on an idle machine), in a process of its own; nothing is kept.

    report   is told what is being measured
    kinds    GGML types, by default all that this build of llama.cpp multiplies
    seconds  in proportion: less for a quick look, with a wider spread

    Raises EngineError where llama.cpp is missing, refuses or crashes, StoreError where no temporary file can be
    written.
    """
    from edge.measure.process import run  # with it comes what makes processes

    return run(report, kinds, seconds)
