"""What a quantization level costs in quality, and what it buys in bytes and speed: one row a file.

Base and levels decode the same chunk side by side and are compared row by row, so nothing is stored but a few
numbers a token.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge import evidence, gguf_header, store
from edge.artifact import read_artifact
from edge.errors import DoesNotFit, EngineError, RequestError, StoreError
from edge.planner import Plan, plan
from edge.sizes import mib

from .logits import LOGITS_BYTES, Logits
from .perplexity import Array, Scores, cut, divergence, perplexity, score, scored
from .runtimes import check_gguf
from .speed import CONTEXT, DECODE_TOKENS, PREFILL_TOKENS, SHORT_PROMPT, Speed, Worker, summary

REPETITIONS = 3  # counted ones, after one that warms up
SHORTEST = 16  # tokens of context
MOST_NATS = 700  # a token; the exponential of more than 709 is no float64

T = TypeVar("T")

# what is done, how much of it, of how much
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Row:
    """One file. Divergences from the base are None for the base itself (see perplexity.Divergence).

    perplexity and its standard error over the scored tokens; kld_* in nats; delta_p_*, top1_agreement as shares of
    one; rates in tokens a second, medians, with their spread in `speed`; peak_rss_bytes of a process of ours that
    prefills and decodes.
    """

    file: Path
    level: str
    perplexity: float
    perplexity_error: float
    kld_mean: float | None
    kld_error: float | None
    kld_median: float | None
    kld_p99: float | None
    kld_max: float | None
    delta_p_mean: float | None
    delta_p_rms: float | None
    top1_agreement: float | None
    bits_per_weight: float
    bytes: int
    prefill_tps: float
    decode_tps: float
    peak_rss_bytes: int
    speed: Speed | None = None


@dataclass(frozen=True)
class Report:
    """The rows, the base's first; `tokens` were scored, in chunks of `context` tokens of `text`."""

    text: Path
    context: int
    chunks: int
    tokens: int
    rows: tuple[Row, ...]


