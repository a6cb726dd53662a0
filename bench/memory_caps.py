"""Under a hard limit: does what the plan says fits survive, and how much longer a context would have survived.

    python -m edge.bench.memory_caps REF CAP… [--parallel N]

The child plans inside its control group, with `ctx="auto"`; the longest that survives is found by bisection over
contexts that the plan is not asked about. Prints a line of JSON for each cap.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.child import python_m
from edge.errors import DoesNotFit, EdgeError, EngineError
from edge.memory import BATCH, CELL_PADDING, pad
from edge.planner import plan
from edge.sizes import parse_size

from .memory import forget, ran
from .memory_group import group

PROMPT = BATCH + 8  # tokens: every row of a batch is computed, as the plan counts it


@dataclass(frozen=True)
class Capped:
    """The context that the plan chose under a cap (bytes), whether it survived, and the longest that does."""

    artifact: str
    cap_bytes: int
    parallel: int
    context: int
    survived: bool
    longest: int
    killed: int

    @property
    def share(self) -> float:
        return self.context / self.longest if self.longest else 0.0


def capped(ref: str, cap: int, *, parallel: int = 1, threads: int | None = 1) -> Capped:
    """Raises OSError where no control group can be made, EngineError where nothing fits the cap."""
    settings = {
        "ref": ref,
        "parallel": parallel,
        "threads": threads,
        "kv": "f16",
        "prompt": PROMPT,
    }
    chosen, killed = under(cap, {**settings, "ctx": "auto"})
    if chosen is None:
        raise EngineError(f"nothing of {ref} survived under {cap:,} bytes")
    # padded, as between a multiple and what is none there may be no multiple to try
    low, high = chosen["context"], pad(max(plan(ref).context, trained(ref)))
    while high - low > max(CELL_PADDING, low // 50):
        middle = (low + high) // 2 // CELL_PADDING * CELL_PADDING
        found, kills = under(cap, {**settings, "ctx": middle, "unasked": True})
        killed += kills
        low, high = (middle, high) if found else (low, middle)
    return Capped(chosen["artifact"], cap, parallel, chosen["context"], True, low, killed)


def under(cap: int, asked: dict[str, Any]) -> tuple[dict[str, Any] | None, int]:
    """What a child found under the cap, None where it did not survive or its plan refused; and how often the kernel
    killed."""
    command = python_m("edge.bench.memory_child", json.dumps(asked))
    with group() as own:
        own.limit(cap)
        forget(Path(plan(asked["ref"]).path))
        try:
            return ran(own.command(command)), own.killed()
        except (EngineError, DoesNotFit):
            return None, own.killed()


def trained(ref: str) -> int:
    """The longest context the model was trained for."""
    return plan(ref, ctx="auto", memory="1000GiB").context


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ref")
    parser.add_argument("caps", nargs="+")
    parser.add_argument("--parallel", type=int, default=1)
    given = parser.parse_args()
    try:
        for cap in given.caps:
            found = capped(given.ref, parse_size(cap), parallel=given.parallel)
            print(json.dumps({**asdict(found), "share": round(found.share, 4)}), flush=True)
    except EdgeError as error:
        parser.exit(error.exit_code, f"edge: {error.line}\n")


if __name__ == "__main__":
    main()
