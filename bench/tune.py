"""Which threads, batch, type of keys and values, and guessing ahead are fastest for one file on this host.

What is tried takes turns, in another order each round, so that a slow minute of the machine hits all of it; what is
surely behind after three rounds is left out. Of what comes near the best, the most modest is picked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import sqrt
from statistics import median
from time import perf_counter, time
from typing import Any

from edge import kv
from edge.artifact import is_onnx, read_artifact
from edge.chat.loaded import LoadedModel
from edge.engine.sampling import Sampling
from edge.errors import DoesNotFit, RequestError
from edge.evidence import digest_of
from edge.gguf_header import Header
from edge.machine import host
from edge.measure.run import Run, loaded
from edge.measure.samples import quartile
from edge.measure.whole import counts_of
from edge.memory import (
    BATCH,
    CELL_PADDING,
    NODE_BYTES,
    Cache,
    compute_bytes,
    kv_bytes,
    logits_bytes,
    runtime_bytes,
)
from edge.planner import Plan, Threads, plan
from edge.rates import key_of
from edge.sizes import mib
from edge.store import resolve
from edge.tuned import SMALLEST, Finding, Option, Tuned

from .lookup import Counts, guesses
from .lookup_prompts import COAST
from .runtimes import check_writes

CONTEXT = 1024  # tokens, unless another is asked for
LEAST, MOST = 3, 7  # rounds before something is left out, and in all
EQUAL, WIDE = 0.01, 0.03  # how much slower may be picked: at least, and at most however wide the spread
MANY = 8  # cores on which not every count of threads is tried
SECONDS = 0.1  # of decoding, for one figure
ANSWER = 32  # tokens, to compare guessing with
PROMPTS = (
    f"{COAST}\n\nThe text once more, word for word:\n\n{COAST[:200]}",
    "Some thoughts on what makes a good day:",
)
THREADS = "prefill threads", "decode threads"

Call = Callable[[], float]  # gives tokens a second
Progress = Callable[[str, int, int], None]  # what is tried, rounds done, rounds in all


@dataclass(frozen=True)
class Tuning:
    """What was found, which is not kept yet, and the plan it holds for."""

    tuned: Tuned
    plan: Plan


def tune(
    ref: str,
    *,
    ctx: int | None = None,
    exhaustive: bool = False,
    progress: Progress = lambda doing, done, total: None,
) -> Tuning:
    """Measure `ref` at a context of `ctx` tokens. `exhaustive` then measures everything once more, with nothing left
    out, and says in the findings' reasons what each pick is worth there.

    Raises what `plan` raises, DoesNotFit, EngineError, and RequestError for what does not run by llama.cpp on the CPU.
    """
    decided = planned(ref, ctx)
    header = read_artifact(resolve(str(decided.path)))
    prompt, cores = prompt_of(decided.context), host().cpu.cores
    counts = tuple(range(1, cores + 1)) if cores <= MANY else counts_of(cores)

    def of(setting: str, calls: Mapping[str, Call]) -> Finding:
        found = finding(setting, compete(calls, partial(progress, f"trying {setting}")))
        if not exhaustive:
            return found
        whole = compete(calls, partial(progress, f"all of {setting}"), exhaustive=True)
        return replace(found, reason=f"{found.reason}; {share(found.pick, whole):.1%} of the best of all")

    with loaded(decided.path) as model:
        having = partial(opened, model, decided.context)
        with having({"usual": usual(header, decided.context)}) as runs:
            run = runs["usual"]
            prefill = of(
                THREADS[0], {str(count): partial(prefilling, run, count, prompt) for count in counts}
            )
            decode = of(THREADS[1], {str(count): partial(decoding, run, count, prompt) for count in counts})
        threads = Threads(int(prefill.pick), int(decode.pick))
        with having(batches(header, decided.context)) as runs:
            batch = of(
                "batch",
                {name: partial(prefilling, run, threads.prefill, prompt) for name, run in runs.items()},
            )
        with having(types(header, decided.context)) as runs:
            both = of(
                "keys and values",
                {name: partial(request, run, threads, prompt) for name, run in runs.items()},
            )
    decided = replace(decided, threads=threads, batch=int(batch.pick))
    with LoadedModel(decided) as talker:
        ahead = of("guessing ahead", {name: partial(answer, talker, name == "on") for name in ("on", "off")})
    # Fewer bits change what is said: shown, and the user's to ask for
    both = replace(both, pick=kv.DEFAULT, reason="the exact type; another is --kv's to ask for")
    tuned = Tuned(
        key=key_of(host()),
        digest=digest_of(decided.path),
        name=decided.artifact,
        prefill_threads=threads.prefill,
        decode_threads=threads.decode,
        batch=decided.batch,
        lookup=False if surely_off(ahead) else None,
        context=decided.context,
        measured_at=time(),
        findings=(prefill, decode, batch, both, ahead),
    )
    return Tuning(tuned, decided)


@contextmanager
def opened(model: Any, context: int, caches: Mapping[str, Cache]) -> Iterator[dict[str, Run]]:
    """A run for each of the caches. Those of one setting take turns, so they are open together, and no others are."""
    with ExitStack() as stack:
        runs = {}
        for name, cache in caches.items():
            runs[name] = Run(model, context, prompt_of(context), None, batch=cache.batch, kv=cache.type)
            stack.callback(runs[name].close)
        yield runs


def planned(ref: str, ctx: int | None) -> Plan:
    """What is to be tuned, at the context it is tuned at. Raises what `tune` raises before anything is loaded."""
    if is_onnx(resolve(ref)):
        raise RequestError(f"{ref} is ONNX, which has none of these settings", hint="name a GGUF model")
    decided = plan(ref, ctx=ctx)
    if ctx is None and decided.context > CONTEXT:
        decided = plan(ref, ctx=CONTEXT)
    decided.require_fit()
    check_writes(decided)
    if not decided.backend.endswith("-cpu"):
        raise RequestError(f"{ref} runs on {decided.backend}", hint="only settings of the CPU are tuned")
    if decided.context <= SMALLEST + ANSWER:
        raise RequestError(
            f"a context of {decided.context} is too short to tune",
            hint=f"it takes more than {SMALLEST + ANSWER} tokens",
        )
    require_fit_together(decided)
    return decided


def require_fit_together(decided: Plan) -> None:
    """Raise DoesNotFit where the contexts of a setting, which are open at once, need more than is available."""
    header = read_artifact(resolve(str(decided.path)))
    weights = decided.memory.weights_bytes + decided.memory.repacked_bytes
    available = decided.memory.available_bytes

    def need(context: int) -> int:
        settings = (batches(header, context), types(header, context))
        return weights + max(together(header, context, each.values()) for each in settings)

    if need(decided.context) <= available:
        return
    shorter = range(CELL_PADDING, decided.context, CELL_PADDING)
    longest = next((tokens for tokens in reversed(shorter) if need(tokens) <= available), None)
    raise DoesNotFit(
        f"to tune {decided.artifact} at a context of {decided.context}, of which several are open to take turns, takes "
        f"{mib(need(decided.context))}, and {mib(available)} are available",
        hint=f"a context of {longest} fits: --ctx {longest}" if longest else "pick a smaller model or level",
    )


def together(header: Header, context: int, caches: Iterable[Cache]) -> int:
    """Bytes of a process with a context for each of the caches, but for the weights that they share."""
    name = f"{header.architecture}.attention.sliding_window"
    if header.metadata.get(name):
        # a run keeps all cells of a layer with a window, as llama.cpp does by default
        header = replace(header, metadata={**header.metadata, name: context})
    process, graph = runtime_bytes(header, 0), len(header.tensors) * NODE_BYTES
    return process + sum(
        kv_bytes(header, context, cache)
        + compute_bytes(header, context, cache)
        + logits_bytes(header, cache)
        + runtime_bytes(header, context, cache)
        - process  # leaves what is kept of each cell
        + graph
        for cache in caches
    )


def prompt_of(context: int) -> int:
    """Tokens of the prompt that is measured: a whole batch where the context has room."""
    return min(BATCH, context - 1)


def usual(header: Header, context: int, kind: str = kv.DEFAULT) -> Cache:
    """The cache of a run with nothing changed but the type of its keys and values."""
    (found,) = kv.caches(header, 1, 1, rows=1, asked=kind, smaller=False)
    return replace(found, batch=prompt_of(context))


def batches(header: Header, context: int) -> dict[str, Cache]:
    """The caches of the runs that differ in how many tokens are computed at once."""
    prompt = prompt_of(context)
    return {str(size): replace(usual(header, context), batch=min(size, prompt)) for size in sizes(prompt)}


def types(header: Header, context: int) -> dict[str, Cache]:
    """The caches of the runs that differ in the type of keys and values: all this model can keep, the exact first."""
    return {kind: usual(header, context, kind) for kind in kv.CHOICES if not kv.impossible(header, kind)}


def sizes(prompt: int) -> list[int]:
    """Batches that differ for a prompt: multiples of 64, up to the first that takes it whole."""
    found = [SMALLEST]
    while found[-1] < min(prompt, BATCH):
        found.append(2 * found[-1])
    return found[::-1]  # larger first: of what is equally fast the usual one


def prefilling(run: Run, threads: int, prompt: int) -> float:
    """Tokens a second of a prompt."""
    run.threads(threads)
    run.cut(0)
    return prompt / run.step(prompt, 0)


def decoding(run: Run, threads: int, depth: int) -> float:
    """Tokens a second, one at a time from a depth on, whose cells hold whatever was last there."""
    run.threads(threads)
    run.cut(depth - 1)
    taken, steps = 0.0, 0
    while taken < SECONDS:
        run.cut(depth - 1)
        taken += run.step(1, depth - 1)
        steps += 1
    return steps / taken


def request(run: Run, threads: Threads, prompt: int) -> float:
    """Tokens a second of a prompt and as much time of decoding behind it, which is what a type of cache changes."""
    read = prefilling(run, threads.prefill, prompt)
    return 2 / (1 / read + 1 / decoding(run, threads.decode, prompt))


def answer(model: LoadedModel, ahead: bool) -> float:
    """Tokens a second of two short answers, of which one can quote its prompt, guessing ahead as by default or not."""
    settings, counts = (
        Sampling(temperature=0.0, max_tokens=ANSWER, ignore_eos=True),
        Counts() if ahead else None,
    )
    room = model.engine.context - ANSWER - 1
    texts = [model.engine.vocab.tokens(prompt)[-room:] for prompt in PROMPTS]
    start, tokens = perf_counter(), 0
    with guesses(model, counts):
        for ids in texts:
            tokens += sum(chunk.token is not None for chunk in model.engine.submit(ids, settings))
    return tokens / (perf_counter() - start)


def compete(
    calls: Mapping[str, Call],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    exhaustive: bool = False,
) -> tuple[Option, ...]:
    """Rounds of what is tried; after some what is surely behind is left out, and one that is alone needs no more."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    live = list(calls)
    for call in calls.values():
        call()  # to warm up
    for done in range(MOST):
        progress(done, MOST)
        for name in live[done % len(live) :] + live[: done % len(live)]:
            found[name].append(calls[name]())
        if done + 1 >= LEAST and not exhaustive:
            leader = max(live, key=lambda name: median(found[name]))
            live = [name for name in live if max(found[name]) >= min(found[leader])]
            if len(live) == 1:
                break
    progress(MOST, MOST)
    return tuple(option(name, rates) for name, rates in found.items())


