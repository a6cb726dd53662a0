"""Labels and embeddings from Python: what the verbs give, as objects."""

import numpy as np
import pytest
import tiny_classifiers
from word_encoders import WIDTH, embedder

import edge
from edge.errors import RequestError


def test_classify_answers_every_text_in_order(tmp_path):
    model = str(tiny_classifiers.feelings(tmp_path / "feelings"))
    found = edge.classify(model, ["good", "", "bad"])
    assert [each.label for each in found] == ["positive", None, "negative"]
    assert sum(scored.probability for scored in found[0].labels) == pytest.approx(1)
    (chosen,) = edge.classify(model, ["good"], labels=["negative", "neutral"])
    assert {scored.label for scored in chosen.labels} == {"negative", "neutral"}
    assert edge.classify(model, []) == []


def test_classify_finds_entities(tmp_path):
    (found,) = edge.classify(str(tiny_classifiers.names(tmp_path / "names")), ["Ada Byron in New York"])
    assert [(each.label, each.text) for each in found.entities] == [("PER", "Ada Byron"), ("LOC", "New York")]


def test_embed_gives_a_row_a_text(tmp_path):
    model = str(embedder(tmp_path / "words"))
    found = edge.embed(model, ["the good film", " ", "bad"])
    assert (found.dtype, found.shape) == (np.float32, (3, WIDTH))
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    assert np.abs(edge.embed(model, ["bad"])[0] - found[2]).max() < 1e-5


def test_one_text_in_place_of_a_list_and_models_of_another_kind_are_refused(tmp_path):
    model = str(tiny_classifiers.feelings(tmp_path / "feelings"))
    with pytest.raises(RequestError, match="list of texts"):
        edge.classify(model, "good")
    with pytest.raises(RequestError, match="not embeddings"):
        edge.embed(model, ["good"])
