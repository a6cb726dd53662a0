"""Which file form of a model this host should run: by memory, by measured speed, by measured quality, with the reason.

Nothing is claimed that was not measured. Speeds are predicted from what was measured of the host; divergences are
compared only where base, text and tokens were the same; where there are none, a level takes another's place only where
every tensor's type is the same or has a whole bit more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.candidate import ANSWER, HERE, Candidate, common_measure, seconds_of, speed_of, surely_as_good
from edge.errors import DoesNotFit, RequestError
from edge.evidence import CERTIFICATE, Quality
from edge.goals import BALANCED, QUALITY, SPEED, Goal
from edge.planner import TYPICAL_PROMPT
from edge.rates import AGAIN, Rates
from edge.sizes import mib
from edge.speed import Speed

REFERENCE = "Q4_K_M"  # what everybody takes
LEAST_BITS = (
    4.0  # a weight: with a matrix of fewer a level is taken for its speed only where its quality was measured
)
NOT_MEASURED = "quality not measured: run `edge bench quality BASE FILE... --text FILE`"
REQUEST = f"{TYPICAL_PROMPT} tokens in and {ANSWER} out"


@dataclass(frozen=True)
class Row:
    """One candidate. Speeds in tokens a second and the divergence in nats a token are None where not measured.

    memory_bytes  predicted for the whole process, by which it fits or not
    kld_measure   base, text and tokens in one, a key of `Choice.measures`: only divergences of one are comparable
    reason        clauses with "; " between them, the first says where it is: "here", "to make" or "to pull"
    """

    artifact: str
    level: str
    bytes: int
    memory_bytes: int
    fits: bool
    prefill_tps: float | None
    decode_tps: float | None
    kld_mean: float | None
    kld_measure: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The rows, larger before smaller; `pick` is the artifact of one of them, or None where none is possible.

    reason    of the pick, or why there is none; `notes` are what the figures go by
    measures  what divergences were measured with, in words; first the one by which candidates are compared
    """

    rows: tuple[Row, ...]
    pick: str | None
    reason: str
    notes: tuple[str, ...]
    measures: Mapping[str, str]

    @property
    def picked(self) -> Row:
        """The row of the pick. Raises DoesNotFit where nothing fits, RequestError where nothing is as asked for."""
        for row in self.rows:
            if row.artifact == self.pick:
                return row
        if any(row.fits for row in self.rows):
            raise RequestError(self.reason, hint="ask for less, or take a smaller model")
        raise DoesNotFit(self.reason, hint="take a smaller model, or a shorter --ctx")


@dataclass(frozen=True)
class Case:
    """A candidate on this host: `seconds` for a typical request, `kld` by the measure that is common, `shown` the
    quality that its row shows."""

    one: Candidate
    fits: bool
    speed: Speed | None
    seconds: float | None
    kld: float | None
    shown: Quality | None


@dataclass(frozen=True)
class Field:
    """All cases, those that are possible, and by which measure they are compared: its quality, if there is one."""

    cases: tuple[Case, ...]
    possible: tuple[Case, ...]
    measure: Quality | None


