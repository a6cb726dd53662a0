"""A model squeezed into a size: each tensor measured, the types solved for, the file written as any other.

The whole model at F16 stands for what is true; it is made in a folder below the output's that goes again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from edge import gguf_header
from edge.errors import RequestError
from edge.memory import has_cache
from edge.rates import Rates
from edge.sizes import mib

from . import gguf_source, imatrix
from .collect import collect
from .drafts import disk_errors
from .files import File, file_of
from .gguf import Entry, aligned
from .imatrix import Importance
from .pace import seconds_of
from .probe import Array, Probe, probe
from .quantize import Settings, check_importance, importances
from .sensitivity import KINDS, bits, measure, possible
from .source import Source, opened, title_of
from .squeeze import Option, fastest, solve
from .stream import Report, silent
from .to_gguf import DEFAULT, Made, check_free, make

CHUNKS = 8  # of calibration text; every other one is held back to measure the file on
TENSOR = slice(0, 4, 2)  # the chunks that a tensor is measured on
TOKENS = 128  # the first of each of them
WORTH = 0.5  # of the bits a weight that there are: a type of fewer is hardly ever chosen, and slow to encode
LAYER = "blk."  # what the weights are called that a matrix is collected of
USUAL = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")  # levels that people take, the largest first


@dataclass(frozen=True)
class Fitted:
    """The file, and its mean KL divergence from the whole model in nats a token: `kld_predicted` from its tensors'
    measured one by one, `kld_measured` of the file, on `tokens` of the calibration text that those did not see; an
    importance matrix that is collected here has seen all of it.

    level      of a file for this host: the usual one of its size, which it is to be as good as; empty where none fits
    speedup    how many times as fast as that level its matrices are, as predicted
    """

    file: Made
    kld_predicted: float
    kld_measured: float
    kld_error: float
    tokens: int
    level: str = ""
    speedup: float | None = None


@dataclass(frozen=True)
class Plan:
    """`base` is a file whose tensors `kinds` (name → possible types) may be changed; the rest stays as it is."""

    base: File
    kinds: Mapping[str, Sequence[str]]
    budget: int
    whole_file: bool

    @property
    def lowered(self) -> list[Entry]:
        return [self.base.entries[name] for name in self.kinds]

    def bytes_as(self, entry: Entry, kind: str) -> int:
        """What a tensor takes of the budget; in a file it takes its padding, too."""
        size = replace(entry, type=kind).bytes
        return aligned(size) if self.whole_file else size

    @property
    def least(self) -> int:
        return sum(min(self.bytes_as(one, kind) for kind in self.kinds[one.name]) for one in self.lowered)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.budget / sum(entry.elements for entry in self.lowered)


@dataclass(frozen=True)
class Choice:
    """Types by tensor, with the level they are compared with; see Fitted."""

    types: Mapping[str, str]
    level: str = ""
    speedup: float | None = None


def fit(
    path: Path,
    text: str,
    out: Path,
    *,
    size: int | None = None,
    bpw: float | None = None,
    name: str | None = None,
    settings: Settings = DEFAULT,
    calibrate: str | None = None,
    prove: bool = True,
    kinds: Sequence[str] = KINDS,
    rates: Rates | None = None,
    report: Report = silent,
) -> Fitted:
    """Write `out/TITLE-<bits a weight>bpw.gguf` of the checkpoint or GGUF file at `path`, certificate beside.

    It has at most `size` bytes, or at most `bpw` bits a weight over all tensors, of the types `kinds` where the
    quantizer would quantize: those of the least divergence, or where `rates` of a host are given, the fastest there
    whose divergence is predicted to be no more than that of the usual level of this size.

    With `calibrate`, which is what it calls the text, an importance matrix of the whole model at F16 is collected from
    it and kept as `out/TITLE.imatrix.gguf`; else it is the settings'. Raises RequestError for less than the smallest
    that it can be and for a text too short to measure on, before anything is kept, and otherwise as `convert`.
    """
    if rates is not None:
        timed = {kernel.type for kernel in rates.kernels}
        kinds = [kind for kind in kinds if kind in timed]
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with (
        opened(path, title_of(path, name), settings.prune_layers) as source,
        TemporaryDirectory(prefix=".edge-", dir=out) as folder,
    ):
        budget = partial(planned, source, Path(folder), prove, kinds, size=size, bpw=bpw)
        matrix = out / f"{source.title}.imatrix.gguf"
        plan = budget(expected(settings, source, calibrate, matrix) if calibrate else settings)
        check_importance(plan.base.entries.values(), settings.importance)
        plain = replace(settings, importance={}, importance_fields={})
        (whole,) = make(source, ["f16"], Path(folder), settings=plain, prove=False)
        header = gguf_header.read(whole.path)
        if not has_cache(header):
            raise RequestError(
                "it continues no text, so there are no probabilities to measure",
                hint="choose a level instead",
            )
        names = list(plan.kinds)
        with (
            gguf_source.open(whole.path) as weights,
            probe(whole.path, text, names, chunks=CHUNKS, threads=settings.threads) as model,
        ):
            if calibrate:
                found = collected(whole.path, text, calibrate, settings, report)
                settings = weighed(settings, found, matrix)
                plan = budget(settings)
                check_importance(plan.base.entries.values(), settings.importance)
                imatrix.write(found, matrix)
            losses = measure(
                model,
                weights,
                plan.kinds,
                settings.importance,
                plan.bits_per_weight,
                TENSOR,
                TOKENS,
                report,
            )
            if rates is None:
                choice = Choice(types(plan, losses))
            else:
                seconds = seconds_of(header, plan.kinds, rates)
                choice = fast_types(plan, losses, seconds, usual(plan, source, Path(folder), settings))
            file = written(source, plan, choice.types, out, settings, prove, report)
            apart = measured(model, file.path, names)
    return Fitted(
        file=file,
        kld_predicted=sum(losses[name][kind] for name, kind in choice.types.items()),
        kld_measured=float(apart.mean()),
        kld_error=float(apart.std() / max(1, apart.size - 1) ** 0.5),
        tokens=apart.size,
        level=choice.level,
        speedup=choice.speedup,
    )


def collected(whole: Path, text: str, name: str, settings: Settings, report: Report) -> Importance:
    def progress(done: int, total: int) -> None:
        report("calibrating", done, total)

    return collect(whole, text, name=name, threads=settings.threads, progress=progress)


def weighed(settings: Settings, found: Importance, matrix: Path) -> Settings:
    return replace(settings, importance=found.means(), importance_fields=found.fields(matrix.name))


def expected(settings: Settings, source: Source, text: str, matrix: Path) -> Settings:
    """The settings as they will be with a matrix: of the layers' weights, and what a file says of it has a length."""
    columns = {
        entry.name: np.ones((importances(entry.shape), entry.shape[-1]), np.float32)
        for entry in source.entries
        if entry.name.startswith(LAYER) and not entry.fixed
    }
    return weighed(
        settings, Importance(columns, dict.fromkeys(columns, np.ones(1, np.int64)), (text,), 0, 0), matrix
    )


