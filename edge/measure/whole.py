"""All of a host's measurement, in order; `edge.measure` runs it in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, time

from edge.engine.binding import llama
from edge.machine import host
from edge.machine.power import marks, power_state
from edge.measure import blocks
from edge.measure.bandwidth import bandwidth
from edge.measure.kernels import Session, scaling
from edge.measure.onnx import onnx_rates
from edge.measure.onnx_parts import onnx_parts
from edge.measure.samples import interleaved
from edge.rates import Kernel, Part, Rates, key_of

Report = Callable[[str], None]
FEW = 2  # cores on which everything is measured with any number of threads
ALIKE = 0.02  # fewer threads that come so near are as good


@dataclass(frozen=True)
class Size:
    """How much is measured: which types, none for all, and for how many seconds in proportion."""

    kinds: tuple[str, ...] = ()
    seconds: float = 1.0
    onnx: bool = True


def whole(folder: Path, size: Size, report: Report) -> Rates:
    """Measure this host; files are made in `folder`. Raises EngineError where llama.cpp refuses."""
    began, machine = perf_counter(), host()
    kinds = size.kinds or blocks.kinds()
    cores = machine.cpu.cores
    llama()
    report(f"memory bandwidth by 1 to {cores} threads")
    counts = counts_of(cores)
    before = power_state()
    read = bandwidth(counts, machine.memory.available_bytes, seconds=1.0 * size.seconds)
    report("which number of threads is fastest")
    scales = scaling(folder, counts, seconds=2.0 * size.seconds)
    prefill = fastest({one.threads: one.prefill for one in scales})
    decode = fastest({one.threads: one.decode for one in scales})
    some = counts if cores <= FEW else tuple(sorted({prefill, decode}))
    report(f"matrices of {len(kinds)} types, layers and attention by {' and '.join(map(str, some))} threads")
    session = Session(folder, kinds, some)
    try:
        timed = interleaved(session.calls, seconds=7.0 * size.seconds, least=2, warm=False)
    finally:
        session.close()
    found, layers, attends, start = session.derived(timed)
    onnx: tuple[Kernel, ...] = ()
    parts: tuple[Part, ...] = ()
    if size.onnx:
        report("ONNX Runtime")
        # Encoders run batches side by side, each on one thread
        onnx = tuple(kernel for count in dict.fromkeys((prefill, 1)) for kernel in onnx_rates(count))
        parts = onnx_parts()
    spreads = [kernel.spread for kernel in found if kernel.spread is not None]
    noise = median(spreads) if spreads else 1.0  # so busy a machine that nothing was timed twice
    after = power_state()
    return Rates(
        key=key_of(machine),
        bandwidth=read,
        kernels=found,
        layers=layers,
        attention=attends,
        scaling=scales,
        prefill_threads=prefill,
        decode_threads=decode,
        step_seconds=start,
        noise=noise,
        measured_at=time(),
        seconds=perf_counter() - began,
        onnx=onnx,
        onnx_parts=parts,
        state=asdict(after),
        marks=marks(before, after, noise),
    )


def counts_of(cores: int) -> tuple[int, ...]:
    """Counts of threads to try: powers of two, what lies half-way between them, and all cores."""
    powers = [1 << power for power in range(cores.bit_length())]
    halfway = [3 * power // 2 for power in powers if power > 1]
    return tuple(sorted({count for count in (*powers, *halfway, cores) if count <= cores}))


def fastest(shares: dict[int, float]) -> int:
    """The fewest threads that come near the best."""
    return min(count for count, share in shares.items() if share >= 1 - ALIKE)