def choose(
    candidates: Sequence[Candidate],
    rates: Rates | None,
    goal: Goal,
    *,
    budget: int,
    unmeasured: str = f"this host is not measured; {AGAIN}",
    workers: int = 1,
) -> Choice:
    """Pick among the candidates, which are all of one model.

    budget      bytes of memory that there are; `goal.memory` may make them fewer
    unmeasured  why there are no rates, in words
    workers     batches of texts that an encoder reads side by side

    Raises RequestError where nothing is to choose from, and for speed or a time to the first token without rates.
    """
    if not candidates:
        raise RequestError("there is nothing to choose from", hint="name a GGUF model or a checkpoint")
    if rates is not None and rates.marks:
        unmeasured = (
            f"the measurement of this host is no evidence, as it was {', '.join(rates.marks)}; {AGAIN}"
        )
        rates = None
    if rates is None and (goal.ttft is not None or goal.aim == SPEED):
        asked = SPEED if goal.ttft is None else f"ttft={goal.ttft:g}"
        raise RequestError(f"the goal {asked} cannot be judged: {unmeasured}")
    budget = min(budget, goal.memory or budget)
    common = common_measure(candidates, REFERENCE)
    cases = [case_of(one, rates, budget, common, workers) for one in candidates]
    cases.sort(key=lambda case: (-case.one.bytes, case.one.level, case.one.artifact))
    possible = [case for case in cases if case.fits and not case.one.blocked]
    if goal.ttft is not None:
        possible = [case for case in possible if case.speed and case.speed.ttft_s <= goal.ttft]
    measure = next((case.shown for case in cases if case.shown and case.shown.measure == common), None)
    field = Field(tuple(cases), tuple(possible), measure)
    pick, why = picked(field, goal) if possible else (None, why_none(field, goal, budget))
    rows = tuple(
        Row(
            artifact=case.one.artifact,
            level=case.one.level,
            bytes=case.one.bytes,
            memory_bytes=case.one.memory_bytes,
            fits=case.fits,
            prefill_tps=case.speed.prefill_tps if case.speed else None,
            decode_tps=case.speed.decode_tps if case.speed and case.one.generates else None,
            kld_mean=divergence(case.shown),
            kld_measure=case.shown.measure if case.shown else "",
            reason="; ".join(
                filter(None, (case.one.where, why if case is pick else why_not(case, pick, field, goal)))
            ),
        )
        for case in cases
    )
    measures = {quality.measure: in_words(quality) for quality in measures_of(field)}
    notes = [f"speeds: {unmeasured}"] if rates is None else []
    notes += [f"kld: {words}" for words in [*measures.values()][:1]]
    return Choice(rows, pick.one.artifact if pick else None, why, tuple(notes), measures)


def case_of(one: Candidate, rates: Rates | None, budget: int, common: str, workers: int) -> Case:
    found = speed_of(one, rates, workers)
    by_common = next((quality for quality in one.qualities if quality.measure == common), None)
    return Case(
        one=one,
        fits=one.memory_bytes <= budget,
        speed=found,
        seconds=seconds_of(one, found, rates),
        kld=divergence(by_common),
        shown=by_common or next(iter(one.qualities), None),
    )


def divergence(quality: Quality | None) -> float | None:
    if quality is None:
        return None
    return 0.0 if quality.is_base else quality.kld_mean


def picked(field: Field, goal: Goal) -> tuple[Case, str]:
    """The pick for an aim, and why."""
    if len(field.cases) == 1:
        return field.cases[0], "all there is"
    if goal.aim == BALANCED and not any(case.one.generates for case in field.cases):
        return encoder(field)
    return {SPEED: fastest, QUALITY: best, BALANCED: balanced}[goal.aim](field)


def fastest(field: Field) -> tuple[Case, str]:
    """The least time for a typical request; where no speed is predicted of any, the fewest bytes.

    Below 4 bits a weight only what has a measured quality: a model that answers nonsense is no faster one.
    """
    sensible = [case for case in field.possible if case.kld is not None or not too_few(case.one)]
    timed = [case for case in sensible or field.possible if case.seconds is not None]
    if timed:
        pick = min(timed, key=lambda case: (case.seconds, case.one.bytes))
        done = f"{REQUEST}{took(pick)}" if pick.one.generates else f"{rate(pick)} predicted"
        why = f"the fastest that fits, {done}"
    else:
        pick = min(sensible or field.possible, key=lambda case: case.one.bytes)
        bound = (
            f" of those measured or without a matrix under {LEAST_BITS:.0f} bits a weight" if sensible else ""
        )
        why = f"the smallest{bound}, as no speed is known"
    return pick, f"{why}; {said(pick)}"


def too_few(one: Candidate) -> bool:
    """Whether a matrix has so few bits that only a measurement tells whether the model still answers."""
    return bool(one.types) and one.least_bits < LEAST_BITS


def best(field: Field) -> tuple[Case, str]:
    """The least measured divergence, unless what was not measured has more bits in every tensor; without a
    measurement the most bits a weight."""
    most = max(field.possible, key=lambda case: (case.one.bits, case.one.is_source, -case.one.bytes))
    measured = [case for case in field.possible if case.kld is not None]
    if measured:
        least = min(measured, key=lambda case: (case.kld, case.one.bytes))
        if most.kld is not None or not surely_as_good(most.one, least.one):
            return least, f"the least divergence of what was measured; {said(least)}"
        return (
            most,
            f"more bits in every tensor than {least.one.level}, the best that was measured; {said(most)}",
        )
    if most.one.is_source:
        return most, "the source itself: what is made from it is no better"
    bits = f" ({most.one.bits:.2f})" if most.one.bits else ""
    return most, f"the most bits a weight that fit{bits}; {said(most)}"


