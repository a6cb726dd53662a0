"""The rates of every type's matrices, of a layer's other work and of attention, from models made for it.

The products' own time is that of a feed-forward less that of one with next to no weights. What starting them costs is
in neither; it is in what a layer takes beside its matrices, which is the difference that layers without weights make.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from edge.measure.blocks import bits
from edge.measure.made import HEAD, Shape, write
from edge.measure.run import Parts, Run, running
from edge.measure.samples import interleaved, pace, spread
from edge.rates import Attention, Kernel, Layer, Scaling

ROWS = (1, 8, 256)  # decode, some sequences at a time, prefill
MODEL = Shape(512, 1024, 8, 2)
BARE = Shape(64, 64, 1, 1)  # its matrices take no time
ATTENTION = Shape(64, 64, 8, 2)
FEW, MANY = 2, 18  # layers of the bare models
DEPTH = 1024
PROBED = ("Q4_0", "Q8_0", "Q4_K", "F16")  # what threads are compared with
PROBE_LAYERS, PROBE_ROWS = 12, 64
FIRST = 1  # the first layer's part has the embedding in it

Timed = tuple[dict[int, float], dict[int, float]]  # Parts' inner and rest of a step


@dataclass(frozen=True)
class Bare:
    """Seconds without weights, by (threads, rows): a layer, a step beside its layers, and a layer's parts as timed."""

    layer: dict[tuple[int, int], float]
    step: float
    inner: dict[tuple[int, int], float]
    rest: dict[tuple[int, int], float]


def scaling(folder: Path, counts: Sequence[int], *, seconds: float) -> tuple[Scaling, ...]:
    """What each count of threads reaches with a mix of types, in prefill and in decode."""
    kinds = (PROBED * PROBE_LAYERS)[:PROBE_LAYERS]
    path = write(folder / "probe.gguf", kinds, MODEL, PROBE_ROWS)
    with running(path, PROBE_ROWS, PROBE_ROWS) as run:
        calls = {
            (count, rows): partial(step, run, count, rows) for count in counts for rows in (1, PROBE_ROWS)
        }
        found = {key: pace(times) for key, times in interleaved(calls, seconds=seconds, least=5).items()}
    path.unlink()
    best = {rows: min(found[count, rows] for count in counts) for rows in (1, PROBE_ROWS)}
    return tuple(
        Scaling(count, best[PROBE_ROWS] / found[count, PROBE_ROWS], best[1] / found[count, 1])
        for count in counts
    )


def step(run: Run, threads: int, rows: int, position: int = 0) -> float:
    """Seconds of one step from a position on, which is forgotten first."""
    run.threads(threads)
    run.cut(position)
    return run.step(rows, position)


def bare(folder: Path, counts: Sequence[int], *, seconds: float) -> Bare:
    """What a step takes beside matrices."""
    cells = [(count, rows) for count in counts for rows in ROWS]
    whole: dict[int, dict[tuple[int, int], float]] = {}
    for layers in (FEW, MANY):
        path = write(folder / f"bare{layers}.gguf", ["F32"] * layers, BARE, max(ROWS))
        with running(path, max(ROWS), max(ROWS)) as run:
            found = interleaved({cell: partial(step, run, *cell) for cell in cells}, seconds=seconds / 3)
        whole[layers] = {cell: pace(times) for cell, times in found.items()}
    layer = {cell: max(0.0, whole[MANY][cell] - whole[FEW][cell]) / (MANY - FEW) for cell in cells}
    parts = Parts()
    with running(path, max(ROWS), max(ROWS), parts) as run:
        timed = interleaved(
            {cell: partial(timed_step, run, parts, *cell) for cell in cells}, seconds=seconds / 3
        )
    path.unlink()
    # The last layer computes only the rows whose logits are wanted
    within = range(FIRST, MANY - 1)
    inner, rest = (
        {
            cell: pace([median(one[which][layer] for layer in within) for one in found])
            for cell, found in timed.items()
        }
        for which in (0, 1)
    )
    steps = [whole[FEW][count, 1] - FEW * layer[count, 1] for count in counts]
    return Bare(layer, max(0.0, min(steps)), inner, rest)


def timed_step(run: Run, parts: Parts, threads: int, rows: int) -> Timed:
    step(run, threads, rows)
    return dict(parts.inner), dict(parts.rest)


def kernels(
    folder: Path,
    kinds: Sequence[str],
    counts: Sequence[int],
    without: Bare,
    *,
    seconds: float,
    rows: Sequence[int] = ROWS,
) -> tuple[tuple[Kernel, ...], tuple[Layer, ...]]:
    """Each type's rates by threads and rows; and what a layer of this width takes beside them."""
    # One before all, and one after, as the last layer computes only the rows whose logits are wanted
    path = write(folder / "types.gguf", ["F32", *kinds, "F32"], MODEL, max(rows))
    parts, cells = Parts(), [(count, some) for count in counts for some in rows]
    with running(path, max(rows), max(rows), parts) as run:
        step(run, counts[-1], min(rows))  # a full round would take as long as all else
        timed = interleaved(
            {cell: partial(timed_step, run, parts, *cell) for cell in cells},
            seconds=seconds,
            least=2,
            warm=False,
        )
    path.unlink()
    found, layers = [], []
    for (count, some), steps in timed.items():
        others = []
        for layer, kind in enumerate(kinds, FIRST):
            inner = [one[0][layer] for one in steps]
            own = max(pace(inner) - without.inner[count, some], 0.05 * pace(inner)) / MODEL.inner_weights
            found.append(Kernel(kind, MODEL.width, count, some, own, bits(kind), spread(inner)))
            rest = pace([one[1][layer] for one in steps])
            others.append(rest - own * MODEL.attention_weights - without.rest[count, some])
        beside = without.layer[count, some]
        layers += [
            Layer(BARE.width, count, some, beside),
            Layer(MODEL.width, count, some, beside + max(0.0, median(others))),
        ]
    return tuple(found), tuple(layers)


def attention(folder: Path, counts: Sequence[int], *, seconds: float) -> tuple[Attention, ...]:
    """What a look at one position takes, from steps far from the beginning and at it."""
    layers, most = 4, max(ROWS)
    path = write(folder / "attention.gguf", ["F32"] * layers, ATTENTION, DEPTH + most)
    with running(path, DEPTH + most, most) as run:
        for position in range(0, DEPTH + most, most):
            run.step(most, position)
        calls: dict[tuple[int, int, int], Callable[[], float]] = {
            (count, rows, depth): partial(step, run, count, rows, depth)
            for depth in (DEPTH, 0)
            for rows in (1, most)
            for count in counts
        }
        far = {key: call for key, call in calls.items() if key[2]}
        near = {key: call for key, call in calls.items() if not key[2]}
        found = interleaved(far, seconds=seconds / 2) | interleaved(near, seconds=seconds / 2)
    path.unlink()
    looks = layers * ATTENTION.heads * 2 * HEAD * DEPTH
    return tuple(
        Attention(
            count,
            rows,
            max(0.0, pace(found[count, rows, DEPTH]) - pace(found[count, rows, 0])) / (looks * rows),
        )
        for count in counts
        for rows in (1, most)
    )
