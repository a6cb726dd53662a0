"""The encoders: written by their tables, llama.cpp computes what the float64 pass computes, and heads.py the rest."""

import numpy as np
import pytest
from family_files import f32_file, float64, random_weights, relative, table

from edge import gguf_header
from edge.convert import numpy_ops
from edge.convert.computed import outputs, task_of
from edge.convert.families import family_of, family_of_gguf, table_names
from edge.convert.to_gguf import convert
from edge.errors import ConversionError

BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "vocab_size": 320,
}
ROBERTA = {
    **BERT,
    "architectures": ["RobertaModel"],
    "model_type": "roberta",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 130,
    "pad_token_id": 1,
    "type_vocab_size": 1,
}
DISTILBERT = {
    "architectures": ["DistilBertModel"],
    "model_type": "distilbert",
    "activation": "gelu",
    "dim": 64,
    "hidden_dim": 96,
    "max_position_embeddings": 128,
    "n_heads": 4,
    "n_layers": 3,
    "vocab_size": 320,
}
THREE = {"id2label": {"0": "bad", "1": "so so", "2": "good"}}
TAGS = {"id2label": {"1": "B-PER", "0": "O", "2": "I-PER", "3": "B-LOC"}}


def of(base, end, **more):
    family = base["architectures"][0].removesuffix("Model")
    return {**base, "architectures": [family + end], **more}


def pooled_by(way, normalize=True):
    return {"sentence_transformers": {"pooling": way, "normalize": normalize, "reads": 64}}


VARIANTS = {
    "bert, no pooling": BERT,
    "bert, mean": of(BERT, "Model", **pooled_by("mean")),
    "bert, first token": of(BERT, "Model", **pooled_by("cls")),
    "bert, last token": of(BERT, "Model", **pooled_by("last")),
    "bert with a head of pretraining": of(BERT, "ForMaskedLM"),
    "bert, gelu by tanh": of(BERT, "Model", hidden_act="gelu_new"),
    "bert of one token type": of(BERT, "Model", type_vocab_size=1),
    "bert classifier": of(BERT, "ForSequenceClassification", **THREE),
    "bert regression": of(
        BERT, "ForSequenceClassification", id2label={0: "score"}, problem_type="regression"
    ),
    "bert tags": of(BERT, "ForTokenClassification", **TAGS),
    "roberta, mean": of(ROBERTA, "Model", **pooled_by("mean")),
    "roberta classifier": of(ROBERTA, "ForSequenceClassification", **THREE),
    "roberta tags": of(ROBERTA, "ForTokenClassification", **TAGS),
    "xlm-r": {**ROBERTA, "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"},
    "xlm-r classifier": of(
        {**ROBERTA, "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta"},
        "ForSequenceClassification",
        num_labels=5,
    ),
    "distilbert, first token": of(DISTILBERT, "Model", **pooled_by("cls")),
    "distilbert classifier": of(DISTILBERT, "ForSequenceClassification", **THREE),
    "distilbert's default labels": of(DISTILBERT, "ForSequenceClassification"),
    "distilbert tags": of(DISTILBERT, "ForTokenClassification", **TAGS),
}
TEXTS = [np.random.default_rng(1).integers(3, 260, length) for length in (90, 2, 17)]


def model_of(raw, seed=0):
    family = family_of(raw)
    config = family.read_config(raw)
    weights = random_weights(family, config, seed)
    for name, values in weights.items():  # logits as far apart as a trained model's
        if "classifier" in name:
            values *= 3
    return family, config, weights


def pass_of(family, config, weights, ids):
    return family.forward(numpy_ops, float64(weights), config, ids)


@pytest.mark.parametrize("raw", VARIANTS.values(), ids=VARIANTS)
def test_llama_cpp_computes_what_the_reference_does(tmp_path, raw):
    family, config, weights = model_of(raw)
    path = f32_file(tmp_path / "f32.gguf", family, config, weights)
    passes = [pass_of(family, config, weights, ids) for ids in TEXTS]
    theirs = outputs(path, TEXTS)
    assert relative(theirs.hidden, np.concatenate([hidden for hidden, _ in passes])) < 1e-3
    if config.task == "embedding":
        assert all(output is None for _, output in passes)
        assert theirs.logits is None
    else:
        logits = np.concatenate([output for _, output in passes])
        assert logits.shape == ({"classification": 3, "tokens": 109}[config.task], len(config.labels))
        assert relative(theirs.logits, logits) < 1e-3
    if config.task == "embedding" and config.pooling != "none":
        ways = {"mean": lambda x: x.mean(axis=0), "cls": lambda x: x[0], "last": lambda x: x[-1]}
        pooled = np.stack([ways[config.pooling](hidden) for hidden, _ in passes])
        assert relative(theirs.pooled, pooled) < 1e-3
    else:
        assert theirs.pooled is None