def balanced(field: Field) -> tuple[Case, str]:
    """The fastest of those no larger than Q4_K_M and no further from the base, as was measured or is sure; where no
    Q4_K_M is possible, the best."""
    reference = reference_of(field)
    if reference is None:
        pick, why = best(field)
        found = [case for case in field.cases if case.one.level == REFERENCE]
        lacks = "is there" if not found else "is as quick" if any(case.fits for case in found) else "fits"
        return pick, f"{why}; no {REFERENCE} {lacks} to compare with"
    good = [case for case in field.possible if as_good(case, reference)]
    timed = [case for case in good if case.seconds is not None and reference.seconds is not None]
    if timed:
        pick = min(timed, key=lambda case: (case.seconds, case.kld or 0.0, case.one.bytes))
    else:
        pick = min(good, key=lambda case: (not case.one.is_source, case is not reference))
    slower = [case.one.level for case in timed if case is not pick]
    if pick is reference and slower:
        others = ", ".join(slower)
        why = (
            f"the fastest of what is no larger and no further off than {REFERENCE}: {others} too, but slower"
        )
    elif pick is reference:
        why = f"the {REFERENCE} that all others are compared with: none is known to be as good, as small and faster"
    elif pick.kld is not None and reference.kld is not None:
        why = f"no larger than {REFERENCE} and no further off, {pick.kld:.4g} against {reference.kld:.4g} nats a token"
    elif pick.one.is_source:
        why = f"the source itself: no larger than a {REFERENCE} made from it, which is no better"
    else:
        why = f"no larger than {REFERENCE}, and each tensor as there or with a bit more"
    if timed and pick is not reference:
        why += f"; the fastest such, {REQUEST}{took(pick)} against {reference.seconds:.2f} s"
    unknown = reference.kld is None or (pick.kld is None and not pick.one.is_source)
    return pick, f"{why}; {not_measured(pick)}" if unknown else why


def encoder(field: Field) -> tuple[Case, str]:
    """The fastest that keeps labels, whichever backend: neither is always the faster."""
    kept = [case for case in field.possible if case.one.keeps_labels]
    timed = [case for case in kept or field.possible if case.seconds is not None]
    bound = "of the levels that keep labels" if kept else "though its labels may differ"
    if not timed:
        pick = min(kept or field.possible, key=lambda case: case.one.bytes)
        return pick, f"the smallest {bound}, as no speed is known; {said(pick)}"
    pick = min(timed, key=lambda case: (case.seconds, case.one.bytes))
    others = [case for case in timed if case.one.is_onnx != pick.one.is_onnx]
    why = f"the fastest {bound}, {rate(pick)} predicted"
    if others:
        second = min(others, key=lambda case: (case.seconds, case.one.bytes))
        why += f" against {rate(second)} of {second.one.level}, the other backend's fastest"
    return pick, f"{why}; {said(pick)}"


def rate(case: Case) -> str:
    """Tokens a second of an encoder's texts."""
    return f"{case.speed.prefill_tps:,.0f} t/s" if case.speed else "unknown"


def reference_of(field: Field) -> Case | None:
    """The Q4_K_M that others are held against: one that is measured, or here, before one that is not."""
    found = [case for case in field.possible if case.one.level == REFERENCE]
    return min(found, key=lambda case: (case.kld is None, case.one.where != HERE), default=None)


def as_good(case: Case, reference: Case) -> bool:
    """Whether a case is no larger and, as far as is known, no worse."""
    if case is reference:
        return True
    if case.one.bytes > reference.one.bytes:
        return False
    if case.kld is not None and reference.kld is not None:
        return case.kld <= reference.kld
    return surely_as_good(case.one, reference.one)


def took(case: Case) -> str:
    """The time; of a file known by its name only its rank is meant, for attention is not counted."""
    return "" if case.seconds is None or case.speed is None else f" in {case.seconds:.2f} s"


