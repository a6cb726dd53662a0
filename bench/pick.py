"""What `edge plan --all` picks, against the Q4_K_M that everybody takes: prefill, decode, and 8 conversations at once.

    python -m edge.bench.pick REF... [--out FOLDER] [--goal GOAL]... [--turns 3] [--tokens 64]

REF is as `edge plan --all` takes it. What is picked or compared with and is not here is made in FOLDER first, where
the next run finds it; quality is what `edge bench quality` recorded. The two take turns, so that a slow minute of the
machine hits both; a ratio is taken turn by turn. Prints a table in Markdown and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge import gguf_header
from edge.candidate import HERE, Candidate
from edge.choose import REFERENCE, Row
from edge.convert.candidates import candidates, fingerprint_of
from edge.convert.choices import Found, choices
from edge.convert.to_gguf import convert
from edge.errors import EdgeError, RequestError
from edge.goals import Goal, goal_of
from edge.machine.power import power_state
from edge.planner import plan
from edge.store import resolve

from . import record
from .batch import once
from .record import Spread, spread_of
from .speed import CONTEXT, DECODE_TOKENS, PREFILL_TOKENS, SHORT_PROMPT, Worker

AT_ONCE = 8
WANTED = {"prefill": 2.0, "decode": 1.3, "at_once": 2.0}  # times the reference's


@dataclass(frozen=True)
class Pair:
    """A pick and the reference: their rows of the plan, their tokens a second by kind of work, and the ratios."""

    pick: Row
    reference: Row
    reason: str
    rates: tuple[Mapping[str, Spread], Mapping[str, Spread]]
    ratios: Mapping[str, Spread]

    @property
    def allowed(self) -> bool:
        """Whether the pick is no larger, and measured to be no further from their base."""
        klds = self.pick.kld_mean, self.reference.kld_mean
        near = klds[0] is not None and klds[1] is not None and klds[0] <= klds[1]
        comparable = self.pick.kld_measure == self.reference.kld_measure
        return self.pick.bytes <= self.reference.bytes and near and comparable

    @property
    def same(self) -> bool:
        return self.pick.artifact == self.reference.artifact


def pick(ref: str, out: Path, goal: Goal, *, turns: int = 3, tokens: int = 64) -> Pair:
    """Choose, make what is not here, and measure. Raises what choosing, converting and loading raise."""
    found = choices(ref, goal)
    chosen, reference = found.picked, reference_of(found)
    files = [file_of(found, one, out) for one in (chosen, reference)]
    rows = [
        next(row for row in found.choice.rows if row.artifact == one.artifact) for one in (chosen, reference)
    ]
    samples: tuple[list[dict[str, float]], ...] = ([], [])
    plans = [plan(str(file), ctx=min(CONTEXT, plan(str(file)).context)) for file in files]
    prompt = min(PREFILL_TOKENS, plans[0].context - 1)
    new = min(DECODE_TOKENS, plans[0].context - SHORT_PROMPT)
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("edge", decided)) for decided in plans]
        for turn in range(turns + 1):  # the first warms the page cache
            for worker, file, taken in zip(workers, files, samples, strict=True):
                alone = worker.turn(turn, prompt, new)
                together = once(str(file), AT_ONCE, AT_ONCE, tokens, None)
                taken.append(
                    {"prefill": alone["prefill_tps"], "decode": alone["decode_tps"], "at_once": together}
                )
    counted = [taken[1:] for taken in samples]
    spreads = [{kind: spread_of([turn[kind] for turn in taken]) for kind in WANTED} for taken in counted]
    ratios = {
        kind: spread_of([ours[kind] / theirs[kind] for ours, theirs in zip(*counted, strict=True)])
        for kind in WANTED
    }
    return Pair(rows[0], rows[1], found.choice.reason, (spreads[0], spreads[1]), ratios)


def reference_of(found: Found) -> Candidate:
    """The Q4_K_M of the model: one whose quality was measured, or that is here, first. Raises RequestError."""
    able = [one for one in found.candidates if one.level == REFERENCE]
    if not able:
        raise RequestError(
            f"there is no {REFERENCE} to compare with", hint="name a GGUF model or a checkpoint"
        )
    return min(able, key=lambda one: (not one.qualities, one.where != HERE))


def file_of(found: Found, one: Candidate, out: Path) -> Path:
    """The candidate's file, made where it is neither here nor in `out`. Raises as `convert`."""
    if one.where == HERE:
        return resolve(one.artifact).path
    there = out / one.artifact
    if there.is_file() and is_made(there, found.source, one.level.lower()):
        return there
    (made,) = convert(found.source, [one.level.lower()], out)
    return made.path


