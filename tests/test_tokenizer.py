"""Real tokenizers come out of llama.cpp with the original's ids; tiny ones of every kind, built here, too."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers as training

from edge.convert.tokenizer import convert
from edge.convert.tokenizer.sentencepiece import parse
from edge.errors import ConversionError

SHARED = Path(__file__).parents[2] / "shared"

PHI3 = "llama, tokenizer.json, space before, by the name phi-3"
# folder, rows, kind, winner, the fewest equal probes, what the notes speak of
REAL = [
    ("tokenizers/bert-base-uncased", 30522, "WordPiece", "bert", 97, ("Hangul", "100 characters", "U+0085")),
    ("tokenizers/deberta-v3", 128100, "Unigram", "t5, space before, spaces merged", 104, ("grapheme",)),
    ("tokenizers/gpt2", 50304, "byte-level BPE", "gpt-2", 137, ()),
    ("tokenizers/llama-2", 32000, "SentencePiece BPE", "llama, tokenizer.model, space before", 89, ("does not read",)),
    ("tokenizers/phi-3-mini", 32064, "byte-fallback BPE", PHI3, 137, ()),
    ("tokenizers/qwen3", 151936, "byte-level BPE", "qwen2", 134, ("NFC", "control token")),
    ("tokenizers/roberta-base", 50265, "byte-level BPE", "roberta-bpe", 106, ("<mask>", "control token")),
    ("tokenizers/t5-small", 32128, "Unigram", "t5, space before, spaces merged", 135, ("tie", "U+0085")),
    ("checkpoints/finance-sentiment-minilm", 30522, "WordPiece", "bert", 97, ("Hangul", "100 characters", "U+0085")),
    ("checkpoints/llama2-arch-20m", 4096, "byte-fallback BPE", "llama, tokenizer.model, space before", 97, ()),
    ("checkpoints/ner-minilm", 30522, "WordPiece", "bert", 97, ("Hangul", "100 characters", "U+0085")),
    ("checkpoints/sst2-bert-tiny", 30522, "WordPiece", "bert", 97, ("Hangul", "100 characters", "U+0085")),
]  # fmt: skip


@pytest.mark.parametrize(("folder", "rows", "kind", "winner", "equal", "notes"), REAL)
def test_a_real_tokenizer_gives_the_originals_ids(folder, rows, kind, winner, equal, notes):
    if not (SHARED / folder).is_dir():
        pytest.skip(f"{folder} is not here")
    path = SHARED / folder / "config.json"
    made = convert(SHARED / folder, json.loads(path.read_text()) if path.exists() else {}, rows)
    proof = made.proof
    assert (proof.kind, proof.candidate) == (kind, winner)
    assert proof.probes - len(proof.differences) >= equal
    assert proof.tried == (winner,)  # the signs put the right one first
    assert len(made.fields["tokenizer.ggml.tokens"]) == rows
    assert all(difference.reason for difference in proof.differences)
    assert len(proof.notes) == len(notes)
    for word in notes:
        assert any(word in note for note in proof.notes)


@pytest.mark.parametrize(
    "name",
    ["tokenizer.model.v1", "mistral_instruct_tokenizer_240216.model.v2", "mistral_instruct_tokenizer_240323.model.v3"],
)  # fmt: skip
def test_a_lone_sentencepiece_file_gives_its_librarys_ids(tmp_path, name):
    source = SHARED / "tokenizers/mistral-spm" / name
    if not source.is_file():
        pytest.skip(f"{source.name} is not here")
    shutil.copy(source, tmp_path / "tokenizer.model")
    made = convert(tmp_path, {}, 32800)
    assert made.proof.kind == "SentencePiece BPE"
    assert not made.proof.differences
    assert made.fields["tokenizer.ggml.bos_token_id"] == 1
    assert made.fields["tokenizer.ggml.add_bos_token"] is True


TEXT = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it?",
    "def f(x):\n    return x ** 2  # CamelCase snake_case 2024-01-02",
    "Über straße naïve café résumé; 你好，世界! Привет мир, مرحبا",
] * 4
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
GPT2_STYLE = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = GPT4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(regex, *, digits=False):
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps += [pre_tokenizers.Split(Regex(regex), "isolated")] if regex else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = training.BpeTrainer(
        vocab_size=420,
        special_tokens=CHATML,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def write(folder, tokenizer, **settings):
    """Its tokenizer.json and a tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("regex", "digits", "pre"),
    [
        (None, False, "gpt-2"),
        (None, True, "smollm"),
        (QWEN, False, "qwen2"),
        (LLAMA3, False, "dbrx"),  # llama-bpe would take whole words
        (GPT4O, False, "gpt-4o"),
        (TEKKEN, False, "tekken"),
    ],
)
def test_the_pre_tokenizers_name_is_found_by_trial(tmp_path, regex, digits, pre):
    folder = write(tmp_path, byte_level(regex, digits=digits), eos_token="<|im_end|>")
    made = convert(folder, {}, 500)
    assert made.fields["tokenizer.ggml.pre"] == pre
    assert made.proof.tried == (pre,)
    assert made.fields["tokenizer.ggml.tokens"][-1] == "[PAD499]"
    assert made.fields["tokenizer.ggml.eot_token_id"] == 2


def test_whole_words_as_tokens_are_told_from_merged_ones(tmp_path):
    tokenizer = json.loads(byte_level(LLAMA3).to_str())
    tokenizer["model"]["ignore_merges"] = True
    # a word whose merges are gone is a token only where whole words are
    tokenizer["model"]["merges"] = [
        m for m in tokenizer["model"]["merges"] if "".join(m) not in ("Ġthe", "the")
    ]
    folder = write(tmp_path, Tokenizer.from_str(json.dumps(tokenizer)), eos_token="<|im_end|>")
    assert convert(folder, {}, 420).fields["tokenizer.ggml.pre"] == "llama-bpe"


