"""Tokenizer files that are missing, damaged or contradict themselves are refused in one line."""

import contextlib
import json
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.convert.tokenizer import convert, files
from edge.convert.tokenizer.sentencepiece import parse
from edge.errors import ConversionError

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz"]


def base(**model):
    """A byte-fallback tokenizer.json without merges."""
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *BYTES, *LETTERS])}
    return {
        "version": "1.0",
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [],
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        }
        | model,
    }


def added(index, content, special=True):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": content, "special": special, **flags}


def written(folder, tokenizer, settings=None):
    text = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings or {"eos_token": "</s>"}))
    return folder


def refused(folder, says, rows=300, config=None):
    with pytest.raises(ConversionError, match=says) as raised:
        convert(folder, config or {}, rows)
    assert "\n" not in raised.value.line


def test_the_base_itself_converts(tmp_path):
    made = convert(written(tmp_path, base()), {}, 300)
    assert made.proof.probes > 70
    assert made.fields["tokenizer.ggml.eos_token_id"] == 2


def test_no_tokenizer_at_all(tmp_path):
    refused(tmp_path, "no tokenizer: no tokenizer.json")


def test_more_tokens_than_rows_names_both(tmp_path):
    refused(written(tmp_path, base()), "286 tokens and the embedding 280 rows", rows=280)


def test_the_one_token_that_gemma_3_has_no_row_for_is_left_out(tmp_path):
    tokenizer = base()
    tokenizer["added_tokens"].append(added(286, "<image_soft_token>"))
    made = convert(written(tmp_path, tokenizer), {}, 286)
    assert "<image_soft_token>" not in made.fields["tokenizer.ggml.tokens"]


def test_ids_with_a_hole(tmp_path):
    tokenizer = base()
    tokenizer["model"]["vocab"]["b"] = 299
    refused(written(tmp_path, tokenizer), r"no token has id \d+, though ids run to 299")


def test_two_tokens_with_one_id(tmp_path):
    tokenizer = base()
    tokenizer["model"]["vocab"]["b"] = tokenizer["model"]["vocab"]["a"]
    refused(written(tmp_path, tokenizer), "'a' and 'b' both have id")


def test_one_token_with_two_ids(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\na\na\n")
    refused(tmp_path, "'a' in lines 4 and 5")


def test_a_padding_token_that_is_there_already(tmp_path):
    tokenizer = base()
    tokenizer["model"]["vocab"]["[PAD299]"] = 286
    refused(written(tmp_path, tokenizer), r"'\[PAD299\]' stands twice")


@pytest.mark.parametrize("text", ['{"model": ', "[" * 100_000, "[1]", '{"a": 1}', "", r'{"a": "\ud800"}'])
def test_what_is_no_tokenizer_json(tmp_path, text):
    refused(written(tmp_path, text), "tokenizer.json")


@pytest.mark.parametrize(
    "tokens", [1.5, {"a": 1}, [{"id": True, "content": "a"}], [{"id": 1}], [added(1, "a"), added(1, "b")]]
)
def test_added_tokens_of_another_shape(tmp_path, tokens):
    refused(written(tmp_path, base() | {"added_tokens": tokens}), "added")


def test_a_tokenizer_json_that_is_no_text(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path, "not UTF-8 text at byte 0")


def test_a_huge_tokenizer_json_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(files.LARGEST + 1)
    refused(tmp_path, "tokenizer.json is larger than 64 MiB")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"},
            "does not have: WordLevel",
        ),
        ({"type": "Nonsense"}, "does not read tokenizer.json"),
        ({"byte_fallback": False}, "does not have: BPE without bytes"),
    ],
)
def test_a_model_that_llama_cpp_does_not_have(tmp_path, change, says):
    tokenizer = base()
    tokenizer["model"] = change if "vocab" in change else tokenizer["model"] | change
    tokenizer["added_tokens"] = []
    refused(written(tmp_path, tokenizer), says)


def test_a_byte_that_is_missing_is_said_before_llama_cpp_ends_the_process(tmp_path):
    tokenizer = base()
    vocab = tokenizer["model"]["vocab"]
    vocab["other"] = vocab.pop("<0x41>")
    refused(written(tmp_path, tokenizer), "255 of 256 byte tokens")


def test_no_end_of_text_anywhere(tmp_path):
    folder = written(tmp_path, base(), {"bos_token": "<s>"})
    refused(folder, "token that ends a text")
    assert convert(folder, {"eos_token_id": [2, 1]}, 300).fields["tokenizer.ggml.eos_token_id"] == 2


def test_two_tokens_before_a_text(tmp_path):
    tokenizer = base()
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    refused(written(tmp_path, tokenizer), "more than one token before or after")


@pytest.mark.parametrize(
    ("name", "text", "template", "notes"),
    [
        ("tokenizer_config.json", {"chat_template": "one"}, "one", 0),
        ("chat_template.json", {"chat_template": "two"}, "two", 0),
        ("chat_template.jinja", "three", "three", 0),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]},
            "d",
            1,
        ),
    ],
)
def test_where_a_chat_template_stands(tmp_path, name, text, template, notes):
    (tmp_path / name).write_text(text if isinstance(text, str) else json.dumps(text))
    found = files.read(tmp_path)
    assert found.chat_template == template
    assert len(found.notes) == notes
    assert name in found.followed


@pytest.mark.parametrize("package", ["tokenizers", "sentencepiece"])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    pieces = [
        ("<unk>", 2),
        ("<s>", 3),
        ("</s>", 3),
        *((byte, 6) for byte in BYTES),
        *((one, 1) for one in LETTERS),
    ]
    data = b"".join(piece(text, 0.0, kind) for text, kind in pieces) + b"\x12\x02\x18\x02"
    (tmp_path / "tokenizer.model").write_bytes(data)
    if package == "tokenizers":
        written(tmp_path, base())
    refused(tmp_path, f"the {package} package is not installed")


def piece(text, score, kind=1):
    data = b"\x0a" + bytes([len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", score)
    data += b"\x18" + bytes([kind])
    return b"\x0a" + bytes([len(data)]) + data


def test_a_sentencepiece_file_is_read_field_by_field():
    trainer, normalizer = b"\x18\x02\xe8\x02\x05", b"\x12\x02ab\x18\x00\x20\x00"
    data = piece("<unk>", 0.0, 2) + piece("▁a", -1.5)
    data += b"\x12" + bytes([len(trainer)]) + trainer + b"\x1a" + bytes([len(normalizer)]) + normalizer
    model = parse(data, "tokenizer.model")
    assert (model.pieces, model.scores, model.kinds) == (("<unk>", "▁a"), (0.0, -1.5), (2, 1))
    assert (model.model_type, model.charsmap) == (2, b"ab")
    assert not model.add_dummy_prefix
    assert not model.remove_extra_whitespaces
    assert model.specials == {"unk": 0, "bos": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        piece("a", 1.0)[:-3],
        piece("a", float("nan")),
        piece("a", 1.0, 9),
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\xff" * 20,
        b"\x08\x01\x0b",
    ],
)
def test_a_damaged_sentencepiece_file(data):
    with pytest.raises(ConversionError, match="not a SentencePiece model"):
        parse(data, "tokenizer.model")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data):
    with contextlib.suppress(ConversionError):
        assert parse(data, "tokenizer.model").pieces