def is_made(path: Path, source: Path, level: str) -> bool:
    """Whether a file is what `convert` would make: of this model, by what no level changes, in these types."""
    wanted = candidates(source, [level])
    if fingerprint_of(path) != wanted.fingerprint:
        return False
    types = [
        {tensor.name: tensor.type for tensor in header.tensors}
        for header in (wanted.levels[0].header, gguf_header.read(path))
    ]
    return types[0] == types[1] and path.stat().st_size == wanted.levels[0].bytes


def lines(pairs: Mapping[str, Pair]) -> list[str]:
    """The table in Markdown, two lines a model; a ratio that does not reach what is wanted says so."""
    names = ("model", "file", "level", "bytes", "KLD", "prefill t/s", "decode t/s", f"{AT_ONCE} at once t/s")
    found = [f"| {' | '.join(names)} |", f"| {' | '.join(['---'] * 3 + ['---:'] * 5)} |"]
    for ref, pair in pairs.items():
        for what, row, rates in zip(
            ("pick", "reference"), (pair.pick, pair.reference), pair.rates, strict=True
        ):
            kld = "not measured" if row.kld_mean is None else f"{row.kld_mean:.5f}"
            cells = [ref, what, row.level, f"{row.bytes:,}", kld, *(rates[kind].shown() for kind in WANTED)]
            found.append(f"| {' | '.join(cells)} |")
        ratios = [f"{pair.ratios[kind].shown(2)}{verdict(pair, kind)}" for kind in WANTED]
        found.append(
            f"| {ref} | ratio | | | {'' if pair.allowed else 'not allowed'} | {' | '.join(ratios)} |"
        )
    return found


def verdict(pair: Pair, kind: str) -> str:
    wanted = WANTED[kind]
    return "" if pair.ratios[kind].median >= wanted else f" (wanted {wanted:g})"


def rows_of(pairs: Mapping[str, Pair]) -> list[record.Row]:
    """What the JSON line has of each model."""
    found = []
    for ref, pair in pairs.items():
        for what, row, rates in zip(
            ("pick", "reference"), (pair.pick, pair.reference), pair.rates, strict=True
        ):
            figures: dict[str, Any] = {f"{kind}_tps": rates[kind] for kind in WANTED}
            figures |= {"level": row.level, "bytes": row.bytes, "kld_mean": row.kld_mean}
            found.append(record.Row(f"{ref} {what}", figures))
        ratios = {f"{kind}_ratio": pair.ratios[kind] for kind in WANTED}
        found.append(record.Row(f"{ref} ratio", {**ratios, "reason": pair.reason}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge.bench.pick", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("refs", nargs="+", metavar="REF")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER")
    parser.add_argument("--goal", action="append", default=[])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64, help="of each of the answers at once")
    asked = parser.parse_args()
    before, pairs = power_state(), {}
    try:
        for ref in asked.refs:
            pairs[ref] = pick(ref, asked.out, goal_of(asked.goal), turns=asked.turns, tokens=asked.tokens)
    except EdgeError as error:
        parser.exit(error.exit_code, f"{error.line}\n")
    print("\n".join(lines(pairs)))
    work = {"prefill": PREFILL_TOKENS, "decode": DECODE_TOKENS, "at_once": AT_ONCE, "tokens": asked.tokens}
    made = record.record(
        "pick", rows_of(pairs), before=before, work=work, settings={"turns": asked.turns, "goal": asked.goal}
    )
    print(record.line(made))


if __name__ == "__main__":
    main()
