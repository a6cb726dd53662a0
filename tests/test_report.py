"""Reports equal scikit-learn's and seqeval's to the last digit, and labels that make no sense name their line."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics

from edge.errors import BadData, RequestError
from edge.tasks.entities import scheme
from edge.tasks.report import NONE, Entities, Multi, Single, gold_labels, gold_tags
from edge.tasks.rows import Row

COLORS = ("red", "green", "blue", "black", "white")


def same(ours, theirs):
    """Every figure, compared exactly."""
    assert (ours.precision, ours.recall, ours.f1, ours.support) == (
        theirs["precision"],
        theirs["recall"],
        theirs["f1-score"],
        theirs["support"],
    )


def same_report(report, theirs):
    assert {*report.labels} == {*theirs} - {
        "accuracy", "micro avg", "macro avg", "weighted avg", "samples avg",
    }  # fmt: skip
    for name, score in report.labels.items():
        same(score, theirs[name])
    same(report.macro, theirs["macro avg"])
    same(report.weighted, theirs["weighted avg"])
    if "micro avg" in theirs:
        same(report.micro, theirs["micro avg"])
    if "accuracy" in theirs:
        assert report.accuracy == theirs["accuracy"] == report.micro.f1


def quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of divisions by zero, which are compared
        return function(*args, **options)


def of_single(gold, predicted, labels=COLORS):
    counts = Single(labels)
    for pair in zip(gold, predicted, strict=True):
        counts.add(*pair)
    return counts.report()


@pytest.mark.parametrize("seed", range(30))
def test_one_label_a_text_equals_scikit_learn(seed):
    draw = random.Random(seed)
    few = COLORS[: draw.randint(1, 5)]  # some labels are missing in the data, some in the predictions
    gold = draw.choices(few, k=draw.randint(1, 60))
    predicted = [label if draw.random() < 0.7 else draw.choice(COLORS) for label in gold]
    report = of_single(gold, predicted)
    same_report(report, quietly(sklearn.metrics.classification_report, gold, predicted, output_dict=True))
    assert (report.matrix == quietly(sklearn.metrics.confusion_matrix, gold, predicted)).all()
    assert report.names == tuple(sorted({*gold, *predicted}))


def test_many_classes_equal_scikit_learn():
    draw = random.Random(77)
    names = [f"intent {number}" for number in range(77)]
    gold = draw.choices(names, k=5000)
    predicted = [label if draw.random() < 0.9 else draw.choice(names) for label in gold]
    same_report(
        of_single(gold, predicted, names),
        sklearn.metrics.classification_report(gold, predicted, output_dict=True),
    )


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [
        (["red"], ["green"]),  # nothing right: every division is by zero or of zero
        (["red"] * 4, ["red"] * 4),  # one class only
        (["red", "red", "green"], ["red", "red", "red"]),  # a label that is never predicted
        (["red", "red"], ["red", "blue"]),  # one that is not in the data
    ],
)
def test_the_edges_equal_scikit_learn(gold, predicted):
    same_report(
        of_single(gold, predicted),
        quietly(sklearn.metrics.classification_report, gold, predicted, output_dict=True),
    )


def test_a_text_without_a_label_is_no_right_answer():
    report = of_single(["red", "red", "green"], ["red", None, None])
    assert report.accuracy == 1 / 3
    assert report.labels["red"].recall == 0.5
    assert report.labels["red"].precision == 1
    assert report.names == ("green", "red", NONE)
    assert report.matrix.tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("seed", range(20))
def test_many_labels_a_text_equal_scikit_learn(seed):
    draw = random.Random(seed)
    counts, gold, predicted = Multi(COLORS), [], []
    for _ in range(draw.randint(1, 40)):
        has = [label for label in COLORS[:4] if draw.random() < 0.4]
        got = [label for label in COLORS if (label in has) != (draw.random() < 0.2)]
        counts.add(has, got)
        gold.append([label in has for label in sorted(COLORS)])
        predicted.append([label in got for label in sorted(COLORS)])
    theirs = quietly(
        sklearn.metrics.classification_report,
        np.array(gold),
        np.array(predicted),
        target_names=sorted(COLORS),
        output_dict=True,
    )
    report = counts.report()
    same_report(report, theirs)
    assert report.accuracy == sklearn.metrics.accuracy_score(np.array(gold), np.array(predicted))
    assert (
        report.matrix == sklearn.metrics.multilabel_confusion_matrix(np.array(gold), np.array(predicted))
    ).all()


TAGS = {
    "IOB1": ("O", "I-PER", "I-LOC", "B-PER"),
    "IOB2": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-MISC"),
    "BIOES": ("O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"),
}


@pytest.mark.parametrize("name", TAGS)
@pytest.mark.parametrize("seed", range(10))
def test_entities_equal_seqeval(name, seed):
    draw = random.Random(seed)
    gold, predicted = [], []
    for _ in range(draw.randint(1, 30)):
        tags = draw.choices(TAGS[name], k=draw.randint(1, 12))
        gold.append(tags)
        predicted.append([tag if draw.random() < 0.8 else draw.choice(TAGS[name]) for tag in tags])
    counts = Entities(scheme(TAGS[name]))
    for has, got in zip(gold, predicted, strict=True):
        counts.add(has, got, scheme(TAGS[name]))
    same_report(
        counts.report(),
        quietly(seqeval.metrics.classification_report, gold, predicted, output_dict=True),
    )


def test_data_in_iob1_is_held_against_a_model_of_iob2():
    counts = Entities(scheme(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))
    counts.add(
        ["I-PER", "I-PER", "O", "I-LOC"], ["B-PER", "I-PER", "O", "B-LOC"], scheme(["O", "I-PER", "I-LOC"])
    )
    report = counts.report()
    assert report.micro.f1 == 1
    assert report.accuracy is None


def test_the_matrix_of_entities_says_what_was_missed_and_what_was_confused():
    counts = Entities(scheme(TAGS["IOB2"]))
    how = scheme(TAGS["IOB2"])
    counts.add(["B-PER", "O", "B-LOC", "O"], ["B-LOC", "O", "O", "B-PER"], how)
    report = counts.report()
    assert report.names == ("LOC", "PER", NONE)
    assert report.matrix.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_nothing_at_all_is_a_report_of_zeros():
    assert Single(COLORS).report().micro.f1 == 0
    assert Entities(scheme(TAGS["IOB2"])).report().micro.support == 0


def test_numbers_are_positions_where_no_name_is_a_number():
    assert gold_labels(Row("x", label="1"), ("negative", "positive"), several=False) == ("positive",)
    assert gold_labels(Row("x", label="1"), ("0", "1"), several=False) == ("1",)
    with pytest.raises(BadData, match="line 4 has the label 0, which the model lacks"):
        gold_labels(Row("x", label="0", line=4), ("1", "2"), several=False)  # not `1`


def test_names_that_the_caller_gave_have_no_positions():
    with pytest.raises(BadData, match="line 4 has the label 1, a number, and --labels gives names: no, yes"):
        gold_labels(Row("x", label="1", line=4), ("no", "yes"), several=False, numbered=False)
    assert gold_labels(Row("x", label="1"), ("0", "1"), several=False, numbered=False) == ("1",)


def test_a_text_holds_many_labels_separated_by_commas():
    assert gold_labels(Row("x", label="red, blue"), COLORS, several=True) == ("red", "blue")
    assert gold_labels(Row("x", label=("red",)), COLORS, several=True) == ("red",)
    assert gold_labels(Row("x", label=()), COLORS, several=True) == ()


def test_a_label_that_the_model_lacks_names_its_line_and_the_labels():
    with pytest.raises(
        BadData, match="line 7 has the label pink, which the model lacks: its labels are red, green"
    ):
        gold_labels(Row("x", label="pink", line=7), COLORS, several=False)
    with pytest.raises(BadData, match="line 8 has the label 777"):
        gold_labels(Row("x", label="7" * 5000, line=8), COLORS, several=False)
    with pytest.raises(BadData, match="line 3 has 2 labels"):
        gold_labels(Row("x", label=("red", "blue"), line=3), COLORS, several=False)


def test_a_tag_that_the_model_lacks_names_its_line_and_word():
    row = Row("Ada sleeps", label=("B-person", "O"), line=12, words=("Ada", "sleeps"))
    with pytest.raises(
        BadData, match="line 12 tags Ada with B-person, which the model lacks: its entities are LOC, PER"
    ):
        gold_tags(row, ("PER", "LOC"), scheme(["O", "B-PER", "I-PER"]))
    with pytest.raises(RequestError, match="needs words with tags"):
        gold_tags(Row("x", label="PER"), ("PER",), scheme(["O", "B-PER"]))
