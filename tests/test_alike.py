"""Padding: every piece that llama.cpp cuts a batch into has as many rows as its kernels need."""

from hypothesis import given, settings
from hypothesis import strategies as some

from edge.engine.alike import padding
from edge.engine.backend import Row

CONTEXT = 1024


def pieces(batch):
    """Rows of each piece, as llama.cpp cuts a batch (llama-batch.cpp, split_equal): neighbours, equally many rows."""
    left = {}
    for row in sorted(batch, key=lambda row: (row.sequences, row.position)):
        left.setdefault(row.sequences[0], []).append(row)
    while left:
        piece, last = [], None
        for sequence in sorted(left):
            if last is not None and sequence != last + 1:
                break
            piece.append(sequence)
            last = sequence
        each = min(len(left[sequence]) for sequence in piece)
        yield [left[sequence].pop(0) for _ in range(each) for sequence in piece]
        left = {sequence: rows for sequence, rows in left.items() if rows}


@settings(max_examples=300, deadline=None)
@given(
    slots=some.integers(2, 16),
    live=some.sets(some.integers(0, 15), min_size=1),
    lengths=some.lists(some.integers(0, 600), min_size=16, max_size=16),
    multiple=some.sampled_from([1, 2, 4, 8]),
    guesses=some.integers(0, 7),
)
def test_no_row_is_computed_by_other_kernels_than_beside_all(slots, live, lengths, multiple, guesses):
    live = sorted(sequence for sequence in live if sequence < slots) or [0]
    rows = [Row(7, lengths[sequence], (sequence,), True) for sequence in live]
    if len(live) == 1:
        rows += [Row(7, lengths[live[0]] + 1 + guess, (live[0],), True) for guess in range(guesses)]
    idle = {sequence: lengths[sequence] for sequence in range(slots) if sequence not in live}
    extra = padding(rows, idle, multiple, CONTEXT)
    batch = [*rows, *extra]
    assert len({(row.sequences, row.position) for row in batch}) == len(batch)
    assert not any(row.wanted for row in extra)
    for piece in pieces(batch):
        if not any(row.wanted for row in piece):
            continue
        assert len(piece) >= multiple
        assert len(piece) % min(4, multiple) == 0
        alone = len(piece) == 1
        assert not (alone and piece[0].position >= 256)


def test_what_needs_no_padding_gets_none():
    beside = [Row(7, 300, (sequence,), True) for sequence in (1, 2, 3)]
    assert padding(beside, {0: 5}, 1, CONTEXT) == []
    assert padding([Row(7, 255, (0,), True)], {}, 1, CONTEXT) == []
    assert len(padding([Row(7, 256, (0,), True)], {1: 0}, 1, CONTEXT)) == 1
    gap = padding([Row(7, 9, (0,), True), Row(7, 9, (2,), True)], {1: 40}, 1, CONTEXT)
    assert gap == [Row(0, 40, (1,), False)]  # joins the two


def test_a_full_sequence_gets_no_row_beyond_its_end():
    (last,) = [Row(7, CONTEXT - 1, (0,), True)]
    assert padding([last], {1: CONTEXT}, 4, CONTEXT) == []
