"""llama.cpp's ids for a candidate, compared with the original's over the probes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge.engine.vocab import Vocab
from edge.errors import ConversionError

from .. import computed
from ..gguf import head
from .reference import Reference
from .vocabulary import CONTROL

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Limit:
    """Texts that llama.cpp's tokenizer of this kind cannot split as the original does, whatever the fields say."""

    reason: str
    covers: Callable[[Difference], bool]


@dataclass(frozen=True)
class Candidate:
    """One way to write the tokenizer, and the limits of llama.cpp that this way has of its own."""

    name: str
    fields: Fields
    limits: tuple[Limit, ...] = ()


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
    differences: tuple[Difference, ...]


def choose(
    candidates: Sequence[Candidate], original: Reference, probes: Sequence[str], limits: Sequence[Limit]
) -> Outcome:
    """The first candidate that gives the original's ids for every probe outside `limits`.

    Raises ConversionError with the probe the nearest candidate failed at where none does.
    """
    expected = [original.encode(text) for text in probes]
    failures: list[tuple[int, Candidate, Difference]] = []
    for number, candidate in enumerate(candidates, 1):
        found: list[Difference] = []
        with loaded(candidate.fields) as vocab:
            every = (*limits, *candidate.limits)
            for place, difference in differences(
                vocab, candidate.fields, original.parses_special, probes, expected, every
            ):
                if not difference.reason:
                    failures.append((place - len(found), candidate, difference))
                    break
                found.append(difference)
            else:
                tried = tuple(one.name for one in candidates[:number])
                return Outcome(candidate, tried, len(probes), tuple(found))
    _, nearest, difference = max(failures, key=lambda failure: failure[0])
    raise ConversionError(
        f"llama.cpp cannot reproduce this tokenizer: none of {len(candidates)} ways to write it passed; "
        f"the nearest, {nearest.name}, fails at {difference}",
        hint="convert to another format or report the checkpoint",
    )


def differences(
    vocab: Vocab,
    fields: Fields,
    parses_special: bool,
    probes: Sequence[str],
    expected: Sequence[Sequence[int]],
    limits: Sequence[Limit],
) -> Iterator[tuple[int, Difference]]:
    """Where a vocabulary with these fields gives other ids than expected: the probe's place, and the difference."""
    for place, (text, ids) in enumerate(zip(probes, expected, strict=True)):
        got = vocab.tokens(text, add_special=True, parse_special=parses_special)
        if list(ids) != got:
            difference = Difference(text, tuple(ids), tuple(got))
            covering = (limit.reason for limit in limits if limit.covers(difference))
            yield place, replace(difference, reason=next(covering, "") or _renamed(difference, fields, vocab))


@contextmanager
def loaded(fields: Fields) -> Iterator[Vocab]:
    """The vocabulary as llama.cpp loads it. Raises ConversionError where it refuses the fields."""
    with tempfile.TemporaryDirectory(prefix="edge-tokenizer-") as folder:
        path = Path(folder) / "vocab.gguf"
        path.write_bytes(head({"general.architecture": "llama", **fields}, ()).data)
        with model(path) as vocab:
            yield vocab


@contextmanager
def model(path: Path) -> Iterator[Vocab]:
    """A GGUF file's vocabulary. Raises ConversionError where llama.cpp does not load it."""
    with computed.loaded(path, vocab_only=True) as found:
        yield Vocab(found)


def _renamed(difference: Difference, fields: Fields, vocab: Vocab) -> str:
    """Whether an ordinary token is to blame that llama.cpp makes a control token for its name alone."""
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    for token in set(difference.got) - set(difference.expected):
        if types[token] != CONTROL and vocab.has(tokens[token]):
            return f"llama.cpp takes {tokens[token]!r} for a control token"
    return ""


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
