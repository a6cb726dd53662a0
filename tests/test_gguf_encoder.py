"""Encoders as GGUF files in llama.cpp: texts of any lengths in one batch, heads, spans, what is refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import numpy as np
import pytest
from tiny_encoders import TEXTS, as_gguf, expected

from edge import gguf_header
from edge.engine import encoder as encoders
from edge.engine.encoder import GgufEncoder
from edge.engine.encoding import Tokens
from edge.errors import BadGGUF, EngineError, RequestError
from edge.gguf_header import reader

pytest.importorskip("tokenizers")


@pytest.fixture
def opened():
    made = []

    def open_(case, threads=1):
        made.append(GgufEncoder(as_gguf(case), threads=threads))
        return made[-1]

    yield open_
    for one in made:
        one.close()


@pytest.mark.parametrize(
    "case", ["bert-classifier", "bert-tokens", "roberta-classifier", "distilbert-classifier"]
)
def test_it_gives_what_the_checkpoint_does_whatever_is_in_the_batch(opened, case):
    encoder = opened(case)
    tokens = encoder.tokenize(TEXTS)
    wanted = expected(case, tokens)
    for batch in (range(len(TEXTS)), [3], [1, 1, 2]):
        for at, row in zip(batch, encoder.run([tokens[at] for at in batch]), strict=True):
            assert row.shape == wanted[at].shape
            assert np.abs(row - wanted[at]).max() < 5e-3
    about = encoder.about
    assert (about.labels, about.backend, about.level) == (("bad", "fair", "good"), "llama.cpp-cpu", "f32")
    assert about.task == ("tokens" if case == "bert-tokens" else "classification")


def test_more_texts_and_tokens_than_a_batch_holds_are_divided(opened, monkeypatch):
    encoder = opened("bert-classifier")
    tokens = encoder.tokenize([f"text {number} {'x' * number}" for number in range(50)])
    whole = encoder.run(tokens)
    monkeypatch.setattr(encoders, "TOKENS", 30)
    assert np.allclose(encoder.run(tokens), whole, atol=2e-3)  # attention rounds to f16
    assert encoder.run([]) == []


def test_tokens_say_where_they_stand(opened):
    text = "a ferry, at 7:45"
    (tokens,) = opened("bert-tokens").tokenize([text], spans=True)
    assert tokens.spans[0] == tokens.spans[-1] == (0, 0)
    assert (tokens.words[0], tokens.words[-1]) == (-1, -1)
    assert "".join(text[start:end] for start, end in tokens.spans) == text.replace(" ", "")


def test_a_long_text_is_cut_and_what_is_left_out_is_counted(opened):
    encoder = opened("bert-classifier")
    words = " ".join("x" * 700)
    long, short = encoder.tokenize([words, "x"])
    assert (len(long.ids), long.left_out) == (encoder.about.max_tokens, 700 + 2 - encoder.about.max_tokens)
    assert long.ids[-1] == short.ids[-1]
    assert short.left_out == 0
    assert np.isfinite(encoder.run([long, short])).all()


@pytest.mark.parametrize("workers", [1, 3])
def test_more_callers_than_workers_get_what_one_gets(opened, workers):
    encoder = opened("bert-classifier", workers)
    assert encoder.about.workers == workers
    tokens = encoder.tokenize(TEXTS)
    wanted = encoder.run(tokens)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoder.run(tokens), range(12)):
            assert np.array_equal(found, wanted)


def test_workers_compute_at_once_and_are_made_when_needed(opened, monkeypatch):
    encoder = opened("bert-classifier", 2)
    (tokens,) = encoder.tokenize(["a"])
    for _ in range(3):
        encoder.run([tokens])
    assert [worker.context is not None for worker in encoder._workers] == [True, False]
    both, real = Barrier(2, timeout=10), encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda *given: both.wait() >= 0 and real(*given))
    with ThreadPoolExecutor(2) as pool:  # the barrier lets nobody through alone
        one, other = pool.map(lambda _: encoder.run([tokens])[0], range(2))
    assert np.array_equal(one, other)


def test_closing_waits_for_what_runs_and_refuses_the_rest(opened):
    encoder = opened("bert-classifier", 2)
    (tokens,) = encoder.tokenize(["x " * 60])
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(encoder.run, [tokens] * 8) for _ in range(40)]
        running[0].result()
        encoder.close()
        errors = [one.exception() for one in running]
    assert all(error is None or "closed" in str(error) for error in errors)
    assert any(errors)
    with pytest.raises(EngineError, match="closed"):
        encoder.run([tokens])


def test_pairs_are_refused_where_llama_cpp_would_read_them_wrongly(opened):
    with pytest.raises(RequestError, match="second text of a pair"):
        opened("bert-classifier").tokenize(["a"], ["b"])
    (tokens,) = opened("roberta-classifier").tokenize(["a"], ["b"])
    assert len(tokens.ids) > 4


def test_without_the_checkpoints_tokenizer_there_are_texts_but_no_spans(opened, monkeypatch):
    with_it = opened("bert-classifier")
    real = reader.read

    def without(path):
        header = real(path)
        return replace(
            header, metadata={k: v for k, v in header.metadata.items() if k != gguf_header.HF_TOKENIZER}
        )

    monkeypatch.setattr(encoders.gguf_header, "read", without)
    encoder = opened("bert-classifier")
    words = " ".join("x" * 700)
    for text in (*TEXTS, words):
        (ours,), (theirs,) = encoder.tokenize([text]), with_it.tokenize([text])
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ours.left_out == theirs.left_out
    for options in ({"spans": True}, {"pairs": ["b"]}):
        with pytest.raises(RequestError, match=r"llama\.cpp's tokenizer only"):
            encoder.tokenize(["a"], **options)


def test_what_is_none_is_refused(opened, tmp_path):
    with pytest.raises(RequestError, match="how it makes one vector"):
        opened("bert")
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(as_gguf("bert-classifier").read_bytes()[:5000])
    with pytest.raises(BadGGUF):
        GgufEncoder(damaged)


def test_a_closed_one_says_so(opened):
    encoder = opened("bert-classifier")
    (tokens,) = encoder.tokenize(["a"])
    encoder.close()
    encoder.close()
    with pytest.raises(EngineError, match="closed"):
        encoder.run([tokens])


def test_an_id_that_the_model_does_not_have_is_an_error(opened):
    ids = np.array([2, 10**6, 3])
    with pytest.raises(EngineError, match="failed to encode"):
        opened("bert-classifier").run([Tokens(ids, np.zeros(3, np.int64))])
