"""What was measured of this host: how fast it multiplies each type of matrix, reads memory and attends.

`edge.measure` makes it, `edge.speed` predicts with it, and a JSON file keeps it. A measurement holds for one CPU, core
count and version of the libraries; under any other it counts as none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from edge.home import rates_file
from edge.kept import write
from edge.machine import Host
from edge.machine.installed import installed

VERSION = 2  # of what is measured and how; another one's figures are not comparable
MAX_BYTES = 4 << 20
LEAST, MOST = 1e-18, 1e12  # of seconds a weight; of any number
MAX_ROWS = 20_000  # kernels in a file; some hundreds are written
LATEST = 250_000_000_000.0  # seconds since 1970; datetime ends with the year 9999
AGAIN = "run edge host --measure"


@dataclass(frozen=True)
class Key:
    """What a measurement holds for: CPU name, cores of this process, versions of the libraries and of the method."""

    cpu: str
    cores: int
    llama_cpp: str
    onnxruntime: str
    version: int


@dataclass(frozen=True)
class Bandwidth:
    """Memory read by so many threads at once, 10^9 bytes a second: upper quartile, lowest and highest."""

    threads: int
    gbs: float
    low: float
    high: float


@dataclass(frozen=True)
class Kernel:
    """One type's matrices times so many rows of activations.

    type      a GGML type ("Q4_0"), or for ONNX Runtime a level ("fp32", "int8", "int4")
    width     length of a row of the matrix
    rows      rows of activations at once: 1 decodes one sequence, many prefill
    seconds   for each weight of the matrix and all rows together
    bits      the type's bits a weight
    spread    (upper - lower quartile) / median over the repetitions; None where it was timed once
    """

    type: str
    width: int
    threads: int
    rows: int
    seconds: float
    bits: float
    spread: float | None

    @property
    def gops(self) -> float:
        """Arithmetic, 10^9 a second: a multiplication and an addition for each weight and row."""
        return 2 * self.rows / self.seconds / 1e9

    @property
    def gbs(self) -> float:
        """Weights as stored, 10^9 bytes a second."""
        return self.bits / 8 / self.seconds / 1e9


@dataclass(frozen=True)
class Layer:
    """What a layer takes beside its matrices and its attention over the context.

    seconds  norms, rotations, additions, the KV cache's writing, and the threads' meeting at each of these
    width    of the model it was measured on
    """

    width: int
    threads: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class Attention:
    """What a row takes to look at one position, in seconds for each element of key and value: `seconds` for a head of
    queries, `kv_seconds` for a head of keys and values, however many heads of queries share it."""

    threads: int
    rows: int
    seconds: float
    kv_seconds: float


@dataclass(frozen=True)
class Scaling:
    """What so many threads reach, as a share of the fastest count: 512 rows at once, and one."""

    threads: int
    prefill: float
    decode: float


@dataclass(frozen=True)
class Part:
    """What ONNX Runtime takes beside its matrices, by one thread.

    name     add, gelu, norm, round (activations to 8 bits); score and look, of attention; node
    seconds  for each element that goes in; of a score for each head, row and position, of a look for each element of a
             head at each of those; of a node whatever it computes
    """

    name: str
    seconds: float


@dataclass(frozen=True)
class Rates:
    """All that was measured of a host.

    step_seconds    of a step beside its layers, by threads the same: the graph's start and the embedding
    prefill_threads, decode_threads   the fastest counts, `scaling` behind them
    noise           median spread of the kernels that were timed more than once
    state           power and temperature as the host told (edge.machine.power), by name
    marks           why it is no evidence: "throttled", "busy", "wide spread"; empty where it is
    measured_at     seconds since 1970; `seconds` is what the measuring took
    """

    key: Key
    bandwidth: tuple[Bandwidth, ...]
    kernels: tuple[Kernel, ...]
    layers: tuple[Layer, ...]
    attention: tuple[Attention, ...]
    scaling: tuple[Scaling, ...]
    prefill_threads: int
    decode_threads: int
    step_seconds: float
    noise: float
    measured_at: float
    seconds: float
    onnx: tuple[Kernel, ...] = ()
    onnx_parts: tuple[Part, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[str, ...] = ()

    @property
    def peak_bandwidth(self) -> float:
        """The most bytes a second that any number of threads read."""
        return 1e9 * max(one.gbs for one in self.bandwidth)

    @property
    def peak_arithmetic(self) -> float:
        """The most operations a second that any type's kernel reaches."""
        return 1e9 * max(kernel.gops for kernel in self.kernels)


