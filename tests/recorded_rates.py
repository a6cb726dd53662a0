"""Rates as a host might have been measured: nothing but the kernels that are given takes any time."""

from dataclasses import replace

from edge.rates import Attention, Bandwidth, Kernel, Key, Layer, Rates, Scaling

ROWS = (1, 512)


def kernels_of(seconds, threads=1):
    """Kernels of types that take so many seconds a weight, for any number of rows."""
    return tuple(
        Kernel(kind, 512, threads, rows, taken, 4.5, 0.0) for kind, taken in seconds.items() for rows in ROWS
    )


def recorded_rates(kernels, *, threads=1, key=None, **others):
    """Rates of these kernels on so many threads, of a CPU that is not here unless its key is given."""
    found = Rates(
        key=key or Key("a CPU", threads, "0", "0", 1),
        bandwidth=(Bandwidth(threads, 10.0, 9.0, 11.0),),
        kernels=tuple(kernels),
        layers=(Layer(64, threads, 1, 0.0),),
        attention=(Attention(threads, 1, 0.0, 0.0),),
        scaling=(Scaling(threads, 1.0, 1.0),),
        prefill_threads=threads,
        decode_threads=threads,
        step_seconds=0.0,
        noise=0.0,
        measured_at=0.0,
        seconds=1.0,
    )
    return replace(found, **others)
