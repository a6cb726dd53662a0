"""Repeated, interleaved timing, and what is taken from the repetitions.

Whatever else runs makes a repetition slower, never faster, so the lower quartile stands for the machine's own pace; the
spread says how far that was disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def interleaved(
    calls: Mapping[K, Callable[[], V]], *, seconds: float, least: int = 3, most: int = 15, warm: bool = True
) -> dict[K, list[V]]:
    """What the calls gave, one after the other, round after round until the seconds are over.

    A round before is for warming up, where `warm`. A call that takes long has fewer rounds: each gets about the same
    time. On a machine so busy that `least` rounds take twice the seconds, there are fewer of all.
    """
    found: dict[K, list[V]] = {key: [] for key in calls}
    spent = dict.fromkeys(calls, 0.0)
    start, share = perf_counter(), seconds / max(1, len(calls))
    for call in calls.values() if warm else ():
        call()
    while True:
        elapsed = perf_counter() - start
        waiting = [
            key
            for key in calls
            if not found[key]
            or (len(found[key]) < least and elapsed < 2 * seconds)
            or (len(found[key]) < most and spent[key] < share and elapsed < seconds)
        ]
        if not waiting:
            return found
        for key in waiting:
            began = perf_counter()
            found[key].append(calls[key]())
            spent[key] += perf_counter() - began


def pace(samples: Sequence[float]) -> float:
    """The lower quartile."""
    return quartile(samples, 1)


def spread(samples: Sequence[float]) -> float | None:
    """(upper - lower quartile) / median; None of one sample."""
    if len(samples) < 2:
        return None
    middle = median(samples)
    return (quartile(samples, 3) - quartile(samples, 1)) / middle if middle > 0 else 0.0


def quartile(samples: Sequence[float], which: int) -> float:
    return sorted(samples)[round((len(samples) - 1) * which / 4)]