def key_of(machine: Host) -> Key:
    """What a measurement of this machine, made now, would hold for."""
    build = installed()
    return Key(machine.cpu.name, machine.cpu.cores, build.llama_cpp, build.onnxruntime, VERSION)


def load(machine: Host) -> Rates | None:
    """What was measured of this machine, or None where that is nothing, damaged, or of another key."""
    found = _read(rates_file())
    return found if found is not None and found.key == key_of(machine) else None


def why_none(machine: Host) -> str:
    """Why `load` gives None, with what to do, in a line; empty where it gives rates."""
    path = rates_file()
    if not path.exists():
        return f"this host is not measured; {AGAIN}"
    found = _read(path)
    if found is None:
        return f"the measurement in {path} is damaged; {AGAIN}"
    for name, then, now in _differences(found.key, key_of(machine)):
        return f"measured with {name} {then}, and here is {now}; {AGAIN}"
    return ""


def save(rates: Rates) -> Path:
    """Keep them in place of what was measured before. Raises StoreError for what the disk refuses."""
    return write(rates_file(), lambda: asdict(rates))


def _differences(then: Key, now: Key) -> Iterable[tuple[str, object, object]]:
    names = {"cpu": "the CPU", "llama_cpp": "llama-cpp-python", "version": "the method of version"}
    for one in fields(Key):
        before, after = getattr(then, one.name), getattr(now, one.name)
        if before != after:
            yield names.get(one.name, one.name), before or "none", after or "none"


def _read(path: Path) -> Rates | None:
    """The file's rates, or None where anything about them is not as `save` writes it."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        return None if len(text) > MAX_BYTES else parsed(json.loads(text))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


R = TypeVar("R")


def parsed(found: Mapping[str, Any]) -> Rates:
    """Rates out of JSON. Raises ValueError, TypeError or KeyError for anything that no measurement gives."""
    rates = Rates(
        key=_one(Key, found["key"]),
        bandwidth=_many(Bandwidth, found["bandwidth"]),
        kernels=_many(Kernel, found["kernels"]),
        layers=_many(Layer, found["layers"]),
        attention=_many(Attention, found["attention"]),
        scaling=_many(Scaling, found["scaling"]),
        onnx=_many(Kernel, found["onnx"]),
        onnx_parts=_many(Part, found.get("onnx_parts", [])),  # measurements of old have none
        state=dict(found["state"]),
        marks=tuple(_of("str", mark) for mark in found["marks"]),
        **{
            one.name: _of(str(one.type), found[one.name])
            for one in fields(Rates)
            if one.type in ("int", "float")
        },
    )
    if not (rates.bandwidth and rates.kernels and rates.layers and rates.attention and rates.scaling):
        raise ValueError("a part is empty")
    if rates.measured_at > LATEST:
        raise ValueError("a date that no calendar has")
    timed = (*rates.kernels, *rates.onnx)
    if not all(kernel.seconds > LEAST and kernel.bits for kernel in timed) or not all(
        one.gbs for one in rates.bandwidth
    ):
        raise ValueError("something took no time")
    return rates


def _many(kind: type[R], rows: Any) -> tuple[R, ...]:
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise ValueError("not a list of what can have been measured")
    return tuple(_one(kind, row) for row in rows)


def _one(kind: type[R], row: Mapping[str, Any]) -> R:
    return kind(**{one.name: _of(str(one.type), row[one.name]) for one in fields(kind)})  # type: ignore[arg-type]


def _of(kind: str, value: Any) -> Any:
    """The value, if it is a text, a whole number from 1 or a finite number that is not negative."""
    if value is None and kind.endswith("None"):
        return None
    if kind == "str":
        if isinstance(value, str):
            return value
    elif kind == "int":
        if type(value) is int and 1 <= value < MOST:
            return value
    elif type(value) in (int, float) and 0 <= value < MOST:  # NaN is neither
        return float(value)
    raise ValueError(f"{value!r} where {kind} is expected")
