"""What was found by measurement for one file on this host: threads, batch and guessing ahead, with the figures.

A finding holds for the file's content and for what `edge.rates.Key` names; for any other it counts as none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from edge.evidence import digest_of
from edge.home import tuned_file
from edge.kept import write
from edge.machine import Host
from edge.memory import BATCH
from edge.rates import LATEST, Key, key_of

MAX_BYTES = 16 << 20  # a file takes some 8 KB
MAX_FILES = 500  # the oldest go
SMALLEST, BIGGEST = 64, BATCH  # rows computed at once
MAX_THREADS = 512


@dataclass(frozen=True)
class Option:
    """What was tried: tokens a second, median, lowest and highest of so many turns.

    pace  the upper quartile, which stands for the machine's own pace: other work makes a turn slower, never faster
    """

    name: str
    median: float
    low: float
    high: float
    pace: float
    turns: int


@dataclass(frozen=True)
class Finding:
    """One setting: what was picked of all that was tried, and why, in words."""

    setting: str
    pick: str
    reason: str
    tried: tuple[Option, ...]

    @property
    def picked(self) -> Option:
        return next(option for option in self.tried if option.name == self.pick)

    @property
    def runner_up(self) -> Option | None:
        """The best of the others, None where nothing else was tried."""
        others = [option for option in self.tried if option.name != self.pick]
        return max(others, key=lambda option: option.pace, default=None)


@dataclass(frozen=True)
class Tuned:
    """What to run one file with.

    key, digest       the host and the file (`edge.evidence.digest_of`) it holds for
    prefill_threads, decode_threads
    batch             rows of a prompt that are computed at once, a multiple of 64
    lookup            False where guessing ahead cost time even where it is on by default; None leaves it so
    context           tokens; the types of keys and values were compared at it
    findings          the measurement behind each; of the types of keys and values too, where f16 stays the default
    measured_at       seconds since 1970
    """

    key: Key
    digest: str
    name: str
    prefill_threads: int
    decode_threads: int
    batch: int
    lookup: bool | None
    context: int
    measured_at: float
    findings: tuple[Finding, ...]

    @property
    def when(self) -> str:
        """The day it was measured, as 2026-11-23."""
        return date.fromtimestamp(self.measured_at).isoformat()


def load(machine: Host, path: Path) -> Tuned | None:
    """What was found for this file on this host, or None where that is nothing, damaged, or of another key."""
    kept = [one for one in _read(tuned_file()) if one.key == key_of(machine)]
    if not kept or not path.is_file():
        return None
    try:
        digest = digest_of(path)
    except OSError:
        return None
    return next((one for one in kept if one.digest == digest), None)


def save(found: Tuned) -> Path:
    """Keep it in place of what was found for the same file and host. Raises StoreError for what the disk refuses."""
    path = tuned_file()

    def content() -> dict[str, Any]:
        others = [one for one in _read(path) if (one.key, one.digest) != (found.key, found.digest)]
        return {"files": [asdict(one) for one in [*others, found][-MAX_FILES:]]}

    return write(path, content)


def _read(path: Path) -> list[Tuned]:
    """All that is kept, the oldest first; nothing where the file is not as `save` writes it."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        return [] if len(text) > MAX_BYTES else [_tuned(row) for row in json.loads(text)["files"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


def _tuned(row: Mapping[str, Any]) -> Tuned:
    """Raises ValueError, TypeError or KeyError for what no measurement gives."""
    findings = tuple(
        Finding(
            _text(one["setting"]),
            _text(one["pick"]),
            _text(one["reason"]),
            tuple(_option(option) for option in one["tried"]),
        )
        for one in row["findings"]
    )
    if any(one.pick not in [option.name for option in one.tried] for one in findings):
        raise ValueError("what was picked was not tried")
    batch = _whole(row["batch"], SMALLEST, BIGGEST)
    if batch % SMALLEST:
        raise ValueError(f"a batch of {batch} rows")
    if _number(row["measured_at"]) > LATEST:
        raise ValueError("a date that no calendar has")
    if row["lookup"] not in (None, False):
        raise ValueError("guessing ahead is only ever switched off")
    return Tuned(
        key=_key(row["key"]),
        digest=_text(row["digest"]),
        name=_text(row["name"]),
        prefill_threads=_whole(row["prefill_threads"], 1, MAX_THREADS),
        decode_threads=_whole(row["decode_threads"], 1, MAX_THREADS),
        batch=batch,
        lookup=row["lookup"],
        context=_whole(row["context"]),
        measured_at=_number(row["measured_at"]),
        findings=findings,
    )


def _option(row: Mapping[str, Any]) -> Option:
    return Option(
        _text(row["name"]),
        _number(row["median"]),
        _number(row["low"]),
        _number(row["high"]),
        _number(row["pace"]),
        _whole(row["turns"]),
    )


def _key(row: Mapping[str, Any]) -> Key:
    return Key(
        cpu=_text(row["cpu"]),
        cores=_whole(row["cores"]),
        llama_cpp=_text(row["llama_cpp"]),
        onnxruntime=_text(row["onnxruntime"]),
        version=_whole(row["version"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _whole(value: Any, least: int = 1, most: int = 1 << 40) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r} where a number from {least} to {most} is expected")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value < 1 << 40:
        raise ValueError(f"{value!r} is no finite number from 0")
    return float(value)