def planned(
    source: Source,
    folder: Path,
    prove: bool,
    kinds: Sequence[str],
    settings: Settings,
    *,
    size: int | None,
    bpw: float | None,
) -> Plan:
    """Which tensors may have which types, and the bytes for them. Raises RequestError for too few."""
    base = file_of(source, "q8_0", folder, settings, prove)
    kept = replace(settings, types={name: entry.type for name, entry in base.entries.items()})
    base = file_of(source, "own", folder, kept, prove)  # with the head of a mixture of one's own
    own = {entry.name: entry.type for entry in source.entries}
    found = {
        name: possible(entry, kinds, name in settings.importance)
        for name, entry in base.entries.items()
        if name in own and not entry.fixed and entry.type != own[name]
    }
    plan = Plan(base, {name: of for name, of in found.items() if of}, 0, size is not None)
    if not plan.kinds:
        raise RequestError("the model has no weights that could be lowered", hint="choose a level instead")
    if size is not None:
        rest = base.head.size - sum(aligned(entry.bytes) for entry in plan.lowered)
        plan = replace(plan, budget=size - rest)
        asked, smallest = f"{size:,} bytes", f"{rest + plan.least:,} bytes ({mib(rest + plan.least)})"
    else:
        assert bpw is not None
        weights = sum(entry.elements for entry in base.entries.values())
        rest = sum(entry.bytes for entry in base.entries.values()) - sum(one.bytes for one in plan.lowered)
        plan = replace(plan, budget=int(bpw * weights / 8) - rest)
        asked, smallest = f"{bpw:g} bits a weight", f"{8 * (rest + plan.least) / weights:.4f} bits a weight"
    if plan.budget < plan.least:
        raise RequestError(f"it does not fit into {asked}", hint=f"the smallest that it can be is {smallest}")
    least = WORTH * plan.bits_per_weight
    of_use = {name: [kind for kind in of if bits(kind) >= least] or of for name, of in plan.kinds.items()}
    likely = replace(plan, kinds=of_use)
    return likely if likely.least <= plan.budget else plan


