"""Batches, order, windows: what comes out is in the order of what went in, soon, and with memory that does not grow."""

from __future__ import annotations

import threading
import time
import tracemalloc
from contextlib import closing
from dataclasses import replace
from itertools import count, islice, pairwise

import numpy as np
import pytest
import tiny_classifiers

from edge.errors import BadData, EngineError, PromptTooLong, RequestError
from edge.onnx.encoder import OnnxEncoder
from edge.tasks import stream
from edge.tasks.rows import Row


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    with closing(
        OnnxEncoder(tiny_classifiers.feelings(tmp_path_factory.mktemp("m") / "feelings"), threads=2)
    ) as found:
        yield found


class Watched:
    """A real encoder that notes what it was asked for."""

    def __init__(self, encoder, before=lambda batch: None):
        self.encoder, self.about, self.before = encoder, encoder.about, before
        self.batches = []

    def tokenize(self, texts, pairs=None, *, spans=False):
        return self.encoder.tokenize(texts, pairs, spans=spans)

    def run(self, batch):
        self.batches.append([len(each.ids) for each in batch])
        self.before(batch)
        return self.encoder.run(batch)


def texts(number):
    """Rows of very different length, whose logits tell them apart."""
    return [Row("good " * (at % 7) + "bad " * (at % 5) + "so", line=at + 1) for at in range(number)]


def test_results_are_those_of_each_text_by_itself_in_the_order_of_the_input(encoder):
    rows = texts(300)
    found = list(stream.run(encoder, rows))
    assert [row for row, _, _ in found] == rows
    for row, tokens, output in found[::17]:
        (alone,) = encoder.run(encoder.tokenize([row.text]))
        assert len(tokens.ids) == len(encoder.tokenize([row.text])[0].ids)
        assert np.array_equal(output, alone)


def test_batches_hold_texts_of_like_length_within_the_budget(encoder, monkeypatch):
    monkeypatch.setattr(stream, "BATCH_TOKENS", 40)
    watched = Watched(encoder)
    list(stream.run(watched, texts(200)))
    assert sum(map(len, watched.batches)) == 200
    assert all(max(batch) * len(batch) <= 40 for batch in watched.batches)
    wasted = sum(max(batch) * len(batch) - sum(batch) for batch in watched.batches)
    assert wasted < 0.1 * sum(map(sum, watched.batches))


def test_a_text_longer_than_the_budget_is_a_batch_of_its_own():
    assert list(stream.batches([10, 5000, 9, 9])) == [[1], [0, 2, 3]]
    assert list(stream.batches([])) == []


def test_blank_texts_keep_their_place_and_are_not_run(encoder):
    watched = Watched(encoder)
    found = list(stream.run(watched, [Row(""), Row("good"), Row(" \t"), Row("\u00a0")]))
    assert [output is None for _, _, output in found] == [True, False, True, True]
    assert watched.batches == [[3]]


def test_the_first_results_come_before_the_input_ends_and_memory_stays_flat(encoder):
    taken = 0
    watched = Watched(encoder)
    watched.about = replace(encoder.about, window=64)

    def endless():
        nonlocal taken
        for at in count():
            taken += 1
            yield Row("so good" if at % 3 else "bad", line=at)

    with closing(stream.run_parts(watched, endless())) as found:
        next(found)
        assert taken <= 3 * stream.FIRST
        list(islice(found, 500))
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in islice(found, 1500):
            pass
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert grown < 150_000  # two windows at most; 1,500 rows with their results would be more
    assert taken <= 2_001 + 3 * 64


def test_a_slow_source_is_answered_line_by_line(encoder):
    asked = threading.Event()

    def typed():
        yield Row("good")
        assert asked.wait(30)
        yield Row("bad")

    with closing(stream.run_parts(encoder, typed(), live=True)) as found:
        row, _ = next(found)  # would hang if it waited for the next row
        asked.set()
        assert [row.text, *(row.text for row, _ in found)] == ["good", "bad"]


