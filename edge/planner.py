"""The decision before anything is loaded: backend, threads, context, memory, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from edge import kv as kept
from edge import onnx_speed, store, tuned
from edge import rates as measured
from edge import speed as speeds
from edge.artifact import Artifact, is_onnx, of_gguf, of_onnx
from edge.budget import Room, fit_context
from edge.errors import DoesNotFit, RequestError
from edge.machine import Host, Rejected, host
from edge.memory import BATCH, LOGITS_ROWS, Cache, Memory
from edge.rates import Rates
from edge.sizes import mib, parse_size
from edge.speed import Speed
from edge.tuned import Tuned

ALL_LAYERS = 999  # llama.cpp's way to say: every layer on the accelerator
MAX_THREADS = 512
TYPICAL_PROMPT = 512  # tokens


@dataclass(frozen=True)
class Threads:
    """Threads for the prompt (arithmetic-bound) and for each next token (bandwidth-bound)."""

    prefill: int
    decode: int


@dataclass(frozen=True)
class Plan:
    """How a model will run here, or why it will not. Memory in bytes, context in tokens.

    sequences     slots: texts that are alive at once
    parallel      conversations at a time, each with `context` tokens of its own; 1: the slots share them
    unified       several slots share the cells of one prompt
    batch         rows of a prompt that are computed at once
    lookup        whether to guess ahead where nobody says; None where it pays and the text stays the same
    kv, flash     type of keys and values; flash attention, where None leaves it to llama.cpp
    row_multiple  by how many rows a step must go so that a row's sums are the same in all
    mmap          the file's pages are mapped; else it is read, which leaves less where most of it is rearranged
    speed         predicted for a prompt of 512 tokens and what follows it, `parallel` conversations decoding at a time,
                  or for an encoder's texts of 128 tokens in batches; None where nothing was measured to predict it from
    speed_reason  what the prediction goes by, or why there is none
    nearest       in words, what would fit when this does not; empty otherwise
    advice        settings by the names of `edge.Sampling`, and a `system` prompt, with which it is known to do best
    """

    artifact: str
    path: Path
    level: str
    backend: str
    reason: str
    rejected: tuple[Rejected, ...]
    threads: Threads
    context: int
    sequences: int
    parallel: int
    unified: bool
    batch: int
    lookup: bool | None
    kv: str
    flash: bool | None
    row_multiple: int
    mmap: bool
    gpu_layers: int
    memory: Memory
    fits: bool
    speed: Speed | None
    speed_reason: str
    nearest: str
    reasons: tuple[str, ...]
    advice: Mapping[str, Any]

    def require_fit(self) -> Plan:
        """This plan. Raises DoesNotFit, naming need, supply and the nearest setting that fits, if it does not."""
        if not self.fits:
            raise DoesNotFit(
                f"{self.artifact} needs {mib(self.memory.total_bytes)} at a context of {self.context} "
                f"and {mib(self.memory.available_bytes)} are available",
                hint=self.nearest,
            )
        return self


def plan(
    ref: str,
    *,
    ctx: int | str | None = None,
    memory: float | str | None = None,
    threads: int | None = None,
    sequences: int = 1,
    parallel: int = 1,
    kv: str | None = None,
    scoring: bool = False,
    beside: int = 0,
    guesses: bool = False,
    mmap: bool | None = None,
    on: Host | None = None,
) -> Plan:
    """Decide how `ref` runs on this machine, reading only the file's header, or an ONNX folder's config.json.

    ctx        tokens of context, or "auto" for as many as fit; by default what the model was trained for, at most 4,096
    memory     a budget in bytes, or a text such as "512MiB"; by default what is available
    threads    for prefill and decode alike; by default as `edge bench tune` found for this file or
               `edge host --measure` for this host, else one a core
    sequences  answers that share one prompt
    parallel   conversations at a time, each with `ctx` tokens of its own
    kv         type of keys and values: "f16", "q8_0", "q4_0"; by default f16, or what fits where more is asked for
    scoring    for label scoring, which adds in f32 and without flash attention
    beside     bytes of what is loaded beside the model: its adapters
    guesses    a step may hold guesses, which take a row of logits each, whatever the type of the weights
    mmap       map the file or read it; by default what leaves less in memory
    on         the host to plan for; by default this one

    Raises ModelNotFound, UnsafeFile (BadGGUF) for what cannot be read, RequestError for a setting out of range.
    """
    kept.check_counts(sequences, parallel)
    model = store.resolve(ref)
    machine = on or host()
    found = of_onnx(model) if is_onnx(model) else of_gguf(model, machine, mmap)
    on_cpu = found.chosen.backend.endswith("-cpu")
    usual = found.chosen.backend == "llama.cpp-cpu" and not found.encodes
    rates = measured.load(machine) if on_cpu else None
    tuned_for_it = tuned.load(machine, model.path) if usual else None
    use, threads_reason = choose_threads(machine, threads, tuned_for_it, rates if usual else None)
    # It was found with one conversation alone; beside others a step's rows have to stay in one batch.
    settings = tuned_for_it if parallel == 1 and not scoring else None
    batch, lookup = (settings.batch, settings.lookup) if settings else (BATCH, None)
    budget = machine.memory.available_bytes
    if memory is not None:
        budget = min(budget, parse_size(memory))

    # Fewer bits only where more was asked for than the default.
    smaller = kv is None and (ctx is not None or parallel > 1)

    rows, rows_reason = kept.row_multiple(found.header, machine.cpu.isa, on_cpu)
    # Without being asked a step holds guesses only where they are summed as one row is.
    guessed = LOGITS_ROWS if guesses or rows == 1 else 1

    def caches(slots: int) -> tuple[Cache, ...]:
        if scoring:
            return (Cache(sequences, type="f32", flash=False, rows=max(sequences, LOGITS_ROWS), batch=batch),)
        answers = min(sequences, slots) if parallel > 1 else sequences
        ways = kept.caches(found.header, answers, slots, rows=guessed, asked=kv, smaller=smaller)
        return tuple(replace(way, batch=batch, workers=use.prefill) for way in ways)

    room = Room(found, budget, beside, caches)
    tried = caches(parallel)
    context, context_reason = fit_context(room, tried, ctx)
    needs = [room.need(context, cache) for cache in tried]
    at = next((i for i, needed in enumerate(needs) if needed.total_bytes <= budget), len(tried) - 1)
    cache, needed = tried[at], needs[at]
    fits = needed.total_bytes <= budget
    left_out = []
    if fits and ctx is None and context < found.trained:
        more = room.need(found.trained, cache).total_bytes - needed.total_bytes
        ask = f"ask for it with --ctx {found.trained}"
        left_out = [Rejected(f"context {found.trained}", f"takes {mib(more)} more; {ask}")]
    too_large = (
        Rejected(
            f"KV of {other.type}", f"takes {mib(more.total_bytes)} in all, and {mib(budget)} are available"
        )
        for other, more in zip(tried[:at], needs[:at], strict=True)
    )

    rows_reason = rows_reason if cache.split else ""
    speed, speed_reason = predicted(found, machine, rates, use, context, parallel, cache.type)
    return Plan(
        artifact=model.name,
        path=model.path,
        level=found.level,
        backend=found.chosen.backend,
        reason=found.chosen.reason,
        rejected=(*found.chosen.rejected, *left_out, *too_large),
        threads=use,
        context=context,
        sequences=cache.sequences,
        parallel=parallel,
        unified=cache.sequences > 1 and not cache.split,
        batch=batch,
        lookup=lookup,
        kv=cache.type,
        flash=kept.flash(cache),
        row_multiple=rows,
        mmap=found.mapped,
        gpu_layers=0 if on_cpu else ALL_LAYERS,
        memory=needed,
        fits=fits,
        speed=speed,
        speed_reason=speed_reason,
        nearest="" if fits else room.nearest(context, parallel),
        reasons=(
            threads_reason,
            *tuned_reasons(settings),
            context_reason,
            *filter(None, [found.mapped_reason]),
            *kept.reasons(cache, context, asked=kv, scoring=scoring),
            *filter(None, [rows_reason]),
            *found.refusals,
        ),
        advice=model.advice,
    )


def choose_threads(
    machine: Host, asked: int | None, tuned_for_it: Tuned | None = None, rates: Rates | None = None
) -> tuple[Threads, str]:
    """Threads for prefill and decode, and why: as asked, as measured with this file, as measured of this host, or one
    a core. Rates with marks against them are no evidence."""
    if asked is not None:
        if not 1 <= asked <= MAX_THREADS:
            raise RequestError(f"{asked} threads is out of range", hint=f"give 1 to {MAX_THREADS}")
        return Threads(asked, asked), f"threads {asked}: asked for"
    if tuned_for_it:
        use = Threads(tuned_for_it.prefill_threads, tuned_for_it.decode_threads)
        return use, f"{counts(use)}: fastest with this file by edge bench tune on {tuned_for_it.when}"
    if rates and not rates.marks:
        use = Threads(rates.prefill_threads, rates.decode_threads)
        when = date.fromtimestamp(rates.measured_at).isoformat()
        return use, f"{counts(use)}: fastest on this host by edge host --measure on {when}"
    cores = machine.cpu.performance_cores
    kind = "performance core" if cores < machine.cpu.physical else "core"
    return Threads(
        cores, cores
    ), f"threads {cores}: one a {kind} this process may use, for prefill and decode"


def counts(use: Threads) -> str:
    """Threads in words."""
    if use.prefill == use.decode:
        return f"threads {use.decode}"
    return f"threads {use.prefill} for prefill and {use.decode} for decode"


def tuned_reasons(found: Tuned | None) -> Iterator[str]:
    """What else was found for this file and differs from what is usual."""
    if found and found.batch != BATCH:
        yield f"batch {found.batch}: fastest with this file by edge bench tune on {found.when}"
    if found and found.lookup is False:
        yield f"no guessing ahead: it cost time with this file by edge bench tune on {found.when}"


def predicted(
    found: Artifact,
    machine: Host,
    rates: Rates | None,
    use: Threads,
    context: int,
    parallel: int,
    kv: str,
) -> tuple[Speed | None, str]:
    """The speed of a prompt and of the tokens after it, and what that goes by or why it is not known."""
    if not found.chosen.backend.endswith("-cpu"):
        return None, f"speed is not predicted for {found.chosen.backend}"
    if rates is None:
        return None, measured.why_none(machine)
    if found.header is not None and not found.encodes and kv != "f16":
        return None, f"speed is predicted for keys and values in f16, and not in {kv}"
    prompt = min(TYPICAL_PROMPT, context)
    speed: Speed | None = None
    why = "a part of this model was not measured: a type of its tensors, or recurrent layers"
    if found.folder is not None:
        speed, why = onnx_speed.predict(found.folder, rates, threads=use.prefill, depth=prompt, prompt=prompt)
    elif found.header is not None:
        speed = speeds.predict(
            found.header,
            rates,
            prefill_threads=use.prefill,
            decode_threads=use.decode,
            depth=prompt,
            prompt=prompt,
            rows=parallel,
        )
    if speed is None:
        return None, f"speed is not predicted: {why}"
    when = date.fromtimestamp(rates.measured_at).isoformat()
    marks = f", which is no evidence to choose by: {', '.join(rates.marks)}" if rates.marks else ""
    return speed, f"by what was measured of this host on {when}{marks}"
