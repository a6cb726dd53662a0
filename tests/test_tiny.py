"""The models that other tests run on: the same bytes each time, good for the guard and for llama.cpp."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tiny import CHATML, tiny_llama

from edge.gguf_header import Array, elements, read


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    first = tiny_llama(tmp_path / "a.gguf").read_bytes()
    assert tiny_llama(tmp_path / "b.gguf").read_bytes() == first
    assert tiny_llama(tmp_path / "c.gguf", seed=1).read_bytes() != first


def test_quick_to_build(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "warm-up.gguf")
    began = time.process_time()
    tiny_llama(tmp_path / "a.gguf")
    assert time.process_time() - began < 1


def test_header_says_what_was_asked_for(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "a.gguf", layers=3, embd=96, heads=6, kv_heads=3, vocab=300, ctx=128)
    header = read(path)
    assert (header.architecture, header.layers, header.quantization) == ("llama", 3, "F32")
    assert header.per_layer("{arch}.attention.head_count_kv") == (3, 3, 3)
    assert header.get("{arch}.context_length", int) == 128
    assert header.chat_template == CHATML
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Array)
    assert tokens.length == 300
    assert len(set(elements(path, "tokenizer.ggml.tokens"))) == 300
    assert read(tiny_llama(tmp_path / "b.gguf", chat_template=None)).chat_template is None


def test_llama_cpp_decodes_it(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(tiny_llama(tmp_path / "a.gguf")), n_ctx=64, verbose=False)
    tokens = model.tokenize(b"Hello world")
    assert model.detokenize(tokens) == b"Hello world"
    assert model.tokenize(b"<|im_end|>", special=True) == [model.token_eos()]
    answer = model(prompt="Hello world", max_tokens=5, temperature=0)["choices"][0]["text"]
    assert answer.isascii()
    assert answer.isprintable()
    model.close()
