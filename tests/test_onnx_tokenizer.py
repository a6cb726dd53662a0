"""The tokenizer.json of an ONNX folder, made of older files where there is none."""

import json
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

from tokenizers import Tokenizer

from edge.convert.onnx import sentencepiece_json, tokenizer_json
from edge.convert.tokenizer.sentencepiece import BPE, UNIGRAM, Model
from edge.errors import ConversionError

DEBERTA = Path(__file__).parents[2] / "shared" / "tokenizers" / "deberta-v3"
TEXTS = [
    "The ferry left at 7:45, and nobody  minded.",
    " naïve CAFÉ — «quoted» ﬁne",
    "日本語 and עברית",
    "tabs\tand\nlines",
    "[MASK] is a token",
    "🙂 unseen \u2603",
    "",
]


@pytest.mark.skipif(not DEBERTA.exists(), reason="real tokenizers lie beside the repository")
def test_a_lone_sentencepiece_file_becomes_the_tokenizer_that_was_published(tmp_path):
    for name in ("spm.model", "special_tokens_map.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((DEBERTA / name).read_bytes())
    words = tokenizer_json.read(tmp_path, 128100, "DebertaV2ForSequenceClassification")
    published = Tokenizer.from_file(str(DEBERTA / "tokenizer.json"))
    published.no_padding()
    published.no_truncation()
    pairs = [(TEXTS[0], TEXTS[2])]
    for text in (*TEXTS, *pairs):
        theirs = published.encode(*text) if isinstance(text, tuple) else published.encode(text)
        ((ids, types),) = words.encode([text], 512)
        assert ids == theirs.ids
        assert types == theirs.type_ids
    assert words.followed[0] == "spm.model"


def model(pieces, kind=UNIGRAM):
    scores = tuple(-float(index) for index in range(len(pieces)))
    return Model(tuple(pieces), scores, (1,) * len(pieces), kind, b"", True, True, {"unk": 0}, b"")


def test_xlm_r_s_ids_are_fairseq_s():
    found = model(["<unk>", "<s>", "</s>", "▁a", "▁b", "c"])
    made = sentencepiece_json.tokenizer_json(found, "XLMRobertaModel", {}, {})
    tokenizer = Tokenizer.from_str(json.dumps(made))
    assert tokenizer.encode("a bc").ids == [0, 4, 5, 6, 2]
    pair = tokenizer.encode("a", "b")
    assert pair.tokens == ["<s>", "▁a", "</s>", "</s>", "▁b", "</s>"]
    assert pair.type_ids == [0] * 6
    assert tokenizer.encode("<mask>").ids == [0, 7, 2]


def test_albert_lowers_and_drops_accents():
    found = model(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "▁cafe", '▁"'])
    made = sentencepiece_json.tokenizer_json(found, "AlbertModel", {}, {})
    tokenizer = Tokenizer.from_str(json.dumps(made))
    assert tokenizer.encode("CAFÉ ``").ids == [2, 5, 6, 3]
    assert tokenizer.encode("cafe", "cafe").type_ids == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("found", "architecture"),
    [
        (model(["<unk>"]), "T5Model"),
        (model(["<unk>"], BPE), "XLMRobertaModel"),
        (model(["a", "b"]), "AlbertModel"),
    ],
)
def test_what_nobody_knows_is_refused(found, architecture):
    with pytest.raises(ConversionError):
        sentencepiece_json.tokenizer_json(found, architecture, {}, {})


def test_the_names_of_sentencepiece_files_are_those_that_are_pulled():
    from edge.convert.tokenizer.files import SENTENCEPIECE_NAMES
    from edge.store.checkpoints import TOKENIZERS

    assert set(SENTENCEPIECE_NAMES) <= set(TOKENIZERS)
