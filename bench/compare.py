"""A run beside an earlier one: how many times as much each figure is now. What cannot be compared is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import RequestError

from .record import FORM, Figure, Record, Spread, of_json

MAX_BYTES = 64 << 20
GIVE = "give a file that an edge bench command printed"


@dataclass(frozen=True)
class Ratio:
    """Now over then of one row, by figure; only of what both runs have and is not zero."""

    name: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Against which run, what to know about it, and the ratios."""

    file: str
    date: str
    warnings: tuple[str, ...]
    rows: tuple[Ratio, ...]


def earlier(path: Path, benchmark: str) -> Record:
    """The last record in a file of JSON lines, or in what a run printed.

    Raises RequestError for a file that cannot be read, holds no record, or one of another benchmark.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})", hint=GIVE) from error
    if len(data) > MAX_BYTES:
        raise RequestError(f"{path} is more than {MAX_BYTES >> 20} MiB", hint=GIVE)
    found = last_object(data.decode("utf-8", "replace"))
    if found is None or "benchmark" not in found:
        raise RequestError(f"{path} holds no benchmark's result", hint=GIVE)
    if found.get("form") != FORM:
        raise RequestError(
            f"the result in {path} is of form {found.get('form')!r}, and this is {FORM}", hint="run it again"
        )
    try:
        then = of_json(found)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise RequestError(
            f"the result in {path} is damaged ({type(error).__name__}: {error})", hint=GIVE
        ) from error
    if then.benchmark != benchmark:
        raise RequestError(
            f"the result in {path} is of edge bench {then.benchmark}",
            hint=f"compare {benchmark} with {benchmark}",
        )
    return then


def last_object(text: str) -> dict[str, Any] | None:
    """The JSON object on the last line that is one."""
    for line in reversed(text.split("\n")):  # not splitlines: JSON may hold other ends of lines
        if line.lstrip().startswith("{"):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                return found
    return None


def check_work(then: Record, work: Mapping[str, Any], path: Path) -> None:
    """Raise RequestError where another file, text or amount of work was measured then."""
    for name in (*work, *(name for name in then.work if name not in work)):
        now, before = json.loads(json.dumps(work.get(name), default=str)), then.work.get(name)
        if now != before:
            what = name.replace("_", " ")
            raise RequestError(
                f"{path} is not comparable: its {what} was {short(before)} and is {short(now)} now",
                hint="measure the same again",
            )


def compare(now: Record, then: Record, path: Path) -> Comparison:
    """Ratios of all rows that both have. Raises RequestError for other work, another file, or no row in common."""
    check_work(then, now.work, path)
    before = {row.name: row for row in then.rows}
    common = [(row, before[row.name]) for row in now.rows if row.name in before]
    if not common:
        names = ", ".join(before) or "nothing"
        raise RequestError(f"{path} is not comparable: it measured {names}", hint="measure the same again")
    for row, other in common:
        if row.sha256 != other.sha256:
            raise RequestError(
                f"{path} is not comparable: {row.name} was another file then ({short(other.sha256)})",
                hint="compare what was measured of the same file",
            )
    rows = []
    for row, other in common:
        pairs = {key: ratio(figure, other.figures.get(key)) for key, figure in row.figures.items()}
        rows.append(Ratio(row.name, {key: value for key, value in pairs.items() if value is not None}))
    return Comparison(str(path), then.date, tuple(warnings(now, then)), tuple(rows))


def ratio(now: Figure, then: Figure) -> float | None:
    """Now over then, of medians; None for texts, for what one of them lacks, and for a zero."""
    above, below = number(now), number(then)
    return above / below if above and below else None


def number(figure: Figure) -> float | None:
    if isinstance(figure, Spread):
        return figure.median
    return figure if isinstance(figure, int | float) and not isinstance(figure, bool) else None


def warnings(now: Record, then: Record) -> Sequence[str]:
    """What was otherwise then, that the ratios also show."""
    found = []
    names = {"cpu": "the CPU", "llama_cpp": "llama-cpp-python"}
    for one in ("cpu", "cores", "python", "edge", "llama_cpp", "onnxruntime"):
        here, there = getattr(now.host, one), getattr(then.host, one)
        if here != there:
            found.append(f"{names.get(one, one)} was {there} then and is {here} now")
    for name, there in then.settings.items():
        here = json.loads(json.dumps(now.settings.get(name), default=str))
        if here != there:
            found.append(f"{name.replace('_', ' ')} was {short(there)} then and is {short(here)} now")
    for when, host in (("now", now.host), ("then", then.host)):
        if host.marks:
            found.append(f"no evidence {when}: {', '.join(host.marks)}")
    return found


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