def types(plan: Plan, losses: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The best type of each tensor that may be changed."""
    options = {
        entry.name: [
            Option(kind, plan.bytes_as(entry, kind), loss) for kind, loss in losses[entry.name].items()
        ]
        for entry in plan.lowered
    }
    return {name: option.kind for name, option in solve(options, plan.budget).items()}


def usual(plan: Plan, source: Source, folder: Path, settings: Settings) -> tuple[str, dict[str, str]]:
    """The largest usual level within the budget, and its type of each tensor that may be changed; empty for none."""
    for level in USUAL:
        entries = file_of(source, level, folder, settings, prove=False).entries
        kinds = {name: entries[name].type for name in plan.kinds}
        if sum(plan.bytes_as(entry, kinds[entry.name]) for entry in plan.lowered) <= plan.budget:
            return level, kinds
    return "", {}


def fast_types(
    plan: Plan,
    losses: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, Mapping[str, float]],
    level: tuple[str, Mapping[str, str]],
) -> Choice:
    """The fastest types whose loss is no more than the level's; the best where the level's is not known."""
    name, kinds = level
    options = {
        entry.name: [
            Option(kind, plan.bytes_as(entry, kind), losses[entry.name][kind], taken)
            for kind, taken in seconds[entry.name].items()
        ]
        for entry in plan.lowered
    }
    known = all(kind in seconds[tensor] for tensor, kind in kinds.items())
    most = sum(losses[tensor][kind] for tensor, kind in kinds.items()) if name and known else 0.0
    found = fastest(options, plan.budget, most)
    chosen = {tensor: option.kind for tensor, option in found.items()}
    taken = sum(option.seconds for option in found.values())
    if not most or not taken:
        return Choice(chosen)
    return Choice(chosen, name, sum(seconds[tensor][kind] for tensor, kind in kinds.items()) / taken)


def written(
    source: Source,
    plan: Plan,
    chosen: Mapping[str, str],
    out: Path,
    settings: Settings,
    prove: bool,
    report: Report,
) -> Made:
    """The file of these types, under the bits a weight that it has."""
    every = {name: entry.type for name, entry in plan.base.entries.items()} | dict(chosen)
    entries = [replace(entry, type=every[name]) for name, entry in plan.base.entries.items()]
    rate = 8 * sum(entry.bytes for entry in entries) / sum(entry.elements for entry in entries)
    label = f"{rate:.2f}bpw"
    check_free([out / f"{source.title}-{label}.gguf"])
    (made,) = make(source, [label], out, settings=replace(settings, types=every), prove=prove, report=report)
    return made


def measured(model: Probe, path: Path, names: Sequence[str]) -> Array:
    """KL divergence of the file at `path` by token of the chunks that are held back."""
    with gguf_source.open(path) as file:
        for name in names:
            rows = int(np.prod(file.shape(name)[:-1]))
            model.put(name, file.types[name], file.raw(name).reshape(rows, -1))
    return model.divergence(slice(1, None, 2))