def option(name: str, rates: Sequence[float]) -> Option:
    return Option(name, median(rates), min(rates), max(rates), quartile(rates, 3), len(rates))


def finding(setting: str, tried: Iterable[Option]) -> Finding:
    """The first of the options that comes so near the best that the difference is noise, or 1 %: they are in order from
    the most modest."""
    tried = tuple(tried)
    best = max(tried, key=lambda one: one.pace)
    picked = next(one for one in tried if one.pace >= (1 - tolerance(best)) * best.pace)
    if len(tried) == 1:
        why = "nothing else to try"
    elif picked is best:
        second = max((one for one in tried if one is not best), key=lambda one: one.pace)
        why = f"{best.pace / second.pace:.2f} times {second.name}"
    else:
        why = f"{picked.pace / best.pace:.1%} of {best.name}, the fastest"
    return Finding(setting, picked.name, why, tried)


def tolerance(best: Option) -> float:
    """The error of the best's median as a share of it, by its extremes; at least 1 % and at most 3 %."""
    return min(WIDE, max(EQUAL, (best.high - best.low) / best.median / 2 / sqrt(best.turns)))


def share(pick: str, whole: Iterable[Option]) -> float:
    """A pick's median as a share of the best's, where it was measured again."""
    found = {one.name: one.median for one in whole}
    return found[pick] / max(found.values())


def surely_off(ahead: Finding) -> bool:
    """Whether guessing cost time in every turn: its fastest was behind the slowest without."""
    on, off = ahead.tried
    return off.low > on.high


def rows(tuning: Tuning) -> list[Any]:
    """A row of the record for each thing that was tried."""
    from .record import Row, Spread

    return [
        Row(
            f"{one.setting} {each.name}",
            {"tps": Spread(each.median, each.low, each.high), "picked": "*" if each is one.picked else ""},
        )
        for one in tuning.tuned.findings
        for each in one.tried
    ]
