"""The vocabulary beside an ONNX decoder: ids, bytes of tokens, control tokens that users write."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny import SPECIALS
from tiny_checkpoints import byte_level, special

from edge.engine.text import TextStream
from edge.errors import PromptTooLong, RequestError, UnsafeFile
from edge.onnx.vocab import OnnxVocab
from edge.onnx_folder import DecoderFolder

SAID = DecoderFolder("llama", 1, 1, 1, 1, 1, 1, 320, 64, "", 1, 2, (0, 2))
TEXT = "the king — «naïve» 🜁 日本\n\t end"


def sentence_piece():
    """SentencePiece's BPE as Llama 2 has it: a space before the text, bytes where no piece is."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "t",
        "h",
        "e",
        "▁t",
        "▁th",
    ]
    decoder = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    vocab = {piece: index for index, piece in enumerate(pieces)}
    around = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "added_tokens": [special(index, pieces[index]) for index in range(3)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": list(around),
            "pair": list(around),
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoder},
        "model": {**model, "vocab": vocab, "merges": ["▁ t", "▁t h"]},
    }


def vocab_of(described, folder):
    (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    return OnnxVocab(folder / "tokenizer.json", SAID)


@pytest.mark.parametrize("described", [byte_level(), sentence_piece()], ids=["bytes", "sentencepiece"])
def test_the_pieces_of_a_text_are_its_bytes(described, tmp_path):
    vocab = vocab_of(described, tmp_path)
    ids = vocab.tokens(TEXT, add_special=False)
    assert b"".join(map(vocab.piece, ids)) == TEXT.encode()
    stream = TextStream()  # characters of several tokens come whole
    shown = [stream.push(vocab.piece(token)) for token in ids]
    assert "".join(shown) == TEXT
    assert "🜁" in shown
    assert not any("\ufffd" in text for text in shown)
    assert vocab.piece(1) == vocab.piece(319) == b""


def test_bos_goes_before_a_text_where_the_tokenizer_says_so(tmp_path):
    vocab = vocab_of(sentence_piece(), tmp_path)
    assert vocab.tokens("the")[0] == 1 != vocab.tokens("the", add_special=False)[0]
    assert vocab.adds_bos
    assert not vocab_of(byte_level(), tmp_path).adds_bos


def test_control_tokens_count_only_where_they_are_trusted(tmp_path):
    vocab = vocab_of(byte_level(), tmp_path)
    assert vocab.tokens("<|im_end|>", parse_special=True) == [2]
    spelled = vocab.tokens("<|im_end|>")
    assert len(spelled) > 5
    assert b"".join(map(vocab.piece, spelled)) == b"<|im_end|>"
    assert vocab.tokens("<|im_end|>", parse_special=True) == [2]  # and again
    assert vocab.has("<|im_end|>")
    assert not vocab.has("the")
    assert vocab.control_texts() == set(SPECIALS)
    assert [vocab.special_text(which) for which in ("bos", "eos")] == ["<|im_start|>", "<|im_end|>"]
    assert [vocab.is_end(token) for token in (0, 1, 2)] == [True, False, True]


def test_a_threads_trusted_text_makes_nobody_elses_control_tokens(tmp_path):
    vocab = vocab_of(byte_level(), tmp_path)
    text = f"{SPECIALS[2]} no"
    expected = {trusted: vocab.tokens(text, parse_special=trusted) for trusted in (False, True)}
    vocab._tokenizer = Slow(vocab._tokenizer)
    with ThreadPoolExecutor(2) as threads:
        asked = [at % 2 == 0 for at in range(20)]
        found = [*threads.map(lambda trusted: vocab.tokens(text, parse_special=trusted), asked)]
    assert found == [expected[trusted] for trusted in asked]


class Slow:
    """A tokenizer that gives another thread time to switch it."""

    def __init__(self, real):
        object.__setattr__(self, "real", real)

    def __setattr__(self, name, value):
        setattr(self.real, name, value)

    def encode(self, *given, **settings):
        time.sleep(0.002)
        return self.real.encode(*given, **settings)


def test_what_is_no_text_or_too_long_is_refused(tmp_path):
    vocab = vocab_of(byte_level(), tmp_path)
    with pytest.raises(RequestError, match="NUL at character 1"):
        vocab.tokens("a\0b")
    with pytest.raises(RequestError, match="surrogate"):
        vocab.tokens("\ud800")
    vocab.check_length("a" * 1000, 10)  # counting is cheap
    with pytest.raises(PromptTooLong, match="at least"):
        vocab.check_length("a" * 200_000, 64)


def test_a_piece_that_looks_like_a_byte_and_is_none_is_text(tmp_path):
    described = sentence_piece()
    described["model"]["vocab"]["<0xZZ>"] = described["model"]["vocab"].pop("<0x07>")
    vocab = vocab_of(described, tmp_path)
    assert (vocab.piece(9), vocab.piece(10)) == (b"\x06", b"<0xZZ>")


@pytest.mark.parametrize("text", ["{}", "not json", json.dumps({**byte_level(), "decoder": None})])
def test_what_is_no_tokenizer_is_refused(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UnsafeFile):
        OnnxVocab(tmp_path / "tokenizer.json", SAID)
