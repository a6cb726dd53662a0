"""Texts by their score for a query, of a cross-encoder and of embeddings."""

import math

import numpy as np
import pytest
from word_encoders import cross_encoder, embedder

from edge.errors import RequestError
from edge.onnx.encoder import OnnxEncoder
from edge.tasks.rerank import rerank
from edge.tasks.rows import Row

TEXTS = ["bad film", "cash", "", "the good card", "good", "bad film"]


def rows():
    return [Row(text, line=number) for number, text in enumerate(TEXTS, 10)]


@pytest.mark.parametrize("make", [embedder, cross_encoder])
def test_the_best_text_comes_first_with_its_line(make, tmp_path):
    encoder = OnnxEncoder(make(tmp_path / "tiny"))
    found = rerank(encoder, "good", rows())
    assert (found[0].text, found[0].line) == ("good", 14)
    assert found[1].text == "the good card"
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    assert len(found) == 5
    same = [one.line for one in found if one.text == "bad film"]
    assert same == [10, 15]
    assert rerank(encoder, "good", rows(), top=2) == found[:2]


def test_scores_are_cosines_and_probabilities(tmp_path):
    encoder = OnnxEncoder(embedder(tmp_path / "tiny"))
    (found,) = rerank(encoder, "good", [Row("good card", line=1)])
    one, other = encoder.run(encoder.tokenize(["good", "good card"]))
    assert found.score == pytest.approx(float(np.dot(one, other)), abs=1e-6)
    cross = OnnxEncoder(cross_encoder(tmp_path / "cross"))
    (found,) = rerank(cross, "good", [Row("good card", line=1)])
    logit = float(cross.run(cross.tokenize(["good"], ["good card"]))[0][0])
    assert found.score == pytest.approx(1 / (1 + math.exp(-logit)))
    number = OnnxEncoder(cross_encoder(tmp_path / "number", problem="regression"))
    assert rerank(number, "good", [Row("good card", line=1)])[0].score == pytest.approx(logit)


def test_what_cannot_rank_is_refused(tmp_path):
    encoder = OnnxEncoder(cross_encoder(tmp_path / "two", ("no", "yes")))
    with pytest.raises(RequestError, match="has 2 labels"):
        rerank(encoder, "good", rows())
    with pytest.raises(RequestError, match="query is empty"):
        rerank(encoder, " ", rows())
    with pytest.raises(RequestError, match="reads 12"):
        rerank(OnnxEncoder(embedder(tmp_path / "tiny")), "good " * 20, rows())