@pytest.mark.parametrize("raw", VARIANTS.values(), ids=VARIANTS)
def test_a_file_says_what_it_was_made_from(tmp_path, raw):
    family, config, weights = model_of(raw)
    path = f32_file(tmp_path / "f32.gguf", family, config, weights)
    header = gguf_header.read(path)
    assert header.architecture == "bert"
    assert task_of(header) == config.task
    back = family_of_gguf("bert").config_json(header, lambda name: None)
    assert family_of(back) is family
    assert back["model_type"] == raw["model_type"]
    again = family.read_config({**back, "sentence_transformers": raw.get("sentence_transformers")})
    assert again == config
    if config.labels:
        assert gguf_header.elements(path, "bert.classifier.output_labels") == config.labels
        assert back["label2id"][config.labels[-1]] == len(config.labels) - 1


def test_token_types_count():
    family, config, weights = model_of(VARIANTS["bert classifier"])
    ids = TEXTS[2]
    pair = (np.arange(len(ids)) > 8).astype(np.int64)
    alone = pass_of(family, config, weights, ids)[1]
    both = family.forward(numpy_ops, float64(weights), config, ids, pair)[1]
    zeros = family.forward(numpy_ops, float64(weights), config, ids, 0 * pair)[1]
    assert np.array_equal(alone, zeros)
    assert not np.allclose(alone, both)
    assert any("second" in note for note in family.notes(config))


def test_all_tokens_see_each_other():
    family, config, weights = model_of(BERT)
    changed = TEXTS[2].copy()
    changed[-1] = 5
    before, after = (pass_of(family, config, weights, ids)[0] for ids in (TEXTS[2], changed))
    assert not np.allclose(before[0], after[0])


@pytest.mark.parametrize(
    ("raw", "name", "expected"),
    [
        (BERT, "bert.encoder.layer.0.output.LayerNorm.gamma", "encoder.layer.0.output.LayerNorm.weight"),
        (BERT, "embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias"),
        (BERT, "classifier.weight", "classifier.weight"),
        (ROBERTA, "roberta.pooler.dense.bias", "pooler.dense.bias"),
        (DISTILBERT, "distilbert.transformer.layer.0.ffn.lin1.bias", "transformer.layer.0.ffn.lin1.bias"),
    ],
)
def test_names_with_and_without_a_prefix_are_the_same(raw, name, expected):
    assert table_names(family_of(raw), [name]) == {expected: name}


def test_two_names_of_one_tensor_are_refused():
    with pytest.raises(ConversionError, match=r"both pooler\.dense\.bias and bert\.pooler\.dense\.bias"):
        table_names(family_of(BERT), ["pooler.dense.bias", "bert.pooler.dense.bias"])


def test_the_positions_that_no_text_reaches_go_and_come_back_as_zeros():
    family, config, _ = model_of(ROBERTA)
    (weight,) = (one for one in table(family, config) if one.target == "position_embd.weight")
    rows = np.arange(130.0)[:, None] * np.ones(64)
    assert weight.layout.to_gguf(rows)[:, 0].tolist() == list(range(2, 130))
    back = weight.layout.to_checkpoint(weight.layout.to_gguf(rows))
    assert np.array_equal(back[2:], rows[2:])
    assert not back[:2].any()


def test_notes_say_what_llama_cpp_does_otherwise():
    def notes(raw):
        family = family_of(raw)
        return " ".join(family.notes(family.read_config(raw)))

    assert "does not say how to pool" in notes(BERT)
    assert "64 tokens" in notes(VARIANTS["bert, mean"])
    assert "the certificate applies it" in notes(VARIANTS["distilbert classifier"])
    assert "masked words is left out" in notes(VARIANTS["bert with a head of pretraining"])
    assert notes(VARIANTS["roberta classifier"]) == ""


