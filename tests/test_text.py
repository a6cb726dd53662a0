"""Text from token bytes: whole characters, stop texts across borders, nothing lost."""

from hypothesis import given
from hypothesis import strategies as st

from edge.engine.text import TextStream, overlap


def feed(pieces, stop=()):
    stream = TextStream(stop)
    shown = []
    for piece in pieces:
        shown.append(stream.push(piece))
        if stream.stopped:
            return shown, stream
    shown.append(stream.finish())
    return shown, stream


def test_a_character_waits_for_its_last_byte():
    shown, _ = feed([b"a\xf0\x9f", b"\x98", b"\x80b"])
    assert shown == ["a", "", "\U0001f600b", ""]


def test_bytes_that_are_no_text_become_the_replacement_character():
    shown, _ = feed([b"a\xff", b"b\xf0\x9f"])
    assert "".join(shown) == "a\ufffdb\ufffd"


def test_text_that_may_begin_a_stop_text_is_held_back_until_it_does_not():
    shown, stream = feed([b"one EN", b"D", b"ING"], ["ENDS"])
    assert shown == ["one ", "", "ENDING", ""]
    assert not stream.stopped


def test_the_earliest_stop_text_wins():
    shown, stream = feed([b"abc", b"def"], ["ef", "cd"])
    assert "".join(shown) == "ab"
    assert stream.stopped


def test_a_held_beginning_is_shown_when_the_answer_ends():
    shown, _ = feed([b"wait</"], ["</s>"])
    assert "".join(shown) == "wait</"


def test_overlap_counts_the_longest_beginning():
    assert [overlap(text, "aab") for text in ("", "a", "aa", "aaa", "b")] == [0, 1, 2, 2, 0]


@given(st.text(), st.lists(st.integers(1, 5)), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_however_it_is_cut_the_text_is_the_one_before_the_first_stop(text, cuts, stops):
    data, pieces, at = text.encode("utf-8", "replace"), [], 0
    text = data.decode()
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    pieces.append(data[at:])
    shown, stream = feed(pieces, stops)
    ends = [text.index(stop) for stop in stops if stop in text]
    assert stream.stopped == bool(ends)
    # pieces may show a stop text's end before an earlier-starting, longer one is complete
    assert text.startswith("".join(shown))
    if not ends:
        assert "".join(shown) == text
