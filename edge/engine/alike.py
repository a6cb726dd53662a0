"""Rows beside the real ones, so that llama.cpp computes a row with the same kernels whatever else is in its batch.

Two of its choices on a CPU depend on how many rows there are (bench/LOG.md, "the same text whatever else runs"):
one row of one sequence alone, over 512 cells or more, is split over the threads and summed in another order; and
the rearranged kernels of some types compute rows by fours, and what is left over singly.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.engine.backend import Row

SPLIT_CELLS = 512  # llama.cpp ggml-cpu/ops.cpp, ggml_compute_forward_flash_attn_ext_f16: use_split_kv_path
PADDING = 0  # any token: what it computes is dropped


def padding(rows: Sequence[Row], idle: Sequence[tuple[int, int]], multiple: int, context: int) -> list[Row]:
    """Rows to decode after `rows`, the next tokens of one or more sequences, and to drop from their sequences again.

    idle are (sequence, length) of those that nobody has, multiple the rows that a kernel takes at once, context the
    tokens a sequence may take. As few rows as do; fewer where there is no room.
    """
    alone = len({row.sequences for row in rows}) == 1
    least = 2 if alone and len(rows) == 1 and rows[0].position + 1 > SPLIT_CELLS - 256 else 1
    missing = max(least - len(rows), -len(rows) % multiple)
    if not missing:
        return []
    free = [(sequence, length) for sequence, length in idle if length < context]
    if len(free) >= missing and not alone:
        return [Row(PADDING, length, (sequence,), False) for sequence, length in free[:missing]]
    # llama.cpp cuts a batch into pieces with equally many rows of each sequence, so each gets as many.
    ends = {row.sequences: row.position + 1 for row in rows}
    each = 1
    while (len(rows) + each * len(ends)) % multiple or len(rows) + each * len(ends) < least:
        each += 1
    if alone:
        each = missing
    return [
        Row(PADDING, end + more, sequences, False)
        for sequences, end in ends.items()
        for more in range(each)
        if end + more < context
    ]
