"""Which form of a model is faster on this host, measured with the caller's kind of text and remembered.

Speed decides between forms that keep their labels: levels that cost more than half a point of accuracy (ONNX int4, GGUF
below five bits a weight) are timed only among themselves, where no other is there. The reason names every level.

For one text nothing is timed, which takes longer than the text: it is read by what was the fastest for other texts,
else by the smallest form, which loads soonest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from edge.candidate import FAITHFUL
from edge.engine.encoder import GgufEncoder
from edge.errors import EngineError, RequestError
from edge.home import picks_file
from edge.machine import Rejected, host
from edge.machine.installed import installed
from edge.onnx.encoder import OnnxEncoder
from edge.store.records import name_it
from edge.tasks.artifacts import Artifact
from edge.tasks.encoder import Encoder, Tokens
from edge.tasks.stream import batches

TEXTS, TOKENS, CHARACTERS = 64, 768, 4096  # of a sample, and of a text of it
ROUNDS, LEAST, SECONDS = 7, 3, 1.0  # one round suffices where it takes that long
FAR = 1.5  # times as long as the fastest: not timed again
MOST_KEPT = 64
SAMPLE = (
    "Operating profit rose to EUR 13.1 million from EUR 8.7 million a year before.",
    "what a waste of an evening",
    "How do I change the address on my account? The form gives me an error every time I save it.",
    "The ferry left at 7:45, later than the timetable said, and nobody on the quay seemed to mind.",
    "Please cancel my order.",
    "A gorgeous, witty and well acted film that stays with you long after the lights have come on again.",
    "The committee will meet in Helsinki on 3 April to decide on the proposals of the three member states.",
    "card not working",
)  # fmt: skip


@dataclass(frozen=True)
class Pick:
    """`chosen` by its title, why, and what else was possible. `seconds` of the processor for the sample, by title."""

    chosen: str
    reason: str
    rejected: tuple[Rejected, ...]
    seconds: Mapping[str, float]


def pick(
    name: str,
    forms: Sequence[Artifact],
    load: Callable[[Artifact], OnnxEncoder | GgufEncoder],
    sample: Sequence[str],
    threads: int | None,
) -> Encoder:
    """The fastest of several forms of one model, loaded; `reason` is set and says what was measured.

    Raises RequestError where the forms are of different models, and what `load` raises where none loads.
    """
    texts = [text[:CHARACTERS] for text in sample if text.strip()][:TEXTS] or list(SAMPLE)
    faithful = [form for form in forms if form.level in FAITHFUL]
    lesser = tuple(
        Rejected(form.title, "its labels may differ; name it to use it")
        for form in forms
        if faithful and form not in faithful
    )
    forms = faithful or forms
    titles = [form.title for form in forms]
    base = base_of(forms, threads)
    one = len(texts) == 1
    kind = "" if one else kind_of(texts)
    seconds = remembered(base, kind, titles)
    if one and len(forms) > 1 and not seconds:
        smallest = min(forms, key=size_of)
        return told(load(smallest), untimed(smallest, forms, lesser))
    if len(forms) == 1 or seconds:
        best = fastest(forms, seconds) if seconds else forms[0]
        return told(load(best), decided(best, forms, seconds, lesser))
    loaded, failed = load_all(forms, load)
    try:
        same_model(name, list(loaded.values()))
        seconds = measure({form.title: encoder for form, encoder in loaded.items()}, texts)
        best = fastest(list(loaded), seconds)
    except BaseException:
        for encoder in loaded.values():
            encoder.close()
        raise
    for form, encoder in loaded.items():
        if form != best:
            encoder.close()
    if not failed:
        remember(f"{base} {kind}", seconds)
    return told(loaded[best], decided(best, list(loaded), seconds, (*failed, *lesser)))


def load_all(
    forms: Sequence[Artifact], load: Callable[[Artifact], OnnxEncoder | GgufEncoder]
) -> tuple[dict[Artifact, OnnxEncoder | GgufEncoder], tuple[Rejected, ...]]:
    """Those that load, and why the others do not. A file that is unsafe stops it all, and so does none that loads."""
    loaded: dict[Artifact, OnnxEncoder | GgufEncoder] = {}
    failed = []
    problem: EngineError | RequestError | None = None
    try:
        for form in forms:
            try:
                loaded[form] = load(form)
            except (EngineError, RequestError) as error:
                problem = problem or error
                failed.append(Rejected(form.title, str(error)))
        if problem and not loaded:
            raise problem
    except BaseException:
        for encoder in loaded.values():
            encoder.close()
        raise
    return loaded, tuple(failed)


def same_model(name: str, encoders: Sequence[Encoder]) -> None:
    """Raise RequestError where the forms do not do the same with the same labels."""
    first, *others = (encoder.about for encoder in encoders)
    for other in others:
        if (other.task, other.labels, other.width) != (first.task, first.labels, first.width):
            raise RequestError(
                f"{name} stands for different models: {first.path.name} ({first.task}, {len(first.labels)} labels) "
                f"and {other.path.name} ({other.task}, {len(other.labels)} labels)",
                hint="name one of them",
            )


def measure(encoders: Mapping[str, Encoder], texts: Sequence[str]) -> dict[str, float]:
    """Median seconds of the processor for the texts, by title, form after form: batches and workers as in use.

    Every worker has one thread, so these are to each other as what a person waits, and what other processes take does
    not count. A form that took FAR times as long as the fastest is timed no more.
    """
    lengths = [len(one.ids) for one in next(iter(encoders.values())).tokenize(texts)]
    count = max(1, sum(total <= TOKENS for total in accumulate(lengths)))  # the same texts for all of them
    groups = list(batches(lengths[:count]))
    work = {}
    for title, encoder in encoders.items():
        tokens = encoder.tokenize(texts[:count])
        work[title] = [[tokens[at] for at in group] for group in groups]
    times: dict[str, list[float]] = {title: [] for title in encoders}
    pools = {title: ThreadPoolExecutor(encoder.about.workers) for title, encoder in encoders.items()}
    left, started = list(encoders), perf_counter()
    try:
        for title, encoder in encoders.items():  # each worker once, for what it makes when first needed
            spread(pools[title], encoder, [work[title][-1][:1]] * encoder.about.workers)
        for round_ in range(1, ROUNDS + 1):
            for title in left:
                before = process_time()
                spread(pools[title], encoders[title], work[title])
                times[title].append(process_time() - before)
            least = min(min(times[title]) for title in left)
            left = [title for title in left if min(times[title]) <= FAR * least]
            spent = perf_counter() - started
            if len(left) == 1 or (round_ >= LEAST and spent > SECONDS) or spent > 2 * SECONDS:
                break
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)
    return {title: median(found) for title, found in times.items()}


def spread(pool: ThreadPoolExecutor, encoder: Encoder, work: Sequence[Sequence[Tokens]]) -> None:
    """Run batches on an encoder's workers. Raises what it raises."""
    deque(pool.map(encoder.run, work), maxlen=0)


