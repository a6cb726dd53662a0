"""The rates of every type's matrices, of a layer's other work and of attention, from models made for it.

The products' own time is that of a feed-forward less that of one with next to no weights. What starting them costs is
in neither; it is in what a layer takes beside its matrices, which is the difference that layers without weights make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from edge.measure.blocks import bits
from edge.measure.made import HEAD, Shape, write
from edge.measure.run import Parts, Run, running
from edge.measure.samples import interleaved, pace, spread
from edge.rates import Attention, Kernel, Layer, Scaling

ROWS = (1, 8, 256)  # decode, some sequences at a time, prefill
MODEL = Shape(512, 1024, 8, 2)
LARGER = Shape(512, 4096, 8, 2)  # for few rows, so that starting a product is little beside it
BARE = Shape(64, 64, 1, 1)  # its matrices take no time
ATTENTION = {
    "shared": Shape(64, 64, 8, 2),
    "own": Shape(64, 64, 8, 8),
}  # heads of keys among heads of queries
FEW, MANY = 2, 18  # layers of the bare models
DEPTH = 1024
PROBED = ("Q4_0", "Q8_0", "Q4_K", "F16")  # what threads are compared with
PROBE_LAYERS, PROBE_ROWS = 12, 64
FIRST = 1  # the first layer's part has the embedding in it
LAYERS = 4  # of the model for attention
Cell = tuple[str, int, int]  # what, threads, rows
Timed = tuple[dict[int, float], dict[int, float]]  # Parts' inner and rest of a step


class Session:
    """All made models, loaded. `calls` are to be timed in turns, and `derived` makes rates of what they gave."""

    def __init__(self, folder: Path, kinds: Sequence[str], counts: Sequence[int]) -> None:
        self._kinds, self._counts, self._stack = kinds, counts, ExitStack()
        self.calls: dict[Cell, Callable[[], float | Timed]] = {}
        most = max(ROWS)
        try:
            for what, layers in (("few", FEW), ("many", MANY)):
                path = write(folder / f"{what}.gguf", ["F32"] * layers, BARE, most)
                self._steps(what, path, ROWS)
            self._parts("parts", path, ROWS)
            for what, shape in ATTENTION.items():
                path = write(folder / f"{what}.gguf", ["F32"] * LAYERS, shape, DEPTH + most)
                self._attention(what, path)
            # One layer before all, and one after, as the last layer computes only the rows whose logits are wanted
            layers_of = ["F32", *kinds, "F32"]
            self._parts("larger", write(folder / "larger.gguf", layers_of, LARGER, most), ROWS[:-1])
            self._parts("model", write(folder / "model.gguf", layers_of, MODEL, most), ROWS[-1:])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def _steps(self, what: str, path: Path, rows: Sequence[int]) -> None:
        run = self._stack.enter_context(running(path, max(rows), max(rows)))
        for count in self._counts:
            for some in rows:
                self.calls[what, count, some] = partial(step, run, count, some)

    def _parts(self, what: str, path: Path, rows: Sequence[int]) -> None:
        parts = Parts()
        run = self._stack.enter_context(running(path, max(rows), max(rows), parts))
        step(run, 1, min(rows))
        for count in self._counts:
            for some in rows:
                self.calls[what, count, some] = partial(timed_step, run, parts, count, some)

    def _attention(self, what: str, path: Path) -> None:
        most = max(ROWS)
        near, far = (self._stack.enter_context(running(path, DEPTH + most, most)) for _ in range(2))
        for position in range(0, DEPTH, most):
            far.step(most, position)
        for count in self._counts:
            for some in (1, most):
                self.calls[f"{what} near", count, some] = partial(step, near, count, some)
                self.calls[f"{what} far", count, some] = partial(step, far, count, some, DEPTH)

    def derived(
        self, found: Mapping[Cell, Sequence[Any]]
    ) -> tuple[tuple[Kernel, ...], tuple[Layer, ...], tuple[Attention, ...], float]:
        """Rates of the types, of a layer beside its matrices, of attention, and of a step beside its layers."""
        looks = attention(found, self._counts)
        kernels: list[Kernel] = []
        layers: list[Layer] = []
        starts = []
        for count in self._counts:
            for some in ROWS:
                what, shape = ("model", MODEL) if some == max(ROWS) else ("larger", LARGER)
                attends = partial(attention_seconds, looks, count, some)
                whole = [pace(found[name, count, some]) for name in ("few", "many")]
                bare = max(0.0, whole[1] - whole[0]) / (MANY - FEW)
                if some == 1:
                    starts.append(whole[0] - FEW * bare)
                # The last layer computes only the rows whose logits are wanted
                inner, rest = (
                    pace([median(one[part][layer] for layer in range(FIRST, MANY - 1)) for one in steps])
                    for part, steps in enumerate([found["parts", count, some]] * 2)
                )
                steps, others = found[what, count, some], []
                for layer, kind in enumerate(self._kinds, FIRST):
                    taken = [one[0][layer] for one in steps]
                    own = max(pace(taken) - inner, 0.05 * pace(taken)) / shape.inner_weights
                    kernels.append(Kernel(kind, shape.width, count, some, own, bits(kind), spread(taken)))
                    others.append(
                        pace([one[1][layer] for one in steps]) - rest - own * shape.attention_weights
                    )
                beside = max(0.0, bare - attends(BARE))
                more = max(0.0, median(others) - attends(shape) + attends(BARE))
                layers.append(Layer(BARE.width, count, some, beside))
                layers.append(Layer(shape.width, count, some, beside + more))
        return tuple(kernels), tuple(layers), looks, max(0.0, min(starts))


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


def timed_step(run: Run, parts: Parts, threads: int, rows: int) -> Timed:
    step(run, threads, rows)
    return dict(parts.inner), dict(parts.rest)


def attention_seconds(looks: Sequence[Attention], threads: int, rows: int, shape: Shape) -> float:
    """Of a layer for the rows of a first step; few rows look as one does."""
    look = min((one for one in looks if one.threads == threads), key=lambda one: abs(one.rows - rows))
    looked = (
        rows * rows * 2 * HEAD
    )  # positions × elements of key and value; what a mask hides is computed, too
    return looked * (shape.heads * look.seconds + shape.kv_heads * look.kv_seconds)


def attention(found: Mapping[Cell, Sequence[float]], counts: Sequence[int]) -> tuple[Attention, ...]:
    """What a look at one position takes, from steps far from the beginning and at it."""
    return tuple(of_attention(found, count, rows) for count in counts for rows in (1, max(ROWS)))


def of_attention(found: Mapping[Cell, Sequence[float]], threads: int, rows: int) -> Attention:
    """Two models that differ in their heads of keys and values tell what those take, and what is left for queries."""

    def deeper(what: str) -> float:
        far, near = (pace(found[f"{what} {where}", threads, rows]) for where in ("far", "near"))
        return max(0.0, far - near) / (LAYERS * 2 * HEAD * DEPTH * rows)

    shared, own = (ATTENTION[what] for what in ("shared", "own"))
    kept = max(0.0, deeper("own") - deeper("shared")) / (own.kv_heads - shared.kv_heads)
    return Attention(threads, rows, max(0.0, deeper("shared") - shared.kv_heads * kept) / shared.heads, kept)