def said(case: Case) -> str:
    """What is known of a pick's quality."""
    if case.shown is not None and case.shown.is_base:
        return "it is what the others are measured against"
    if case.shown is None or case.shown.kld_mean is None:
        return not_measured(case)
    return f"{case.shown.kld_mean:.4g} nats a token from {case.shown.base}"


def not_measured(case: Case) -> str:
    """That no quality is known, and for what continues text how to know it."""
    return NOT_MEASURED if case.one.generates else "quality not measured"


def why_not(case: Case, pick: Case | None, field: Field, goal: Goal) -> str:
    """Why a case is not the pick, in clauses that many rows share."""
    found = []
    if not case.fits:
        found.append("does not fit")
    elif case.one.blocked:
        found.append(case.one.blocked)
    elif case not in field.possible:
        found.append("the first token takes longer than asked for")
    elif pick is not None:
        found.append(behind(case, pick, field, goal))
    if case.shown and field.measure and case.shown.measure != field.measure.measure:
        found.append("its divergence is by another measure")
    return "; ".join([*found, *filter(None, [case.one.note])])


def behind(case: Case, pick: Case, field: Field, goal: Goal) -> str:
    """In what a possible case is behind the pick."""
    reference = reference_of(field)
    if goal.aim == SPEED:
        if case.kld is None and too_few(case.one):
            return f"matrices under {LEAST_BITS:.0f} bits a weight, and its quality not measured"
        if case.seconds is not None:
            return "slower"
        return "larger, and no speed is known" if case.one.bytes > pick.one.bytes else "no speed is known"
    if goal.aim == BALANCED and not pick.one.generates:
        if not case.one.keeps_labels:
            return "its labels may differ"
        if case.seconds is None or pick.seconds is None:
            return "larger, and no speed is known" if case.one.bytes > pick.one.bytes else "no speed is known"
        return "slower than the pick"
    if goal.aim == BALANCED and reference is not None:
        if case.one.bytes > reference.one.bytes:
            return f"larger than {REFERENCE}"
        if as_good(case, reference):
            known = case.seconds is not None and pick.seconds is not None
            return "slower than the pick" if known else "no speed is known"
        return (
            "quality not measured"
            if case.kld is None or reference.kld is None
            else (f"further from the base than {REFERENCE}")
        )
    no_better = "no better, and larger" if case.one.bytes > pick.one.bytes else "no better"
    if case.kld is not None and pick.kld is not None:
        return "further from the base than the pick" if case.kld > pick.kld else no_better
    if case.one.bits < pick.one.bits:
        return "fewer bits a weight"
    return "quality not measured" if case.one.bits > pick.one.bits and case.kld is None else no_better


def why_none(field: Field, goal: Goal, budget: int) -> str:
    """Why nothing was picked, with the nearest that could be."""
    makeable = [case for case in field.cases if not case.one.blocked] or list(field.cases)
    fitting = [case for case in makeable if case.fits and case.speed is not None]
    if goal.ttft is not None and any(case.fits for case in makeable) and not fitting:
        return "ttft cannot be judged: of none that fits is the time to the first token predicted"
    if fitting and goal.ttft is not None:
        soonest, quickest = min((case.speed.ttft_s, case.one.level) for case in fitting if case.speed)
        return f"none gives its first token within {goal.ttft:g} s; the quickest, {quickest}, takes {soonest:.2g} s"
    smallest = min(makeable, key=lambda case: (case.one.memory_bytes, case.one.bytes)).one
    least = f"the smallest to run, {smallest.level} of {smallest.bytes:,} bytes, takes {mib(smallest.memory_bytes)}"
    blocked = next((case.one for case in field.cases if case.fits and case.one.blocked), None)
    if blocked is None:
        return f"nothing fits in {mib(budget)}: {least}"
    others = "" if smallest.blocked else f"; of the others {least}"
    return f"nothing that fits in {mib(budget)} can be taken: {blocked.level} {blocked.blocked}{others}"


def measures_of(field: Field) -> list[Quality]:
    """A quality of each measure that rows show, the common one first."""
    shown = [case.shown for case in field.cases if case.shown]
    return [field.measure, *shown] if field.measure else shown


def in_words(found: Quality) -> str:
    """What a divergence was measured with."""
    rough = ", which tells only large differences" if found.kind == CERTIFICATE else ""
    return f"from {found.base}, over {found.tokens:,} tokens of {found.text}{rough}"