@pytest.mark.parametrize(
    ("raw", "change", "words"),
    [
        (BERT, {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (DISTILBERT, {"activation": "relu"}, "activation is 'relu'"),
        (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        (BERT, {"is_decoder": True}, "makes a decoder"),
        (BERT, {"num_attention_heads": 5}, "5 heads do not divide a width of 64"),
        (BERT, {"type_vocab_size": None}, "no usable type_vocab_size"),
        (ROBERTA, {"max_position_embeddings": 2}, "leaves 0 positions"),
        (DISTILBERT, {"dim": None}, "no usable dim"),
        (VARIANTS["bert classifier"], {"id2label": {"0": "a", "2": "b"}}, "numbered from 0"),
        (VARIANTS["bert classifier"], {"id2label": ["a"]}, "numbered from 0"),
        (VARIANTS["bert classifier"], {"problem_type": "guess"}, "problem_type is 'guess'"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(raw, change, words):
    with pytest.raises(ConversionError, match=words):
        family_of(raw).read_config({**raw, **change})


def test_texts_computed_together_are_the_texts_alone(tmp_path):
    family, config, weights = model_of(VARIANTS["bert, mean"])
    path = f32_file(tmp_path / "f32.gguf", family, config, weights)
    texts = [np.random.default_rng(length).integers(3, 260, length) for length in (3, 120, *range(5, 15))]
    together = outputs(path, texts)
    for index, ids in enumerate(texts):
        assert relative(together.pooled[index], outputs(path, [ids]).pooled[0]) < 1e-3
    starts = np.cumsum([0, *map(len, texts)])
    assert relative(together.hidden[starts[9] : starts[10]], outputs(path, [texts[9]]).hidden) < 1e-3


@pytest.mark.parametrize("variant", ["bert classifier", "distilbert classifier", "bert tags", "bert, mean"])
def test_a_file_at_another_level_is_still_the_same_model(tmp_path, variant):
    family, config, weights = model_of(VARIANTS[variant])
    whole = f32_file(tmp_path / "f32.gguf", family, config, weights)
    made = convert(whole, ["f16", "q8_0", "q4_0"], tmp_path, name="tiny")
    for one, bound in zip(made, (2e-3, 5e-2, 0.5), strict=True):
        seen = one.certificate.comparison
        assert 0 < seen.hidden_error < bound
        assert (seen.logit_error is None) == (config.task == "embedding") != (seen.cosine is None)
        header = gguf_header.read(one.path)
        types = {tensor.name: tensor.type for tensor in header.tensors}
        assert types.get("token_types.weight", "F32") == types["position_embd.weight"] == "F32"
        assert task_of(header) == config.task


def header_of(**fields):
    """A header of what an encoder's has, made elsewhere unless `fields` say more."""
    metadata = {
        "general.architecture": "bert",
        "bert.block_count": 3,
        "bert.context_length": 128,
        "bert.embedding_length": 64,
        "bert.feed_forward_length": 96,
        "bert.attention.head_count": 4,
        "bert.attention.layer_norm_epsilon": 1e-5,
        **fields,
    }
    shapes = {"token_embd.weight": (64, 320), "token_types.weight": (64, 2), "cls.output.weight": (64, 3)}
    tensors = tuple(gguf_header.Tensor(name, shape, "F32", 0, 0) for name, shape in shapes.items())
    return gguf_header.Header(3, metadata, tensors, 32, 0, 0)


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "{}", '{"architectures": [1], "activation": "gelu", "offset": 0}', '"a"',
     '{"architectures": ["BertModel"], "activation": "gelu", "offset": -1}',
     '{"architectures": ["BertModel"], "activation": "gelu", "offset": 0, "id2label": ["a"]}'],
)  # fmt: skip
def test_a_damaged_key_is_refused_on_the_way_back(text):
    with pytest.raises(ConversionError, match=r"edge\.config is damaged"):
        family_of_gguf("bert").config_json(header_of(**{"edge.config": text}), None)


def test_a_file_made_elsewhere_is_taken_for_what_it_looks_like():
    back = family_of_gguf("bert").config_json(header_of(), None)
    assert back["architectures"] == ["BertForSequenceClassification"]
    assert back["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    back = family_of_gguf("bert").config_json(header_of(**{"tokenizer.ggml.model": "t5"}), None)
    assert back["architectures"] == ["XLMRobertaForSequenceClassification"]
    assert (back["max_position_embeddings"], back["pad_token_id"]) == (130, 1)
