"""Rows beside the real ones, so that llama.cpp computes a row with the same kernels whatever else is in its batch.

Three of its choices on a CPU depend on which rows there are (bench/LOG.md, "the same text whatever else runs"):
one row of one sequence alone, over 512 cells or more, is split over the threads and summed in another order; the
kernels of some types compute rows by fours, or by eight and more, and what is left over in another order; and a batch
is cut where the numbers of its sequences do not go up by one, so that a gap leaves rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edge.engine.backend import Row
from edge.planner import Plan

SPLIT_CELLS = 512  # llama.cpp ggml-cpu/ops.cpp, ggml_compute_forward_flash_attn_ext_f16: use_split_kv_path
CELLS = 256  # and by so many it counts them (llama-kv-cache.cpp, get_n_kv)
PADDING = 0  # any token: what it computes is dropped
WORTH_JOINING = 2  # rows between two sequences; more cost about as much as a batch of their own


def alike_to(plan: Plan) -> int:
    """Positions below which a row of a sequence alone is computed as it is among others, without padding."""
    if plan.row_multiple > 1 or plan.gpu_layers:
        return 0
    return plan.context if plan.threads.decode == 1 else SPLIT_CELLS - CELLS


def padding(rows: Sequence[Row], idle: Mapping[int, int], multiple: int, context: int) -> list[Row]:
    """Rows to decode among `rows` and to drop from their sequences afterwards. As few as do; fewer where no room is.

    rows are the next tokens of some sequences, several of each only where it is one; idle are the sequences that nobody
    has, with their lengths; multiple the rows that there have to be, by fours at least; context what a sequence holds.
    """
    free = {sequence: length for sequence, length in idle.items() if length < context}
    ends = {row.sequences[0]: row.position + 1 for row in rows}
    taken = set(ends)
    extra: list[Row] = []

    def fill(sequence: int) -> None:
        extra.append(Row(PADDING, free.pop(sequence), (sequence,), False))
        taken.add(sequence)

    for run in runs(sorted(ends), free):
        mine = [row for row in rows if row.sequences[0] in run]
        for sequence in run:
            if sequence not in ends:
                fill(sequence)
        count = len(mine) + len(run) - len(taken.intersection(run).intersection(ends))
        missing = short(mine, count, multiple)
        while missing and len(run) > 1 and (beside := neighbour(run, free, taken)) is not None:
            fill(beside)
            run = sorted([*run, beside])
            count, missing = count + 1, missing - 1
        if missing:
            tails = {sequence: ends.get(sequence, idle.get(sequence, 0) + 1) for sequence in run}
            extra += stretched(tails, missing, count, multiple, context)
    return extra


def neighbour(run: Sequence[int], free: Mapping[int, int], taken: set[int]) -> int | None:
    """A free sequence at an end of the run that does not join it to the next one."""
    for sequence, beyond in ((run[-1] + 1, run[-1] + 2), (run[0] - 1, run[0] - 2)):
        if sequence in free and beyond not in taken:
            return sequence
    return None


def runs(sequences: Sequence[int], free: Mapping[int, int]) -> Iterator[list[int]]:
    """Sequences that are decoded together, with those between them that are free and few enough to decode as well."""
    run: list[int] = []
    for sequence in sequences:
        gap = list(range(run[-1] + 1, sequence)) if run else []
        if run and (len(gap) > WORTH_JOINING or not all(between in free for between in gap)):
            yield run
            run, gap = [], []
        run += [*gap, sequence]
    yield run


def short(mine: Sequence[Row], count: int, multiple: int) -> int:
    """How many rows are missing beside `count`, of which `mine` are real."""
    alone = count == 1 and mine[0].position >= SPLIT_CELLS - CELLS
    least = max(multiple, 2 if alone else 1)
    return max(least - count, -count % min(4, least))


def stretched(
    tails: Mapping[int, int], missing: int, count: int, multiple: int, context: int
) -> Iterator[Row]:
    """More rows of each sequence of a run, equally many of each, as llama.cpp cuts a batch into such pieces."""
    each = missing if len(tails) == 1 else -(-missing // len(tails))
    while len(tails) > 1 and (count + each * len(tails)) % min(4, multiple):
        each += 1
    for sequence, end in tails.items():
        for more in range(min(each, context - end)):
            yield Row(PADDING, end + more, (sequence,), False)