def test_an_error_among_the_rows_comes_after_the_results_before_it(encoder):
    def broken():
        yield from texts(50)
        raise BadData("line 51 is bad")

    for live in (False, True):
        found = stream.run(encoder, broken(), live=live)
        assert len(list(islice(found, 50))) == 50
        with pytest.raises(BadData, match="line 51"):
            next(found)


def test_an_error_of_the_encoder_stops_the_threads(encoder):
    def fail(batch):
        raise EngineError("no more")

    before = threading.active_count()
    with pytest.raises(EngineError, match="no more"):
        list(stream.run(Watched(encoder, fail), texts(100)))
    assert threading.active_count() == before


@pytest.mark.parametrize("live", [False, True])
def test_leaving_early_stops_the_threads(encoder, live):
    before = threading.active_count()
    with closing(stream.run_parts(encoder, (Row("good") for _ in count()), live=live)) as found:
        next(found)
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_workers_run_at_the_same_time(encoder):
    together = threading.Barrier(2, timeout=20)  # broken, with an error, if only one at a time came
    watched = Watched(encoder, lambda batch: together.wait())
    watched.about = replace(encoder.about, workers=2)
    assert len(list(stream.run(watched, [Row("good " * 6), *(Row("bad") for _ in range(64))]))) == 65


def test_long_texts_are_read_in_windows_that_cover_them(encoder):
    words = [f"w{number}" for number in range(40)]
    text = " ".join(words)
    ((_, parts),) = stream.run_parts(encoder, [Row(text)], split=True)
    assert len(parts) > 3
    assert not any(len(part.tokens.ids) > tiny_classifiers.MOST for part in parts)
    read = set()
    for part in parts:
        for start, end in part.tokens.spans:
            read.update(range(part.offset + start, part.offset + end))
    assert {at for at, letter in enumerate(text) if letter != " "} <= read
    for before, after in pairwise(parts):
        assert before.offset < after.offset <= before.offset + before.tokens.spans[-2][1]  # they overlap


def test_pairs_are_not_read_in_windows_that_would_lose_the_second_text(encoder):
    rows = [Row("good", pair="so " * 40)]
    with pytest.raises(RequestError, match="pairs of texts"):
        list(stream.run_parts(encoder, rows, split=True))


def test_a_text_that_fits_is_one_window_and_without_split_the_rest_is_counted(encoder):
    ((_, parts),) = stream.run_parts(encoder, [Row("so good")], split=True)
    assert len(parts) == 1
    ((_, (part,)),) = stream.run_parts(encoder, [Row("good " * 30)])
    assert (len(part.tokens.ids), part.tokens.left_out) == (12, 20)


@pytest.mark.parametrize("text", ["x" * 5000, "x" * 60 + " good" * 20, "好" * 100])
def test_windows_end_for_texts_without_spaces_and_unknown_words(encoder, text):
    ((_, parts),) = stream.run_parts(encoder, [Row(text)], split=True)
    assert 0 < len(parts) < len(text)
    assert parts[-1].offset < len(text)


def test_a_megabyte_takes_time_as_its_length(encoder):
    begun = time.process_time()
    list(stream.windows_of(encoder, "so good " * 400))
    short = time.process_time() - begun
    begun = time.process_time()
    list(stream.windows_of(encoder, "so good " * 1600))
    assert time.process_time() - begun < 12 * short + 0.5  # the square would be 16


def test_splitting_needs_to_know_where_tokens_stand(encoder):
    class Blind(Watched):
        def tokenize(self, texts, pairs=None, *, spans=False):
            return self.encoder.tokenize(texts, pairs)

    with pytest.raises(RequestError, match="does not say where a token begins"):
        list(stream.run_parts(Blind(encoder), [Row("good " * 30)], split=True))


def test_a_text_that_is_too_long_for_a_chat_model_names_its_line(encoder):
    class Strict(Watched):
        def tokenize(self, texts, pairs=None, *, spans=False):
            if any(len(text) > 40 for text in texts):
                raise PromptTooLong(500, 256)
            return self.encoder.tokenize(texts, pairs)

    with pytest.raises(BadData, match="line 2: the prompt is 500 tokens"):
        list(stream.run(Strict(encoder), [Row("good", line=1), Row("good " * 30, line=2)]))