def test_a_split_that_llama_cpp_does_not_have_is_refused_with_the_text(tmp_path):
    folder = write(tmp_path, byte_level(r"\p{N}{1,2}|\p{L}{1,3}|[^\p{N}\p{L}]"), eos_token="<|im_end|>")
    with pytest.raises(
        ConversionError, match=r"none of \d+ ways .* fails at '.*original gives \[.*llama.cpp \["
    ):
        convert(folder, {}, 420)


def byte_fallback(normalizer=None, pre_tokenizer=None):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = training.BpeTrainer(
        vocab_size=480,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        max_token_length=8,
        show_progress=False,
    )
    words = [f"▁{word}" for text in TEXT for word in text.split()]
    plain = Tokenizer(tokenizer.model)
    plain.train_from_iterator(words, trainer)
    made = json.loads(plain.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if token["id"] < 3]
    made["normalizer"] = json.loads(tokenizer.to_str())["normalizer"]
    made["pre_tokenizer"] = json.loads(tokenizer.to_str())["pre_tokenizer"]
    made["model"] |= {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


REPLACE = normalizers.Replace(" ", "▁")


@pytest.mark.parametrize(
    ("normalizer", "pre", "prefix"),
    [
        (normalizers.Sequence([normalizers.Prepend("▁"), REPLACE]), None, True),  # Llama 2
        (REPLACE, None, False),  # Gemma
        (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), True),  # Mistral
    ],
)
def test_merges_become_scores(tmp_path, normalizer, pre, prefix):
    folder = write(tmp_path, byte_fallback(normalizer, pre), bos_token="<s>", eos_token="</s>")
    made = convert(folder, {}, 512)
    assert made.fields["tokenizer.ggml.model"] == "llama"
    assert made.fields["tokenizer.ggml.add_space_prefix"] is prefix
    assert made.fields["tokenizer.ggml.add_bos_token"] is True
    assert made.fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    first_only = pre is not None
    assert bool(made.proof.differences) is first_only


def test_a_tokenizer_json_that_left_out_the_space_is_followed_and_said(tmp_path):
    source = SHARED / "checkpoints/llama2-arch-20m"
    if not source.is_dir():
        pytest.skip("llama2-arch-20m is not here")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path / name)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["normalizer"] = tokenizer["normalizer"]["normalizers"][1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    made = convert(tmp_path, {}, 4096)
    assert made.fields["tokenizer.ggml.add_space_prefix"] is False
    assert re.search("tokenizer.model and tokenizer.json disagree on .*json is followed", made.proof.notes[0])


def wordpiece(folder, *, lower=True):
    letters = sorted(
        {letter for text in TEXT for letter in text + text.lower() if letter.isprintable()} - {" "}
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "##s", "##ing", *letters]
    words += [f"##{letter}" for letter in letters if letter.isalnum() and letter != "s"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    return words


@pytest.mark.parametrize("lower", [True, False])
def test_vocab_txt_alone_is_a_tokenizer(tmp_path, lower):
    words = wordpiece(tmp_path, lower=lower)
    made = convert(tmp_path, {}, len(words))
    assert made.proof.followed == ("vocab.txt", "tokenizer_config.json")
    assert made.fields["tokenizer.ggml.tokens"][5:9] == ["▁the", "▁quick", "s", "ing"]
    assert made.fields["tokenizer.ggml.normalizer.lowercase"] is lower
    assert made.fields["tokenizer.ggml.bos_token_id"] == 2


def sentencepiece_model(**settings):
    """The bytes of a model trained here."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 4),
        model_writer=written,
        minloglevel=2,
        hard_vocab_limit=False,
        **settings,
    )
    return written.getvalue()


def test_a_lone_unigram_model_keeps_its_scores_and_replacements(tmp_path):
    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(vocab_size=120, model_type="unigram"))
    made = convert(tmp_path, {}, 130)
    assert made.proof.kind == "SentencePiece Unigram"
    assert made.fields["tokenizer.ggml.model"] == "t5"
    assert len(made.fields["tokenizer.ggml.precompiled_charsmap"]) > 100_000
    assert made.fields["tokenizer.ggml.add_eos_token"] is True


def test_unigram_in_a_tokenizer_json(tmp_path):
    model = parse(sentencepiece_model(vocab_size=120, model_type="unigram"), "spiece.model")
    pieces = list(zip(model.pieces, model.scores, strict=True))
    # as XLM-R has them: its own special tokens first
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces[3:], ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3))
    tokenizer.normalizer = normalizers.Precompiled(model.charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    made = convert(write(tmp_path, tokenizer, bos_token="<s>", eos_token="</s>"), {}, 130)
    assert made.fields["tokenizer.ggml.model"] == "t5"
    assert made.fields["tokenizer.ggml.unknown_token_id"] == 3
    assert made.fields["tokenizer.ggml.add_bos_token"] is True


def test_a_token_that_ends_a_turn_is_a_control_token_whatever_is_said(tmp_path):
    tokenizer = byte_level(None)
    tokenizer.add_tokens([AddedToken("<turn>", special=False), AddedToken("<think>", special=False)])
    made = convert(write(tmp_path, tokenizer, eos_token="<turn>"), {}, 450)
    types = dict(
        zip(made.fields["tokenizer.ggml.tokens"], made.fields["tokenizer.ggml.token_type"], strict=True)
    )
    assert (types["<turn>"], types["<think>"]) == (3, 4)
