"""Several models that are loaded at once in one process: the plan of each with the others beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.errors import DoesNotFit
from edge.memory import PROCESS_BYTES
from edge.planner import Plan, plan
from edge.sizes import mib


@dataclass(frozen=True)
class Together:
    """A plan of each model, whose memory counts the others among its weights; `fits` where all fit at once."""

    plans: tuple[Plan, ...]
    fits: bool

    @property
    def total_bytes(self) -> int:
        return max(one.memory.total_bytes for one in self.plans)

    @property
    def said(self) -> str:
        """Need and supply in words."""
        available = min(one.memory.available_bytes for one in self.plans)
        return f"{mib(self.total_bytes)} of {mib(available)} available"

    def require_fit(self) -> None:
        """Raises DoesNotFit, with a setting of the largest that would fit, if they do not fit."""
        if not self.fits:
            largest = max((one for one in self.plans if not one.fits), key=lambda one: one.memory.kv_bytes)
            names = ", ".join(one.artifact for one in self.plans)
            raise DoesNotFit(
                f"together {names} need {self.said}", hint=f"of {largest.artifact}: {largest.nearest}"
            )


def plans(refs: Sequence[str], **settings: Any) -> Together:
    """Plan models for one process; settings as `edge.plan` takes them. Raises as `edge.plan`."""
    alone = [plan(ref, **settings) for ref in refs]
    decided = []
    for at, ref in enumerate(refs):
        others = [one for index, one in enumerate(alone) if index != at]
        beside = sum(added_bytes(one, alone[at]) for one in others)
        decided.append(plan(ref, **settings, beside=beside))
    return Together(tuple(decided), all(one.fits for one in decided))


def added_bytes(one: Plan, beside: Plan) -> int:
    """What a model takes in the process of another: one backend's libraries are there once."""
    shared = min(one.memory.runtime_bytes, PROCESS_BYTES) if one.backend == beside.backend else 0
    return one.memory.total_bytes - shared