def fastest(forms: Sequence[Artifact], seconds: Mapping[str, float]) -> Artifact:
    return min(forms, key=lambda form: seconds[form.title])


def decided(
    best: Artifact, forms: Sequence[Artifact], seconds: Mapping[str, float], left_out: Sequence[Rejected]
) -> Pick:
    """The choice by what was measured: every form's figure beside the chosen one's."""
    slower = sorted((form for form in forms if form != best), key=lambda form: seconds[form.title])
    ratio = {form: seconds[form.title] / seconds[best.title] for form in slower}
    rejected = [Rejected(form.title, f"takes {factor:.2f} times as long") for form, factor in ratio.items()]
    figures = ", ".join(f"{form.title} takes {factor:.2f} times as long" for form, factor in ratio.items())
    why = f"fastest of {len(forms)} here ({figures})" if figures else "the only one that keeps its labels"
    return Pick(best.title, reason_of(why, left_out), (*rejected, *left_out), {**seconds})


def untimed(best: Artifact, forms: Sequence[Artifact], left_out: Sequence[Rejected]) -> Pick:
    """The choice for one text."""
    others = [Rejected(form.title, "is larger") for form in forms if form != best]
    why = f"the smallest of {len(forms)}, which are not timed for one text"
    return Pick(best.title, reason_of(why, left_out), (*others, *left_out), {})


def reason_of(why: str, left_out: Sequence[Rejected]) -> str:
    """One line for people."""
    return "; ".join([why, *(f"{one.choice} left out: {one.reason}" for one in left_out)])


def told(encoder: OnnxEncoder | GgufEncoder, found: Pick) -> Encoder:
    """The encoder with the reason, which begins with what runs and how."""
    about = encoder.about
    threads = "1 thread" if about.workers == 1 else f"{about.workers} threads"
    form = "ONNX" if isinstance(encoder, OnnxEncoder) else "GGUF"
    encoder.reason = (
        f"{about.path.name} · {' '.join(filter(None, (form, about.level)))}, {threads}: {found.reason}"
    )
    return encoder


def base_of(forms: Sequence[Artifact], threads: int | None) -> str:
    """A hash of what the times depend on but for the texts: the files, the backends' versions, the CPU, threads."""
    build, cpu = installed(), host().cpu
    known: dict[str, Any] = {
        "files": [
            [str(file), file.stat().st_size, file.stat().st_mtime_ns]
            for form in forms
            for file in files_of(form)
        ],
        "versions": [build.onnxruntime, build.llama_cpp],
        "cpu": asdict(cpu),
        "threads": threads,
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def kind_of(texts: Sequence[str]) -> str:
    """Texts of about a length, in powers of two, and how many: a full batch costs less a text than one alone."""
    return f"{round(math.log2(median(map(len, texts))))} {min(len(texts), 8)}"


def size_of(form: Artifact) -> int:
    """Bytes of a form's weights."""
    return sum(file.stat().st_size for file in files_of(form))


def files_of(form: Artifact) -> list[Path]:
    """The files that hold a form's weights."""
    path = form.path.absolute()
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file() and ".onnx" in file.name)
    return [path]


def remembered(base: str, kind: str, titles: Sequence[str]) -> dict[str, float]:
    """Seconds by title as measured before, for this kind of texts or, without one, for the last; empty if never."""
    for key, found in reversed(picks().items()):
        if (key == f"{base} {kind}" if kind else key.startswith(base)) and isinstance(found, dict):
            values = [found.get(title) for title in titles]
            if all(isinstance(value, float) and 0 < value < math.inf for value in values):
                return {title: found[title] for title in titles}
    return {}


def remember(key: str, seconds: Mapping[str, float]) -> None:
    """Keep what was measured, atomically; where the disk refuses, it is measured again."""
    kept = picks()
    kept.pop(key, None)
    kept[key] = dict(seconds)
    newest = dict(list(kept.items())[-MOST_KEPT:])
    path = picks_file()
    draft = path.with_name(f"{path.name}.partial")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(newest), encoding="utf-8")
        name_it(draft, path)


def picks() -> dict[str, Any]:
    """What the file holds; nothing where it is absent or damaged."""
    try:
        found = json.loads(picks_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
