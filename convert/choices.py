"""Every file form of a model side by side: what is here, and what could be made of it, with this host's pick."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from edge import onnx_folder, onnx_speed, store
from edge import rates as measured
from edge.artifact import is_onnx, of_gguf, of_header, of_onnx_folder, refusals
from edge.budget import choose_context
from edge.candidate import HERE, MAKE, ONNX, Candidate
from edge.choose import Choice, choose
from edge.errors import ConversionError, EdgeError
from edge.evidence import digest_of, qualities_of
from edge.gguf_header import Header
from edge.goals import Goal
from edge.kv import row_multiple
from edge.machine import Host, host
from edge.memory import LOGITS_ROWS, Cache
from edge.onnx_folder import OnnxFolder, is_folder
from edge.planner import TYPICAL_PROMPT
from edge.rates import Rates
from edge.sizes import parse_size

from .candidates import Levels, candidates, fingerprint_of
from .source import title_of

MOST_FILES = 200  # of a folder that are looked at
CALIBRATE = "needs an importance matrix: --calibrate or --imatrix"


@dataclass(frozen=True)
class Found:
    """The choice, with the candidates behind it, and the levels' source: a checkpoint folder or a GGUF file."""

    choice: Choice
    candidates: tuple[Candidate, ...]
    source: Path

    @property
    def picked(self) -> Candidate:
        """Raises as `Choice.picked`."""
        name = self.choice.picked.artifact
        return next(one for one in self.candidates if one.artifact == name)


def choices(
    ref: str,
    goal: Goal,
    *,
    ctx: int | None = None,
    memory: float | str | None = None,
    name: str | None = None,
    calibrated: bool = False,
    on: Host | None = None,
) -> Found:
    """Choose among the files of a model that are here and the levels it could be converted to.

    Here are: the model itself, those in the store, and the GGUF files in its folder, in the folder above a
    checkpoint's and in the current one that have its fingerprint; ONNX folders beside it that begin with its name.

    ctx, memory  as `edge.plan` takes them
    name         what converted files are to begin with
    calibrated   levels that need an importance matrix get one

    Raises as `edge.plan` and as `convert` do before they load or write, RequestError as `choose`.
    """
    machine = on or host()
    model = store.resolve(ref)
    budget = machine.memory.available_bytes
    if memory is not None:
        budget = min(budget, parse_size(memory))
    rates = measured.load(machine)
    if is_onnx(model):
        found = [of_folder(model, ctx, machine, rates)]
    else:
        found = [*of_model(model, ctx, name, calibrated, machine, rates)]
    chosen = choose(
        found,
        rates if on_cpu(machine) else None,
        goal,
        budget=budget,
        unmeasured=measured.why_none(machine) if on_cpu(machine) else not_predicted(machine),
        workers=machine.cpu.performance_cores,
    )
    return Found(chosen, tuple(found), model.path)


def of_model(
    model: store.Model,
    ctx: int | None,
    name: str | None,
    calibrated: bool,
    machine: Host,
    rates: Rates | None,
) -> Iterator[Candidate]:
    """A GGUF model or a checkpoint, its other files, and its levels that are not among them."""
    graphs = [*graphs_of(model.path, name)]
    try:
        made = candidates(model.path, name=name)
    except ConversionError:  # a family that llama.cpp does not compute
        if not graphs:
            raise
        made = Levels(title_of(model.path, name), (), {}, "", "")
    levels = set()
    if made.of_level:  # a checkpoint itself does not run
        source = replace(of_file(model, ctx, machine), is_source=True)
        levels.add(source.level)
        yield source
    for other in others(model, made):
        with suppress(EdgeError):  # one that is damaged is no candidate
            one = of_folder(other, ctx, machine, rates) if is_onnx(other) else of_file(other, ctx, machine)
            if made.of_level and one.requantized_from == made.of_level:
                one = replace(one, ceiling=made.types)
            levels.add(one.level)
            yield one
    for graph in graphs:
        one = of_graph(graph, ctx, machine, rates)
        if one.level not in levels:
            yield one
    note = f"made from {made.of_level}, and what that lost stays lost" if made.of_level else ""
    for level in made.levels:
        if level.level.upper() not in levels:
            yield Candidate(
                artifact=level.name,
                level=level.level.upper(),
                bytes=level.bytes,
                memory_bytes=needed(level.header, ctx, machine),
                where=MAKE,
                header=level.header,
                ceiling=made.types,
                generates=not refusals(level.header),
                blocked=CALIBRATE if level.needs_importance and not calibrated else "",
                note=note,
            )


