"""What was measured of this host, as text: all of it, or in brief."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from edge.cli.output import counted, table
from edge.rates import Kernel, Rates

BRIEF = 3  # types that are named
PER = "tokens a second of 10^9 weights, by the matrices alone"
Row = tuple[str, str]


def in_brief(rates: Rates) -> list[Row]:
    """Some lines of it, for what `edge host` says of the machine."""
    return [
        ("measured", f"{when(rates)}, spread {percent(rates.noise)}"),
        *evidence(rates),
        ("bandwidth", bandwidth(rates)),
        ("threads", threads(rates)),
        ("prefill", fastest(prefill_of(rates.kernels, rates.prefill_threads))),
        ("decode", fastest(decode_of(rates.kernels, rates.decode_threads))),
    ]


def in_full(rates: Rates, by: str) -> str:
    """All of it: threads, GGML's types and ONNX Runtime's levels, sorted `by` "prefill" or "decode"."""
    facts = [
        ("cpu", f"{rates.key.cpu}, {counted(rates.key.cores, 'core')}"),
        (
            "libraries",
            f"llama-cpp-python {rates.key.llama_cpp}, onnxruntime {rates.key.onnxruntime or 'none'}",
        ),
        ("measured", f"{when(rates)}, in {rates.seconds:.0f} s, spread {percent(rates.noise)}"),
        *evidence(rates),
        ("threads", threads(rates)),
    ]
    prefill, decode = rates.prefill_threads, rates.decode_threads
    parts = [table(facts), by_threads(rates), by_type("type", rates.kernels, prefill, decode, by)]
    if rates.onnx:
        threads_there = rates.onnx[0].threads  # those of prefill; encoders' batches have one each besides
        parts.append(by_type("onnx", rates.onnx, threads_there, threads_there, by))
    return "\n\n".join([*parts, f"prefill, decode: {PER}"])


def evidence(rates: Rates) -> list[Row]:
    """What disturbed it, so that nothing is chosen by it; nothing where nothing did."""
    labels = ("disturbed", *("" for _ in rates.marks))
    return [*zip(labels, rates.marks, strict=False)]


def threads(rates: Rates) -> str:
    return f"{rates.prefill_threads} for prefill, {rates.decode_threads} for decode"


def bandwidth(rates: Rates) -> str:
    shown = (f"{one.gbs:.1f} GB/s by {counted(one.threads, 'thread')}" for one in rates.bandwidth)
    return ", ".join(shown)


def by_threads(rates: Rates) -> str:
    """What each number of threads reads and reaches."""
    share = {one.threads: one for one in rates.scaling}
    memory = {one.threads: one for one in rates.bandwidth}
    rows = []
    for count in sorted(share.keys() | memory.keys()):
        read, reached = memory.get(count), share.get(count)
        rows.append(
            (
                str(count),
                f"{read.gbs:.1f} GB/s ({read.low:.1f} to {read.high:.1f})" if read else "-",
                percent(reached.prefill) if reached else "-",
                percent(reached.decode) if reached else "-",
            )
        )
    return table(rows, ("threads", "memory", "prefill", "decode"))


def by_type(name: str, kernels: Sequence[Kernel], prefill_threads: int, decode_threads: int, by: str) -> str:
    """A line for each type with both rates, the fastest first."""
    prefill = {kernel.type: kernel for kernel in prefill_of(kernels, prefill_threads)}
    decode = {kernel.type: kernel for kernel in decode_of(kernels, decode_threads)}
    sought = prefill if by == "prefill" else decode
    types = dict.fromkeys([*sought, *prefill, *decode])
    rows = [line(kind, prefill.get(kind), decode.get(kind)) for kind in types]
    return table(rows, (name, "bits", "prefill", "decode", "10^9 ops/s", "GB/s", "spread"))


def line(kind: str, prefill: Kernel | None, decode: Kernel | None) -> tuple[str, ...]:
    timed = [kernel for kernel in (prefill, decode) if kernel]
    spreads = [kernel.spread for kernel in timed if kernel.spread is not None]
    return (
        kind,
        f"{timed[0].bits:.4g}",
        f"{tokens(prefill):.1f}" if prefill else "-",
        f"{tokens(decode):.1f}" if decode else "-",
        f"{prefill.gops:.1f}" if prefill else "-",
        f"{decode.gbs:.1f}" if decode else "-",
        percent(max(spreads)) if spreads else "-",
    )


def prefill_of(kernels: Sequence[Kernel], threads: int) -> list[Kernel]:
    """Those of the most rows by so many threads, the fastest first."""
    mine = [kernel for kernel in kernels if kernel.threads == threads]
    most = max((kernel.rows for kernel in mine), default=0)
    return sorted((kernel for kernel in mine if kernel.rows == most), key=tokens, reverse=True)


def decode_of(kernels: Sequence[Kernel], threads: int) -> list[Kernel]:
    """Those of one row by so many threads, the fastest first."""
    mine = (kernel for kernel in kernels if kernel.threads == threads and kernel.rows == 1)
    return sorted(mine, key=tokens, reverse=True)


def tokens(kernel: Kernel) -> float:
    """Tokens a second of a model of 10^9 weights."""
    return kernel.rows / kernel.seconds / 1e9


def fastest(kernels: Sequence[Kernel]) -> str:
    """The first types with their rates."""
    named = ", ".join(f"{kernel.type} {tokens(kernel):.1f}" for kernel in kernels[:BRIEF])
    return f"{named or 'not measured'} ({PER})"


def when(rates: Rates) -> str:
    return datetime.fromtimestamp(rates.measured_at).strftime("%Y-%m-%d %H:%M")


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"