def quality(
    base: str,
    levels: Sequence[str],
    text: Path,
    *,
    ctx: int = 512,
    chunks: int | None = None,
    progress: Progress = lambda doing, done, total: None,
) -> Report:
    """Measure `base` and each of `levels` on the first `chunks` chunks of a text, or on all.

    Raises what `plan` raises, EngineError, DoesNotFit where not even one level fits beside the base, and
    RequestError for a text that is unreadable or too short, a level of another vocabulary, and what is no GGUF file.
    """
    if ctx < SHORTEST:
        raise RequestError(f"a context of {ctx} is too short to measure", hint=f"give {SHORTEST} or more")
    words, refs = read_text(text), (base, *levels)
    plans = [plan(ref, ctx=ctx) for ref in refs]
    for decided in plans:
        check_gguf(decided, "edge bench quality")
    measured = [
        side_by_side([plans[0], *(plans[index] for index in group)], words, chunks, progress)
        for group in groups([decided.memory.total_bytes + LOGITS_BYTES for decided in plans], plans[0])
    ]
    nll_base = measured[0].nll[0]
    rows = [costs(base, nll_base, progress)]
    for part in measured:
        for nll, kld, same_top in zip(part.nll[1:], part.kld, part.same_top, strict=True):
            row = costs(refs[len(rows)], nll, progress)
            rows.append(replace(row, **asdict(divergence(nll_base, nll, kld, same_top))))
    tokens = len(nll_base)
    report = Report(text, ctx, tokens // scored(ctx), tokens, tuple(rows))
    keep(report, plans[0].artifact)
    return report


def keep(report: Report, base: str) -> None:
    """Let `edge plan --all` choose by what was measured. A disk that refuses costs a warning, not the report."""
    names = ("kld_mean", "kld_error", "perplexity", "top1_agreement")
    try:
        evidence.record(
            evidence.row_of(
                row.file,
                level=row.level,
                base=report.rows[0].file,
                base_name=base,
                text=report.text,
                tokens=report.tokens,
                context=report.context,
                **{name: getattr(row, name) for name in names},
            )
            for row in report.rows
        )
    except (StoreError, OSError) as error:
        warnings.warn(f"what was measured is not kept: {error}", stacklevel=2)


def read_text(path: Path) -> str:
    """The text as llama-perplexity reads it: byte for byte, without one line end at its end.

    Raises RequestError for a file that cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n")
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})", hint="give a text file") from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not UTF-8 at byte {error.start}", hint="give a text file in UTF-8"
        ) from error


def groups(needs: Sequence[int], base: Plan) -> list[list[int]]:
    """Which levels are loaded beside the base at once: by index from 1, as many as memory allows.

    `needs` are bytes a file, the base's first. Raises DoesNotFit where base and one level are too much.
    """
    room = base.memory.available_bytes - needs[0]
    if room < max(needs[1:], default=0):
        raise DoesNotFit(
            f"base and level take {mib(needs[0] + max(needs[1:], default=0))} side by side and "
            f"{mib(base.memory.available_bytes)} are available",
            hint="compare with a smaller base, such as Q8_0",
        )
    found: list[list[int]] = [[]]
    for index, need in enumerate(needs[1:], 1):
        if sum(needs[other] for other in found[-1]) + need > room:
            found.append([])
        found[-1].append(index)
    return found


def side_by_side(plans: Sequence[Plan], words: str, limit: int | None, progress: Progress) -> Scores:
    """Decode a text with all of these models in step, the base first; arrays over all scored tokens.

    Raises RequestError for a short text or another vocabulary, EngineError for logits that are no numbers.
    """
    parts, doing = [], "comparing " + ", ".join(decided.artifact for decided in plans)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(plans[0].threads.prefill))
        models = [stack.enter_context(Logits(decided)) for decided in plans]
        away = stack.enter_context(ThreadPoolExecutor(1))
        ids = models[0].vocab.tokens(words)
        for model in models[1:]:
            check_vocabulary(models[0], model, words, ids)
        ctx = plans[0].context
        chunks = cut(ids, ctx, limit, bos=ids[0] if models[0].vocab.adds_bos else None)
        for done, chunk in enumerate(chunks):
            progress(doing, done, len(chunks))
            parts += beside(away, partial(score_chunk, models, chunk, pool), models, pool)
        progress(doing, len(chunks), len(chunks))
    nll = np.concatenate([part.nll for part in parts], axis=1)
    kld = np.concatenate([part.kld for part in parts], axis=1)
    for decided, numbers in zip(plans, [nll[0], *map(np.append, nll[1:], kld)], strict=True):
        if not np.isfinite(numbers).all() or numbers.mean() > MOST_NATS:
            raise EngineError(
                f"{decided.artifact} gives logits that are no numbers, or too large to be probabilities",
                hint="its weights are damaged; make it again",
            )
    return Scores(nll, kld, np.concatenate([part.same_top for part in parts], axis=1))


def score_chunk(models: Sequence[Logits], chunk: Array, pool: Executor) -> list[Scores]:
    parts, at = [], len(chunk) - scored(len(chunk))  # a row of logits tells of the token after it
    for block in zip(*(model.of(chunk) for model in models), strict=True):
        parts.append(score(block, chunk[at : at + len(block[0])], pool))
        at += len(block[0])
    return parts


def beside(away: Executor, work: Callable[[], T], models: Sequence[Logits], pool: Executor) -> T:
    """What `work` gives, done by another thread: this one hears Ctrl-C meanwhile, and stops models and pool at once."""
    try:
        return away.submit(work).result()
    except BaseException:
        for model in models:
            model.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def check_vocabulary(base: Logits, level: Logits, words: str, ids: Sequence[int]) -> None:
    """Raise RequestError where the two do not have the same tokens, or make others of the text."""
    ours, theirs = (tokenizer_of(model.plan.path) for model in (base, level))
    if ours == theirs and base.vocab.size == level.vocab.size:
        return  # it need not read the text, which takes a second a megabyte
    tokens = "tokenizer.ggml.tokens"
    if ours.get(tokens) != theirs.get(tokens) or base.vocab.size != level.vocab.size:
        what = f"has another vocabulary than {base.plan.artifact}"
    elif level.vocab.tokens(words) != ids:
        what = f"makes other tokens of the text than {base.plan.artifact}"
    else:
        return
    raise RequestError(f"{level.plan.artifact} {what}", hint="compare levels of one model")


def tokenizer_of(path: Path) -> dict[str, Any]:
    """All that a file says of its tokenizer, the chat template aside."""
    metadata = gguf_header.read(path).metadata
    return {
        key: gguf_header.elements(path, key) if isinstance(value, gguf_header.Array) else value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.")
    }


def costs(ref: str, nll: Array, progress: Progress) -> Row:
    """The row of a file without divergences: perplexity, size and speeds."""
    model = store.resolve(ref)
    header = read_artifact(model)
    value, error = perplexity(nll)
    speed = timed(ref, progress)
    assert speed.peak_rss_bytes is not None  # our own worker tells
    return Row(
        file=model.path,
        level=header.quantization,
        perplexity=value,
        perplexity_error=error,
        kld_mean=None,
        kld_error=None,
        kld_median=None,
        kld_p99=None,
        kld_max=None,
        delta_p_mean=None,
        delta_p_rms=None,
        top1_agreement=None,
        bits_per_weight=8 * sum(tensor.bytes for tensor in header.tensors) / header.parameters,
        bytes=header.file_bytes,
        prefill_tps=speed.prefill_tps.median,
        decode_tps=speed.decode_tps.median,
        peak_rss_bytes=speed.peak_rss_bytes,
        speed=speed,
    )


def timed(ref: str, progress: Progress) -> Speed:
    """Prefill, decode and peak memory as `edge bench speed` takes them; shorter where the context is."""
    decided = plan(ref)
    if decided.context > CONTEXT:
        decided = plan(ref, ctx=CONTEXT)
    prompt = min(PREFILL_TOKENS, decided.context - 1)
    new = min(DECODE_TOKENS, decided.context - SHORT_PROMPT)
    turns = []
    with Worker("edge", decided) as worker:
        for turn in range(REPETITIONS + 1):
            progress(f"timing {decided.artifact}", turn, REPETITIONS + 1)
            turns.append(worker.turn(turn, prompt, new))
    progress(f"timing {decided.artifact}", REPETITIONS + 1, REPETITIONS + 1)
    return summary("edge", turns[1:])
