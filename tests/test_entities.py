"""Token logits into entities: words, schemes, offsets, windows, scores of words with tags."""

from __future__ import annotations

from contextlib import closing

import pytest
import tiny_classifiers

from edge.errors import BadData, RequestError
from edge.onnx.encoder import OnnxEncoder
from edge.tasks.answers import Wish, answers, report
from edge.tasks.entities import continues, scheme, spans
from edge.tasks.rows import Row


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    with closing(OnnxEncoder(tiny_classifiers.names(tmp_path_factory.mktemp("m") / "names"))) as found:
        yield found


def of(encoder, text, **wish):
    (found,) = answers(encoder, [Row(text)], Wish(**wish))
    for entity in found.entities:
        assert text[entity.start : entity.end] == entity.text
    return found


def named(found):
    return [(entity.label, entity.text) for entity in found.entities]


def test_words_are_merged_and_have_their_characters(encoder):
    found = of(encoder, "  Ada Byron in\tNew York .")
    assert named(found) == [("PER", "Ada Byron"), ("LOC", "New York")]
    assert (found.entities[0].start, found.entities[1].end) == (2, 23)
    assert found.entities[0].probability == pytest.approx(0.9317, abs=1e-4)  # softmax of 4, 0, 0, 0, 0


def test_the_first_piece_of_a_word_decides(encoder):
    assert named(of(encoder, "Adas in")) == [("PER", "Adas")]  # ##s votes for a place


def test_a_hyphen_or_an_apostrophe_inside_is_of_the_word(encoder):
    assert named(of(encoder, "Ada-York in")) == [("PER", "Ada-York")]
    assert named(of(encoder, "Ada - York")) == [("PER", "Ada"), ("LOC", "York")]
    assert named(of(encoder, "Ada.")) == [("PER", "Ada")]
    assert named(of(encoder, "New-")) == [("LOC", "New")]


@pytest.mark.parametrize(
    ("text", "at", "one"),
    [
        ("ab", 1, True), ("a b", 2, False), ("a-b", 1, True), ("a-b", 2, True), ("a-", 1, False), ("-b", 1, False),
        ("a.b", 1, True), ("a. b", 1, False), ("a,b", 1, False), ("a--b", 1, False), ("O'B", 2, True),
        ("北京", 1, False), ("北a", 1, False), ("नमस्ते", 3, True), ("naïve", 3, True), ("7%", 1, False),
    ],
)  # fmt: skip
def test_what_continues_a_word(text, at, one):
    assert continues(text, at) is one


def test_a_beginning_ends_the_entity_before_it(encoder):
    assert named(of(encoder, "Ada Ada Byron York York New")) == [
        ("PER", "Ada"), ("PER", "Ada Byron"), ("LOC", "York York"), ("LOC", "New"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("I-A I-A O I-A", [("A", 0, 2), ("A", 3, 4)]),  # IOB1
        ("I-A B-A I-B", [("A", 0, 1), ("A", 1, 2), ("B", 2, 3)]),
        ("B-A L-A U-A U-A", [("A", 0, 2), ("A", 2, 3), ("A", 3, 4)]),  # BILOU
        ("S-A B-A I-A E-A E-A", [("A", 0, 1), ("A", 1, 4), ("A", 4, 5)]),  # BIOES
        ("A A O B B", [("A", 0, 2), ("B", 3, 5)]),  # bare types
        ("NOUN NOUN VERB", [("NOUN", 0, 1), ("NOUN", 1, 2), ("VERB", 2, 3)]),  # no O: each word is one
        ("B-creative-work I-creative-work", [("creative-work", 0, 2)]),
        ("B_A I_A", [("A", 0, 2)]),
        ("O O", []),
        ("", []),
    ],
)
def test_schemes(tags, found):
    assert list(spans(tags.split(), scheme(tags.split()))) == found


def test_a_threshold_leaves_out_what_is_less_likely(encoder):
    assert named(of(encoder, "Ada", threshold=0.93)) == [("PER", "Ada")]
    assert named(of(encoder, "Ada", threshold=0.94)) == []


def test_a_blank_text_has_none(encoder):
    assert of(encoder, "\t").entities == ()


def test_a_cut_text_says_so_and_a_split_one_finds_all_once(encoder):
    text = "in in Ada Byron in " * 8
    cut, split = of(encoder, text), of(encoder, text, split=True)
    assert cut.left_out == 30
    assert len(cut.entities) == 2
    assert (split.left_out, named(split)) == (0, [("PER", "Ada Byron")] * 8)


def test_an_entity_across_windows_is_one(encoder):
    text = "Ada " + "Byron " * 40
    assert named(of(encoder, text, split=True)) == [("PER", text.strip())]


@pytest.mark.parametrize("wish", [{"labels": ("PER",)}, {"top": 2}])
def test_entities_are_not_chosen_among(encoder, wish):
    with pytest.raises(RequestError, match="finds entities"):
        of(encoder, "Ada", **wish)


def test_a_pair_has_no_entities(encoder):
    with pytest.raises(RequestError, match="finds entities in one text"):
        list(answers(encoder, [Row("Ada", pair="York")], Wish()))


def sentence(words, tags, line=1):
    return Row(words, None, tuple(tags.split()), line, tuple(words.split(" ")))


def test_given_words_are_scored_by_their_first_piece(encoder):
    found = report(
        encoder,
        [
            sentence("Ada Byron in New York", "I-PER I-PER O I-LOC I-LOC"),  # IOB1, as CoNLL-2003 is
            sentence("Ada-x in York.", "I-PER O I-LOC"),  # words are not cut where the tokenizer cuts
            sentence("Byron \ufe0f", "B-LOC B-PER"),  # confused; and a word that has a piece, but no vote
        ],
        Wish(),
    )
    assert (found.kind, found.rows, found.accuracy) == ("entities", 3, None)
    assert found.labels["LOC"].support == 3
    assert found.labels["PER"].precision == 2 / 3
    assert found.matrix.tolist() == [[2, 1, 0], [0, 2, 1], [0, 0, 0]]


def test_words_beyond_the_model_s_length_are_missed(encoder):
    found = report(encoder, [sentence("in " * 11 + "Ada", "O " * 11 + "B-PER")], Wish())
    assert (found.labels["PER"].recall, found.labels["PER"].support) == (0, 1)


def test_a_report_needs_tags_that_the_model_knows(encoder):
    with pytest.raises(BadData, match="line 7 tags Ada with B-person, which the model lacks"):
        report(encoder, [sentence("Ada", "B-person", line=7)], Wish())
    with pytest.raises(RequestError, match="needs words with tags"):
        report(encoder, [Row("Ada", label="PER")], Wish())
