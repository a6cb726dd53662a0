"""Logits into labels: one a text, many, none below the threshold, numbers, long texts."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import tiny_classifiers

from edge.errors import EngineError, RequestError
from edge.onnx.encoder import OnnxEncoder
from edge.tasks.answers import Wish, answers, report
from edge.tasks.classify import Classified, probabilities, reading
from edge.tasks.rows import Row


@pytest.fixture
def encoder(tmp_path):
    opened = []

    def call(*args, **options):
        opened.append(OnnxEncoder(tiny_classifiers.feelings(tmp_path / f"m{len(opened)}", *args, **options)))
        return opened[-1]

    yield call
    for each in opened:
        each.close()


def of(encoder, *texts, **wish):
    return list(answers(encoder, [Row(text, line=at) for at, text in enumerate(texts, 1)], Wish(**wish)))


def softmax(*logits):
    raised = np.exp(np.array(logits, np.float64))
    return raised / raised.sum()


def test_one_label_a_text_with_all_probabilities(encoder):
    (found,) = of(encoder(), "so good")
    expected = softmax(-2, 0.5, 2)
    assert (found.label, found.text, found.left_out) == ("positive", "so good", 0)
    assert found.probability == found.labels[0].probability == pytest.approx(expected[2], abs=1e-12)
    assert [each.label for each in found.labels] == ["positive", "neutral", "negative"]
    assert [each.probability for each in found.labels] == pytest.approx(sorted(expected)[::-1], abs=1e-12)


def test_of_equals_the_first_label_is_taken(encoder):
    assert of(encoder(), "x")[0].label == "negative"


def test_top_cuts_the_labels_shown_and_nothing_else(encoder):
    model = encoder()
    (cut,), (whole,) = of(model, "so good", top=1), of(model, "so good")
    assert cut == replace(whole, labels=whole.labels[:1])


def test_below_the_threshold_a_text_has_no_label_but_probabilities(encoder):
    model = encoder()
    sure, unsure = of(model, "great great", "so", threshold=0.9)
    assert sure.label == "positive"
    assert unsure.label is None
    assert unsure.probability == unsure.labels[0].probability < 0.9


def test_labels_named_are_chosen_among(encoder):
    (found,) = of(encoder(), "so good", labels=("neutral", "negative"))
    expected = softmax(-2, 0.5)
    assert [each.label for each in found.labels] == ["neutral", "negative"]
    assert found.probability == pytest.approx(expected[1], abs=1e-12)


def test_a_label_that_the_model_lacks_is_said_with_those_it_has(encoder):
    with pytest.raises(RequestError, match="has no label angry") as raised:
        of(encoder(), "x", labels=("angry",))
    assert raised.value.hint == "its labels are negative, neutral, positive"


def test_many_labels_a_text_are_those_that_reach_the_threshold(encoder):
    model = encoder("multi_label_classification")
    good, bad, none = of(model, "so good", "bad", "bad good")
    assert [each.label for each in good.labels] == ["positive", "neutral"]
    assert good.labels[0].probability == pytest.approx(1 / (1 + np.exp(-2.0)), abs=1e-12)
    assert [each.label for each in bad.labels] == ["negative", "neutral"]  # a logit of 0 is 0.5
    assert bad.label == "negative"
    assert none.label == "negative"
    assert of(model, "bad good", threshold=0.99) == [replace(none, label=None, labels=())]
    assert len(of(model, "so good", threshold=0)[0].labels) == 3


def test_a_single_label_is_decided_by_itself(encoder):
    good, bad = of(encoder(labels=["spam"]), "bad", "good")
    assert (good.label, bad.label) == ("spam", None)
    assert bad.probability == pytest.approx(1 / (1 + np.exp(2.0)), abs=1e-12)


def test_a_regression_gives_its_number_and_no_probability(encoder):
    model = encoder("regression", labels=["stars"])
    assert of(model, "bad") == [Classified("bad", values=(("stars", 3.0),))]
    with pytest.raises(RequestError, match="gives numbers, not labels"):
        report(model, [Row("bad", label="3")], Wish())


def test_a_blank_text_has_no_label(encoder):
    assert of(encoder(), " \n", "good")[0] == Classified(" \n")


def test_a_cut_text_says_how_many_tokens_were_not_read(encoder):
    (found,) = of(encoder(), "bad " + "good " * 19)
    assert found.left_out == 10  # 20 words, of which 10 stand beside [CLS] and [SEP]


def test_a_split_text_is_the_mean_of_its_windows_by_their_tokens(encoder):
    model = encoder()
    text = "good " * 10 + "bad " * 20
    (cut,), (split,) = of(model, text), of(model, text, split=True)
    assert (cut.label, split.label) == ("positive", "negative")
    assert split.left_out == 0
    assert sum(each.probability for each in split.labels) == pytest.approx(1)


def test_probabilities_of_extreme_logits_are_numbers():
    assert probabilities(np.array([1e4, -1e4], np.float32), multi=False).tolist() == [1, 0]
    assert probabilities(np.array([1e4, -1e4], np.float32), multi=True).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("option", "said"), [({"threshold": 1.5}, "1.5 is no probability"), ({"top": 0}, "none")]
)
def test_what_cannot_be_wished(encoder, option, said):
    with pytest.raises(RequestError, match=said):
        reading(encoder().about, **option)


def test_a_model_that_gives_no_numbers_names_the_line(encoder):
    class Damaged:
        def __init__(self, encoder):
            self.encoder, self.about, self.tokenize = encoder, encoder.about, encoder.tokenize

        def run(self, batch):
            return [output * np.nan for output in self.encoder.run(batch)]

    with pytest.raises(EngineError, match="gives no number for the text of line 1"):
        of(Damaged(encoder()), "good")


def test_embeddings_have_no_labels(encoder):
    model = encoder()
    model.about = replace(model.about, task="embedding")
    with pytest.raises(RequestError, match="makes embeddings and has no labels") as raised:
        of(model, "good")
    assert "edge train" in raised.value.hint


def test_a_report_counts_what_the_threshold_left_without_a_label(encoder):
    rows = [
        Row("good", label="positive"),
        Row("so", label="neutral"),
        Row("", label="neutral"),
        Row("bad", label="2"),
    ]
    found = report(encoder(), rows, Wish(threshold=0.8, top=1))
    assert found.accuracy == 0.25
    assert found.labels["neutral"].recall == 0
    assert found.names == ("negative", "neutral", "positive", "(none)")


def test_a_report_of_many_labels(encoder):
    rows = [Row("so good", label="positive,neutral"), Row("bad bad", label=("negative",))]
    found = report(encoder("multi_label_classification"), rows, Wish(threshold=0.6))
    assert (found.kind, found.accuracy, found.micro.f1) == ("multi", 1.0, 1.0)


def test_answers_left_early_end(encoder):
    with closing(answers(encoder(), [Row("good")] * 500, Wish())) as found:
        assert next(found).label == "positive"
