"""What every benchmark gives: rows of named figures, with what was run on which host. One line of JSON keeps it.

A figure that was taken several times is a `Spread`, one that comes out the same each time a number.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from edge.machine import host
from edge.machine.installed import installed
from edge.machine.power import State, marks, power_state

FORM = 1  # of the JSON line


@dataclass(frozen=True)
class Spread:
    """Median of the repetitions, with the extremes; of a single one, all three are that one."""

    median: float
    low: float
    high: float

    @property
    def repeated(self) -> bool:
        """Whether the extremes say anything: those of what was measured once are one number."""
        return self.low < self.high

    def shown(self, digits: int = 0, scale: float = 1) -> str:
        """The median, with the lowest and highest where there were several."""
        middle, low, high = (f"{scale * one:.{digits}f}" for one in (self.median, self.low, self.high))
        return f"{middle} ({low}–{high})" if self.repeated else middle


def spread_of(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return Spread(median(values), min(values), max(values))


Figure = Spread | float | str | None


@dataclass(frozen=True)
class HostFacts:
    """Where it ran.

    edge, llama_cpp, onnxruntime  versions, "" for what is not installed
    before, after                 heat and power as far as the host tells: `celsius`, `mhz`, `on_battery`, …
    marks                         why this run is no evidence: throttled, busy, wide spread; empty where it is
    """

    cpu: str
    cores: int
    python: str
    edge: str
    llama_cpp: str
    onnxruntime: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    marks: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One thing that was measured; a figure's unit ends its name: `prefill_tps`, `ttft_s`, `peak_rss_bytes`.

    sha256  of the model's file, "" where the record's `work` names it or there is none
    """

    name: str
    figures: Mapping[str, Figure]
    sha256: str = ""


@dataclass(frozen=True)
class Record:
    """One run of a benchmark.

    work      what was done: only records of the same work can be compared
    settings  how: these may differ, which is said
    """

    benchmark: str
    date: str
    host: HostFacts
    command: tuple[str, ...]
    work: Mapping[str, Any]
    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


def record(
    benchmark: str,
    rows: Sequence[Row],
    *,
    before: State,
    work: Mapping[str, Any],
    settings: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> Record:
    """A record of now and of this host; `before` is how it was before the run."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    here = facts(before, power_state(), noise(rows))
    return Record(benchmark, now, here, command(), dict(work), dict(settings), tuple(rows), dict(extra or {}))


def facts(before: State, after: State, spread: float) -> HostFacts:
    """This host, and what happened to it between the two."""
    cpu, build = host().cpu, installed()
    return HostFacts(
        cpu=cpu.name,
        cores=cpu.cores,
        python=platform.python_version(),
        edge=version("edge-runtime"),
        llama_cpp=build.llama_cpp,
        onnxruntime=build.onnxruntime,
        before=told(before),
        after=told(after),
        marks=marks(before, after, spread),
    )


def told(state: State) -> dict[str, Any]:
    """What a reader of a result wants of a state, where the host tells it."""
    names = ("celsius", "mhz", "governor", "on_battery", "saving", "load")
    return {name: value for name in names if (value := getattr(state, name)) not in (None, "")}


def noise(rows: Sequence[Row]) -> float:
    """The median, over all figures that were repeated, of (highest - lowest) / median."""
    figures = [one for row in rows for one in row.figures.values()]
    spreads = [one for one in figures if isinstance(one, Spread) and one.repeated and one.median]
    return median((one.high - one.low) / abs(one.median) for one in spreads) if spreads else 0.0


def command() -> tuple[str, ...]:
    """The words this process was started with; the program by its name alone."""
    return (Path(sys.argv[0]).name, *sys.argv[1:])


def line(made: Record, extra: Mapping[str, Any] | None = None) -> str:
    """The record as one line of JSON."""
    shown: dict[str, Any] = {"form": FORM}
    for one in fields(made):
        if one.name not in ("rows", "extra"):
            value = getattr(made, one.name)
            shown[one.name] = asdict(value) if isinstance(value, HostFacts) else value
    shown["rows"] = [
        {"name": row.name, **({"sha256": row.sha256} if row.sha256 else {}), **row.figures}
        for row in made.rows
    ]
    return json.dumps({**shown, **made.extra, **(extra or {})}, ensure_ascii=False, default=_plain)


def of_json(found: Mapping[str, Any]) -> Record:
    """What `line` wrote. Raises ValueError, TypeError, KeyError, AttributeError or OverflowError for anything else."""
    if found["form"] != FORM:
        raise ValueError(f"form {found['form']}")
    host = {one.name: found["host"][one.name] for one in fields(HostFacts)}
    host |= {"marks": tuple(map(_text, host["marks"]))}
    host |= {when: dict(host[when]) for when in ("before", "after")}
    rows = []
    for row in found["rows"]:
        figures = {name: _figure(value) for name, value in row.items() if name not in ("name", "sha256")}
        rows.append(Row(_text(row["name"]), figures, _text(row.get("sha256", ""))))
    return Record(
        benchmark=_text(found["benchmark"]),
        date=_text(found["date"]),
        host=HostFacts(**host),
        command=tuple(found["command"]),
        work=dict(found["work"]),
        settings=dict(found["settings"]),
        rows=tuple(rows),
    )


def _figure(value: Any) -> Figure:
    if isinstance(value, Mapping):
        return Spread(*(_number(value[one.name]) for one in fields(Spread)))
    if value is None or isinstance(value, str):
        return value
    _number(value)
    return value  # type: ignore[no-any-return]


def _number(value: Any) -> float:
    if isinstance(value, int | float) and isfinite(value):
        return float(value)
    raise TypeError(f"{value!r} is no figure")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Spread) else str(value)
