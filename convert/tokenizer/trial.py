"""llama.cpp's ids for a candidate, compared with the original's over the probes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.engine.binding import listen, llama, why
from edge.engine.vocab import Vocab
from edge.errors import ConversionError

from .reference import Reference

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One way to write the tokenizer."""

    name: str
    fields: Fields


@dataclass(frozen=True)
class Limit:
    """Texts that llama.cpp's tokenizer of this kind cannot split as the original does, whatever the fields say."""

    reason: str
    covers: Callable[[str], bool]


@dataclass(frozen=True)
class Difference:
    """A probe that came out otherwise."""

    text: str
    expected: tuple[int, ...]
    got: tuple[int, ...]
    reason: str = ""  # the limit it falls under

    def __str__(self) -> str:
        return f"{_short(self.text)}: the original gives {_clip(self)} and llama.cpp {_clip(self, got=True)}"


@dataclass(frozen=True)
class Outcome:
    """The candidate that won, how many probes came out equal, and which differed under a known limit."""

    candidate: Candidate
    tried: tuple[str, ...]
    probes: int
    differences: tuple[Difference, ...] = field(default=())


def choose(
    candidates: Sequence[Candidate], original: Reference, probes: Sequence[str], limits: Sequence[Limit]
) -> Outcome:
    """The first candidate that gives the original's ids for every probe outside `limits`.

    Raises ConversionError with the probe the nearest candidate failed at where none does.
    """
    expected = [original.encode(text) for text in probes]
    failures: list[tuple[int, Candidate, Difference]] = []
    for number, candidate in enumerate(candidates, 1):
        differences: list[Difference] = []
        passed = 0
        results = ids_of(candidate.fields, probes, parse_special=original.parses_special)
        for text, ids, got in zip(probes, expected, results, strict=False):
            if ids == got:
                passed += 1
                continue
            reason = next((limit.reason for limit in limits if limit.covers(text)), "")
            differences.append(Difference(text, tuple(ids), tuple(got), reason))
            if not reason:
                failures.append((passed, candidate, differences[-1]))
                break
        else:
            tried = tuple(one.name for one in candidates[:number])
            return Outcome(candidate, tried, len(probes), tuple(differences))
    passed, nearest, difference = max(failures, key=lambda failure: failure[0])
    raise ConversionError(
        f"llama.cpp cannot reproduce this tokenizer: none of {len(candidates)} ways to write it passed; "
        f"the nearest, {nearest.name}, fails at {difference}",
        hint="convert to another format or report the checkpoint",
    )


def ids_of(fields: Fields, texts: Sequence[str], *, parse_special: bool) -> Iterator[list[int]]:
    """llama.cpp's ids for each text, special tokens added. Raises ConversionError where it refuses the fields."""
    with tempfile.TemporaryDirectory(prefix="edge-tokenizer-") as folder:
        path = Path(folder) / "vocab.gguf"
        _write(path, fields)
        with _loaded(path) as vocab:
            for text in texts:
                yield vocab.tokens(text, add_special=True, parse_special=parse_special)


def add_fields(writer: Any, fields: Fields) -> None:
    """Put the fields into a gguf.GGUFWriter, each with the type that llama.cpp reads it as."""
    for key, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:  # a list of str, int or float, or bytes
            writer.add_array(key, value)


def _write(path: Path, fields: Fields) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    try:
        add_fields(writer, fields)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
    finally:
        writer.close()


@contextmanager
def _loaded(path: Path) -> Iterator[Vocab]:
    lib = llama()
    listen()
    parameters = lib.llama_model_default_params()
    parameters.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), parameters)
    if not model:
        raise ConversionError(f"llama.cpp refuses this vocabulary: {why('it does not say why')}")
    try:
        yield Vocab(model)
    finally:
        lib.llama_model_free(model)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")


def _clip(difference: Difference, *, got: bool = False, shown: int = 8) -> str:
    """Ids from a little before the first one that differs."""
    ids, other = difference.expected, difference.got
    at = next((i for i, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1]), None)
    first = max(0, (min(len(ids), len(other)) if at is None else at) - 2)
    chosen = other if got else ids
    text = ", ".join(map(str, chosen[first : first + shown]))
    return f"[{'…, ' if first else ''}{text}{', …' if len(chosen) > first + shown else ''}]"
