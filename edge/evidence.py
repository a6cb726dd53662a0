"""What was measured of a file's quality, kept by the file's digest: divergence, perplexity, agreement.

`edge bench quality` records its rows here; the certificate that a conversion writes beside its file is read too, and is
the weaker evidence: a hundred tokens where a quality run has thousands. Divergences are only comparable where base,
text and tokens are the same, which `Quality.measure` says.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from edge import gguf_header
from edge.errors import EdgeError
from edge.home import evidence_file
from edge.kept import write

VERSION = 1
MAX_BYTES = 16 << 20
MAX_ROWS = 10_000  # the oldest go
PIECES, PIECE = 64, 16 << 10  # of a file that its digest is made of
RUN, CERTIFICATE = "run", "certificate"


@dataclass(frozen=True)
class Quality:
    """How far a file is from its base, in nats a token; None for what was not measured, as of the base itself.

    base, text   what it was compared with, and on which text, by name; `tokens` were scored, in chunks of `context`
    kind         "run" of `edge bench quality`, or "certificate"
    measure      base, text and tokens in one: divergences with the same are comparable
    is_base      the file is the base itself, whose divergence is none
    """

    kld_mean: float | None
    kld_error: float | None
    perplexity: float | None
    top1_agreement: float | None
    base: str
    text: str
    tokens: int
    context: int
    kind: str
    measure: str
    is_base: bool = False


@dataclass(frozen=True)
class Row:
    """One file of one quality run, as it is kept. Digests are `digest_of`'s; `measured_at` seconds since 1970."""

    digest: str
    bytes: int
    level: str
    base: str
    base_digest: str
    text: str
    text_digest: str
    tokens: int
    context: int
    kld_mean: float | None
    kld_error: float | None
    perplexity: float | None
    top1_agreement: float | None
    measured_at: float

    @property
    def quality(self) -> Quality:
        return Quality(
            self.kld_mean,
            self.kld_error,
            self.perplexity,
            self.top1_agreement,
            self.base,
            self.text,
            self.tokens,
            self.context,
            RUN,
            f"{self.base_digest} {self.text_digest} {self.tokens} {self.context}",
            self.digest == self.base_digest,
        )


def qualities_of(path: Path) -> tuple[Quality, ...]:
    """All that was measured of the very bytes of a GGUF file: runs with the most tokens first, its certificate last."""
    try:
        size, digest = path.stat().st_size, digest_of(path)
    except OSError:
        return ()
    rows = [row for row in kept() if (row.bytes, row.digest) == (size, digest)]
    runs = [row.quality for row in sorted(rows, key=lambda row: (-row.tokens, -row.measured_at))]
    certificate = of_certificate(path)
    return (*runs, *([certificate] if certificate else []))


def kept() -> tuple[Row, ...]:
    """Every row that is kept; none where the file is damaged or hostile."""
    try:
        with evidence_file().open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        found = json.loads(text) if len(text) <= MAX_BYTES else {}
        if found["version"] != VERSION or len(found["rows"]) > MAX_ROWS:
            return ()
        return tuple(_row(row) for row in found["rows"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()


def record(rows: Iterable[Row]) -> Path:
    """Keep rows, in place of what was measured of the same files in the same way.

    Raises StoreError for what the disk refuses.
    """
    new = list(rows)
    replaced = {(row.digest, row.quality.measure) for row in new}

    def content() -> dict[str, Any]:
        old = [row for row in kept() if (row.digest, row.quality.measure) not in replaced]
        return {"version": VERSION, "rows": [asdict(row) for row in [*old, *new][-MAX_ROWS:]]}

    return write(evidence_file(), content)


def digest_of(path: Path) -> str:
    """A digest of a file by its length and 64 pieces of 16 KiB, the first and the last among them: it tells files of
    one model apart in a millisecond, and is no defence. Raises OSError."""
    status = path.stat()
    return _digest_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_of(path: Path, size: int, changed: int) -> str:
    found = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb", buffering=0) as file:
        last = max(0, size - PIECE)
        for at in sorted({last * piece // (PIECES - 1) for piece in range(PIECES)}):
            found.update(os.pread(file.fileno(), PIECE, at))
    return found.hexdigest()


def row_of(
    path: Path,
    *,
    level: str,
    base: Path,
    base_name: str,
    text: Path,
    tokens: int,
    context: int,
    **figures: Any,
) -> Row:
    """The row of a file that was compared with `base` on `text`; `figures` are those of a Row, and count as not
    measured where they are no numbers or infinite, as the perplexity of a broken file is. Raises OSError."""
    return Row(
        digest=digest_of(path),
        bytes=path.stat().st_size,
        level=level,
        base=base_name,
        base_digest=digest_of(base),
        text=text.name,
        text_digest=digest_of(text),
        tokens=tokens,
        context=context,
        measured_at=time.time(),
        **{
            name: value if value is not None and math.isfinite(value) else None
            for name, value in figures.items()
        },
    )


def of_certificate(path: Path) -> Quality | None:
    """What the certificate beside a file says, where it is of a file of this length and tensor types; else None."""
    try:
        beside = path.with_suffix(".json")
        if beside == path or beside.stat().st_size > MAX_BYTES:
            return None
        found = json.loads(beside.read_bytes())
        compared = found["comparison"]
        types = {tensor.name: tensor.type for tensor in gguf_header.read(path).tensors}
        if (found["bytes"], found["tensor_types"]) != (path.stat().st_size, types):
            return None
        source = {str(name): str(value) for name, value in found["source"].items()}
        digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
        tokens, divergence = _of("int", compared["tokens"]), _of("float | None", compared["kl_divergence"])
        if divergence is None:
            return None
        return Quality(
            kld_mean=divergence,
            kld_error=None,
            perplexity=None,
            top1_agreement=_of("float | None", compared["top1_agreement"]),
            base=next(iter(source))[:200] if len(source) == 1 else f"its source ({len(source)} files)",
            text="the certificate's text",
            tokens=tokens,
            context=tokens,
            kind=CERTIFICATE,
            measure=f"{digest} certificate {tokens}",
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, EdgeError):
        return None


def _row(found: Mapping[str, Any]) -> Row:
    """Raises ValueError, TypeError or KeyError for what `record` never wrote."""
    return Row(**{one.name: _of(str(one.type), found[one.name]) for one in fields(Row)})


def _of(kind: str, value: Any) -> Any:
    """The value, if it is a text, a whole number from 1, or a finite number."""
    if value is None and kind.endswith("None"):
        return None
    if kind == "str":
        if isinstance(value, str) and len(value) < 4096:
            return value
    elif kind == "int":
        if type(value) is int and value >= 1:
            return value
    elif type(value) in (int, float) and math.isfinite(value):
        return float(value)
    raise ValueError(f"{value!r} where {kind} is expected")
