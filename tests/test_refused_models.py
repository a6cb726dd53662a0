"""What llama.cpp would end the process over, or take minutes for, is refused in one line first."""

from __future__ import annotations

import time

import pytest
from odd_models import encoder, without_tokenizer
from tiny import tiny_llama

from edge.chat.loaded import load
from edge.engine import Sampling
from edge.errors import EngineError, PromptTooLong, RequestError


def test_an_encoder(tmp_path):
    # llama.cpp: GGML_ASSERT(n_outputs_max <= cparams.n_outputs_max) failed
    path = str(encoder(tmp_path / "encoder.gguf"))
    with pytest.raises(EngineError, match="encoder is a model of kind bert, which does not continue a text"):
        load(path)


@pytest.mark.parametrize("said", [True, False])
def test_a_model_without_tokenizer(said, tmp_path, monkeypatch):
    # llama.cpp: GGML_ASSERT(tokenizer && "Tokenizer not initialized") failed
    path = str(without_tokenizer(tmp_path / "mute.gguf", monkeypatch, said=said))
    with pytest.raises(EngineError, match="tokenizer") as caught:
        load(path)
    assert "\n" not in caught.value.line


@pytest.mark.parametrize("text", ["hello world " * 900_000, "a" * 10_000_000, " " * 10_000_000 + "a"])
def test_ten_megabytes_of_text_are_not_counted_to_their_end(text, tmp_path):
    # counting these took llama.cpp 12 to 50 s and up to 1.6 GB
    with load(str(tiny_llama(tmp_path / "tiny.gguf"))) as model:
        started = time.perf_counter()
        for ask in (model.chat, model.generate):
            with pytest.raises(
                PromptTooLong, match=r"at least \d+ tokens and the context holds 256"
            ) as caught:
                ask(text)
            assert caught.value.prompt_tokens <= len(text)
        assert time.perf_counter() - started < 5


def test_a_text_that_might_fit_is_counted_exactly(tmp_path):
    text = "<|unused300|>" * 8_000
    with load(str(tiny_llama(tmp_path / "tiny.gguf"))) as model:
        count = len(model.engine.vocab.tokens(text))
        model.engine.vocab.check_length(text, count)
        longest = len("<|unused300|>")
        with pytest.raises(PromptTooLong):
            model.engine.vocab.check_length(text, len(text) // longest - 1)
        assert len(model.engine.vocab.tokens("<|im_end|>" * 8_000, parse_special=True)) == 8_000
        model.engine.vocab.check_length("<|im_end|>" * 8_000, 8_000)


@pytest.mark.parametrize("name", ["seed", "max_tokens", "top_k"])
def test_numbers_that_no_float_holds(name):
    with pytest.raises(RequestError, match="is far out of range") as caught:
        Sampling(**{name: 10**400})
    assert caught.value.line.endswith(("2147483647", "4294967294"))


def test_a_stop_text_that_no_answer_can_hold():
    with pytest.raises(RequestError, match="not valid Unicode"):
        Sampling(stop=("a\udcff",))
