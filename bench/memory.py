"""The plan's memory beside the memory a fresh process really took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge.planner import plan

from .child import python_m
from .startup import timed


@dataclass(frozen=True)
class Cell:
    """One model at one context (tokens): predicted and measured peak bytes; error is predicted/measured − 1."""

    artifact: str
    context: int
    predicted_bytes: int
    measured_bytes: int

    @property
    def error(self) -> float:
        return self.predicted_bytes / self.measured_bytes - 1


def memory(refs: Sequence[str], contexts: Sequence[int] = (512, 2048, 8192)) -> tuple[Cell, ...]:
    """Run `edge generate` with a prompt that nearly fills each context (at most 2,000 words) and compare.

    Raises what `plan` raises, EngineError where a run fails.
    """
    cells = []
    for ref in refs:
        for context in contexts:
            decided = plan(ref, ctx=context)
            prompt = " the" * (min(context, 2048) - 64)
            words = ["generate", ref, prompt, "--ctx", str(context), "--max-tokens", "16"]
            _, measured = timed(python_m("edge", *words))
            cells.append(Cell(decided.artifact, context, decided.memory.total_bytes, measured))
    return tuple(cells)
