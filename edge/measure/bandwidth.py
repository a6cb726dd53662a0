"""How many bytes of memory are read in a second, by so many threads at once.

Read by C's memchr looking for what is not there: it loads with the CPU's widest registers and does nothing else, and
ctypes releases the interpreter for it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from edge.machine.caches import last_level_bytes
from edge.machine.system import here
from edge.measure.samples import interleaved, quartile
from edge.rates import Bandwidth

LEAST = 192 << 20  # bytes
TIMES = 3  # what the caches hold
SHARE = 8  # of the available memory


def bandwidth(counts: Sequence[int], available_bytes: int, *, seconds: float = 1.5) -> tuple[Bandwidth, ...]:
    """Measured for each count of threads."""
    size = max(1 << 20, min(max(LEAST, TIMES * last_level_bytes(here())), available_bytes // SHARE))
    array = np.ones(size, np.uint8)  # written, so that each page is one of its own
    with ThreadPoolExecutor(max(counts)) as pool:
        read = interleaved({count: partial(once, array, count, pool) for count in counts}, seconds=seconds)
    return tuple(
        Bandwidth(count, *(size / 1e9 / quartile(times, which) for which in (1, 4, 0)))
        for count, times in read.items()
    )


def once(array: NDArray[np.uint8], threads: int, pool: ThreadPoolExecutor) -> float:
    """Seconds in which the threads have read all of the array, a part each."""
    memchr = ctypes.CDLL(None).memchr
    memchr.restype, memchr.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    part, begin = array.size // threads, array.ctypes.data
    start = perf_counter()
    list(pool.map(lambda index: memchr(begin + index * part, 0, part), range(threads)))
    return perf_counter() - start
