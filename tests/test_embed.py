"""Embeddings in the order of their texts, and the array they are written to."""

import numpy as np
import pytest
from word_encoders import WIDTH, cross_encoder, embedder

from edge.errors import EngineError, RequestError, StoreError
from edge.onnx.encoder import OnnxEncoder
from edge.tasks import embed
from edge.tasks.rows import Row


def rows(*texts):
    return [Row(text, line=number) for number, text in enumerate(texts, 1)]


def test_every_text_has_its_own_embedding_in_order(tmp_path):
    encoder = OnnxEncoder(embedder(tmp_path / "tiny"))
    found = list(embed.embed(encoder, rows("good", "the bad card " * 9, " ", "good")))
    assert [one.text for one in found][::3] == ["good", "good"]
    assert found[2].embedding is None
    assert found[0].embedding.shape == (WIDTH,)
    assert np.allclose(found[0].embedding, found[3].embedding)
    assert not np.allclose(found[0].embedding, found[1].embedding)
    assert [one.left_out > 0 for one in found] == [False, True, False, False]


def test_models_without_embeddings_and_values_that_are_no_numbers_are_refused(tmp_path):
    with pytest.raises(RequestError, match="gives labels, not embeddings"):
        next(embed.embed(OnnxEncoder(cross_encoder(tmp_path / "cross")), rows("good")))
    with pytest.raises(EngineError, match="NaN"):
        list(embed.embed(OnnxEncoder(embedder(tmp_path / "sick", broken=True)), rows("broken")))


def test_an_array_grows_and_has_its_name_when_it_is_complete(tmp_path):
    out = tmp_path / "a.npy"
    with embed.npy(out, 3) as array:
        for number in range(5):
            array.add(None if number == 2 else np.full(3, number, np.float32))
        assert not out.exists()
    found = np.load(out)
    assert (found.shape, found.dtype) == ((5, 3), np.float32)
    assert np.isnan(found[2]).all()
    assert (found[4] == 4).all()
    assert len(embed.header(0, 3)) == len(embed.header(10**12, 3))
    assert list(tmp_path.iterdir()) == [out]


def test_nothing_stays_of_an_array_that_is_interrupted(tmp_path):
    def interrupted():
        with embed.npy(tmp_path / "a.npy", 3) as array:
            array.add(None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="cannot write"), embed.npy(tmp_path / "none" / "a.npy", 3):
        pass
