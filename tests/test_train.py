"""Training a head on this device: what is fitted and chosen, what is kept, and what is refused."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from word_encoders import cross_encoder, embedder

from edge import store
from edge.errors import BadData, EngineError, RequestError
from edge.tasks import answers, fit, head, train
from edge.tasks.open import open_encoder
from edge.tasks.rows import Row

MOODS = {"up": ("good", "fine", "great"), "down": ("bad", "poor", "awful"), "money": ("card", "cash", "loan")}


def texts_of(label, count):
    return [f"the {MOODS[label][at % 3]} {('film', 'a rate', 'is the')[at % 2]}" for at in range(count)]


def write(path, counts, more=()):
    """A CSV with so many rows of each label."""
    rows = [(text, label) for label, count in counts.items() for text in texts_of(label, count)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows, *more])
    return path


def no_step(done, total):
    pass


@pytest.fixture
def encoder(tmp_path):
    return str(embedder(tmp_path / "tiny"))


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data.csv", {"up": 9, "down": 8, "money": 9})


def clouds(counts, width=6, apart=1.5):
    random = np.random.default_rng(1)
    y = np.repeat(np.arange(len(counts)), counts)
    x = random.normal(size=(len(y), width)) + apart * np.eye(len(counts), width)[y]
    return (5 + 3 * x).astype(np.float32), y


def test_the_head_is_scikit_learns_at_the_strength_chosen_divided_by_the_temperature():
    x, y = clouds((60, 50, 60))
    found = fit.fit(x, y, threads=2, report=no_step)
    centre = x.mean(axis=0)
    scaled = (x - centre) / np.sqrt(((x - centre) ** 2).mean())
    wanted = (
        LogisticRegression(C=found.strength, tol=1e-8, max_iter=5000).fit(scaled, y).decision_function(scaled)
    )
    logits = x @ found.weight.T + found.bias
    spread = (logits - logits.mean(axis=1, keepdims=True)) * found.temperature
    assert np.abs(spread - wanted).max() < 0.02 * np.abs(wanted).max()
    assert found.strength in fit.STRENGTHS
    assert found.folds == 5
    assert not found.weighted


def test_the_temperature_is_the_best_one_for_held_out_rows():
    x, y = clouds((60, 60, 60))
    found = fit.fit(x, y, threads=1, report=no_step)
    for factor in (0.9, 1.1):
        assert fit.nll(found.held_out * factor, y) >= found.after.nll
    assert found.after.nll <= found.before.nll
    assert found.after == fit.figures(found.held_out, y)
    probabilities = np.exp(fit.log_softmax(found.held_out))
    assert fit.nll(found.held_out, y) == pytest.approx(log_loss(y, probabilities), abs=1e-5)


def test_two_labels_have_two_rows_of_logits():
    x, y = clouds((40, 40))
    found = fit.fit(x, y, threads=2, report=no_step)
    assert found.weight.shape == (2, 6)
    assert np.allclose(found.weight[0], -found.weight[1])
    assert ((x @ found.weight.T + found.bias).argmax(axis=1) == y).mean() > 0.8


def test_held_out_rows_were_not_seen():
    """Labels that are drawn blindly cannot be foretold, and the calibrated probabilities say so."""
    random = np.random.default_rng(2)
    x, y = random.normal(size=(60, 50)).astype(np.float32), random.integers(0, 2, 60)
    found = fit.fit(x, y, threads=2, report=no_step)
    assert (found.held_out.argmax(axis=1) == y).mean() < 0.75
    assert found.after.nll > 0.6


def test_weights_are_tried_on_rare_labels_and_taken_where_they_are_worth_it(monkeypatch):
    x, y = clouds((300, 15), apart=1.2)

    def rare(found):
        return ((x @ found.weight.T + found.bias).argmax(axis=1) == 1)[y == 1].mean()

    monkeypatch.setattr(fit, "WORTH", 1.0)
    plain = fit.fit(x, y, threads=2, report=no_step)
    monkeypatch.setattr(fit, "WORTH", -1.0)
    weighted = fit.fit(x, y, threads=2, report=no_step)
    assert (plain.weighted, weighted.weighted) == (False, True)
    assert rare(weighted) > rare(plain)
    even = fit.fit(*clouds((40, 40)), threads=2, report=no_step)
    assert not even.weighted


def test_every_label_is_spread_evenly_over_the_folds():
    y = np.repeat([0, 1, 2], (11, 5, 23))
    parts = fit.split(y, 5)
    for label in range(3):
        counts = np.bincount(parts[y == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (parts == fit.split(y, 5)).all()


@pytest.mark.parametrize("best", [0.2, 1.0, 4.0])
def test_a_temperature_is_found(best):
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 3)) * 2
    y = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)  # drawn with these very probabilities
    assert fit.tempered(logits * best, y) == pytest.approx(best, rel=0.1)


def test_few_rows_choose_no_temperature_and_no_log_loss_is_a_negative_zero():
    x, y = clouds((fit.ENOUGH // 2 - 1, fit.ENOUGH // 2))
    found = fit.fit(x, y, threads=1, report=no_step)
    assert found.temperature == 1.0
    assert found.after == found.before
    x, y = clouds((fit.ENOUGH // 2, fit.ENOUGH // 2))
    assert fit.fit(x, y, threads=1, report=no_step).temperature != 1.0
    assert str(fit.nll(np.array([[1000.0, 0.0]]), np.array([0]))) == "0.0"


def test_figures_are_those_of_their_definitions():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.35, 0.65]])
    y = np.array([0, 1, 1, 1])
    found = fit.figures(np.log(probabilities), y)
    assert found.ece == pytest.approx((abs(0.9 - 0.5) + abs(0.65 - 1)) / 2)
    assert found.nll == pytest.approx(log_loss(y, probabilities))
    assert fit.macro_f1(probabilities, y) == pytest.approx(
        f1_score(y, probabilities.argmax(axis=1), average="macro")
    )


def test_training_keeps_one_model_that_classifies(encoder, data, tmp_path, home):
    steps = []
    found = train.train(
        encoder, data, "moods", steps=lambda doing, done, total: steps.append((doing, done, total))
    )
    assert found.report.accuracy == 1.0
    assert found.reported_on == "held-out folds"
    assert found.report.rows == found.rows == 26
    assert found.counts == {"down": 8, "money": 9, "up": 9}
    assert ("embedding", 26, 26) in steps
    shutil.rmtree(encoder)  # the model stands by itself
    model = open_encoder("moods")
    assert (model.about.name, model.about.labels) == ("moods", ("down", "money", "up"))
    said = [
        answer.label
        for answer in answers.answers(model, [Row("a loan"), Row("awful"), Row("")], answers.Wish())
    ]
    assert said == ["money", "down", None]
    model.close()
    assert [kept.name for kept in store.models()] == ["moods"]
    assert store.resolve("moods").ref == "train:tiny"
    assert store.verify("moods").ok
    facts = json.loads((home / "models/moods/head.json").read_text())
    assert facts["encoder"]["level"] == "fp32"
    assert facts["training"]["temperature"] == found.temperature
    assert "encoder/model.onnx" in facts["encoder"]["sha256"]
    weights = home / "models/moods/head.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    assert not store.verify("moods").ok
    store.remove("moods")
    assert not (home / "models/moods").exists()


def test_the_report_is_on_the_test_rows_where_there_are_any(encoder, data, tmp_path):
    test = write(tmp_path / "test.csv", {"up": 3, "down": 2}, [("the good film", "down"), (" ", "up")])
    found = train.train(encoder, data, "moods", test=test)
    assert found.reported_on == "test"
    assert found.report.rows == 6
    assert found.report.labels["down"].recall == pytest.approx(2 / 3)


def test_rows_without_a_text_are_left_out_and_long_ones_are_cut(encoder, tmp_path):
    data = write(
        tmp_path / "data.csv", {"up": 6, "down": 6}, [("", "up"), ("good " * 40, "up"), ("  ", "none")]
    )
    found = train.train(encoder, data, "moods")
    assert (found.rows, found.blank, found.cut) == (13, 2, 1)
    assert set(found.counts) == {"up", "down"}


def test_there_are_as_many_folds_as_the_rarest_label_has_rows(encoder, tmp_path):
    found = train.train(encoder, write(tmp_path / "data.csv", {"up": 6, "down": 3, "money": 2}), "moods")
    assert found.folds == 2
    assert found.report.rows == 11


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        ({"up": 5}, "all 5 rows have the label up"),
        ({"up": 5, "down": 1, "money": 1}, "2 of 3 labels have a single row: down, money"),
        ({}, "has no row with a text"),
    ],
)
def test_too_few_labels_or_rows_are_refused(encoder, tmp_path, counts, error):
    with pytest.raises(BadData, match=error):
        train.train(encoder, write(tmp_path / "data.csv", counts), "moods")


def test_labels_that_are_missing_several_or_unknown_are_refused(encoder, data, tmp_path):
    with pytest.raises(BadData, match="line 28 has an empty label"):
        train.train(
            encoder, write(tmp_path / "a.csv", {"up": 9, "down": 8, "money": 9}, [("x", "")]), "moods"
        )
    several = tmp_path / "a.jsonl"
    several.write_text('{"text": "good", "label": ["up", "money"]}\n')
    with pytest.raises(BadData, match="line 1 has 2 labels"):
        train.train(encoder, several, "moods")
    with pytest.raises(BadData, match="line 2 has the label green, which the model lacks"):
        train.train(encoder, data, "moods", test=write(tmp_path / "test.csv", {}, [("good", "green")]))
    with pytest.raises(RequestError, match="read as lines, which have no labels"):
        train.train(encoder, write(tmp_path / "a.txt", {"up": 2, "down": 2}), "moods")


def test_a_name_that_is_taken_or_none_is_refused_before_anything_is_read(encoder, data, tmp_path, home):
    train.train(encoder, data, "moods")
    with pytest.raises(RequestError, match="moods is kept already, from train:tiny"):
        train.train(encoder, tmp_path / "missing.csv", "moods")
    with pytest.raises(RequestError, match="not a model name"):
        train.train(encoder, data, "../moods")
    (home / "models/half").mkdir()
    (home / "models/half/model.gguf.partial").touch()
    with pytest.raises(RequestError, match="interrupted pull"):
        train.train(encoder, data, "half")


def test_models_that_give_no_embeddings_are_refused(data, tmp_path, encoder):
    cross = cross_encoder(tmp_path / "cross", ("no", "yes"))
    with pytest.raises(RequestError, match="a model for classification, and a head is trained on embeddings"):
        train.train(str(cross), data, "moods")
    train.train(encoder, data, "moods")
    with pytest.raises(RequestError, match="a model for classification"):
        train.train("moods", data, "again")


def test_embeddings_that_are_no_numbers_are_refused(data, tmp_path, home):
    broken = embedder(tmp_path / "sick", broken=True)
    data = write(tmp_path / "data.csv", {"up": 5, "down": 5}, [("a broken card", "up")])
    with pytest.raises(EngineError, match="NaN"):
        train.train(str(broken), data, "moods")
    assert not (home / "models/moods").exists()
    with pytest.raises(EngineError, match="NaN or infinite values for 1 of 2 texts"):
        fit.check_finite(np.array([[1.0, np.nan], [0.0, 1.0]]))


def test_without_scikit_learn_the_command_that_installs_it_is_named(encoder, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(RequestError) as error:
        train.train(encoder, data, "moods")
    assert "pip install 'edge-runtime[train]'" in error.value.line


def test_nothing_stays_of_a_training_that_fails_while_it_is_kept(encoder, data, monkeypatch, home):
    def interrupted(folder, trained):
        raise KeyboardInterrupt

    monkeypatch.setattr(head, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(encoder, data, "moods")
    assert not (home / "models/moods").exists()