def of_file(model: store.Model, ctx: int | None, machine: Host) -> Candidate:
    """A GGUF file that is here. Raises as `edge.plan`."""
    found = of_gguf(model, machine)
    assert found.header is not None
    context, _ = choose_context(found.trained, ctx)
    return Candidate(
        artifact=model.name if model.added else str(model.path),
        level=found.header.quantization,
        bytes=found.header.file_bytes,
        memory_bytes=found.predict(context, cache_of(found.header, machine), 0).total_bytes,
        where=HERE,
        header=found.header,
        qualities=qualities_of(model.path),
        generates=not found.refusals,
    )


def of_folder(model: store.Model, ctx: int | None, machine: Host, rates: Rates | None) -> Candidate:
    """An ONNX folder that is here. Raises as `edge.plan`."""
    found = of_graph(onnx_folder.read(model.path), ctx, machine, rates)
    return replace(
        found, artifact=model.name if model.added else str(model.path), bytes=model.bytes, where=HERE
    )


def of_graph(folder: OnnxFolder, ctx: int | None, machine: Host, rates: Rates | None) -> Candidate:
    """An ONNX folder that could be made."""
    found = of_onnx_folder(folder)
    context, _ = choose_context(found.trained, ctx)
    prompt = min(TYPICAL_PROMPT, context)
    speed, why, workers = None, "", machine.cpu.performance_cores
    if rates is not None and not rates.marks:
        speed, why = onnx_speed.predict(folder, rates, threads=workers, depth=prompt, prompt=prompt)
    return Candidate(
        artifact=str(folder.path),
        level=f"{ONNX} {folder.level}".strip(),
        bytes=folder.bytes,
        memory_bytes=found.predict(context, Cache(type="f32", workers=workers), 0).total_bytes,
        where=MAKE,
        speed=speed,
        generates=not found.refusals,
        note=f"no speed: {why.replace('; ', ', ')}" if why else "",
    )


def graphs_of(path: Path, name: str | None) -> Iterator[OnnxFolder]:
    """The ONNX folders that an encoder's checkpoint could become."""
    if path.is_dir():
        from .onnx.candidates import folders

        with suppress(ConversionError):  # a model that has no ONNX form here
            yield from folders(path, name)


def needed(header: Header, ctx: int | None, machine: Host) -> int:
    """Bytes that a file of this header would take to run, at the context that `edge plan` would choose."""
    found = of_header(header, machine)
    context, _ = choose_context(found.trained, ctx)
    return found.predict(context, cache_of(header, machine), 0).total_bytes


def cache_of(header: Header, machine: Host) -> Cache:
    """As `edge plan` keeps one conversation's."""
    rows, _ = row_multiple(header, machine.cpu.isa, on_cpu(machine))
    return Cache(rows=LOGITS_ROWS if rows == 1 else 1, workers=machine.cpu.performance_cores)


def on_cpu(machine: Host) -> bool:
    """Whether GGUF files run where kernels were measured."""
    return machine.chosen.backend.endswith("-cpu")


def not_predicted(machine: Host) -> str:
    return f"they are not predicted for {machine.chosen.backend}"


def others(model: store.Model, made: Levels) -> Iterator[store.Model]:
    """Other files of the same model, each once whatever it is called."""
    seen = {model.path.resolve()}
    digests = set() if model.path.is_dir() else {digest_of(model.path)}
    for other in (*kept(), *lying(model, made.title)):
        path = other.path.resolve()
        if path in seen:
            continue
        seen.add(path)
        if is_onnx(other):
            yield other
        elif path.is_file() and made.fingerprint and fingerprint_of(path) == made.fingerprint:
            digest = digest_of(path)
            if digest not in digests:
                digests.add(digest)
                yield other


def kept() -> Iterator[store.Model]:
    """The GGUF models in the store; a damaged store is no reason to fail for another model."""
    with suppress(EdgeError):
        yield from (model for model in store.models() if model.path.suffix == ".gguf")


def lying(model: store.Model, title: str) -> Iterator[store.Model]:
    """GGUF files and ONNX folders where this model's would be."""
    from .onnx.levels import LEVELS

    path = model.path.resolve()
    for folder in dict.fromkeys([path.parent, Path.cwd()]):
        with suppress(OSError):
            files = [path for path in sorted(folder.glob("*.gguf"))[:MOST_FILES] if path.is_file()]
            graphs = [folder / f"{title}-{level}" for level in LEVELS]
            for beside in (*files, *filter(is_folder, graphs)):
                with suppress(EdgeError):
                    yield store.resolve(str(beside))
