"""Certificates: what is compared for each kind of model, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from family_files import f32_file, float64, random_weights
from test_family_bert import BERT, VARIANTS
from tiny import tiny_llama

from edge import gguf_header
from edge.convert import numpy_ops, proof
from edge.convert.families import family_of
from edge.convert.proof import Comparison, Reference, certify, expected
from edge.errors import ConversionError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 320,
}
FIGURES = ("hidden_error", "logit_error", "kl_divergence", "top1_agreement", "cosine")
KINDS = {
    "decoder": (LLAMA, FIGURES[:4]),
    "plain encoder": (BERT, FIGURES[:1]),
    "embeddings": (VARIANTS["roberta, mean"], ("hidden_error", "cosine")),
    "classifier by llama.cpp": (VARIANTS["bert classifier"], FIGURES[:4]),
    "classifier by us": (VARIANTS["distilbert classifier"], FIGURES[:4]),
    "tags by us": (VARIANTS["bert tags"], FIGURES[:4]),
    "a number": (VARIANTS["bert regression"], FIGURES[:2]),
}


def proven(path, raw, *, spoil=None, weights=None):
    """A file of the model and the reference of its pass; `spoil` changes the weights that the pass takes."""
    family = family_of(raw)
    config = family.read_config(raw)
    weights = weights or random_weights(family, config)
    file = f32_file(path, family, config, weights)
    ours = {**weights, **{name: 1.5 * values for name, values in weights.items() if spoil and spoil in name}}

    def compute(ids):
        return family.forward(numpy_ops, float64(ours), config, ids)

    pooling = getattr(config, "pooling", "none")
    return file, expected(file, compute, {"model.safetensors": "ab"}, {"kind": "BPE"}, pooling)


@pytest.mark.parametrize(("raw", "figures"), KINDS.values(), ids=KINDS)
def test_each_kind_of_model_is_compared_in_what_it_gives(tmp_path, raw, figures):
    file, reference = proven(tmp_path / "f32.gguf", raw)
    certificate = certify(file, "f32", reference, exact=True)
    seen = certificate.comparison
    assert seen.tokens == len(reference.ids) == sum(reference.lengths)
    assert len(reference.lengths) == (1 if raw is LLAMA else 4)
    assert {name for name in FIGURES if getattr(seen, name) is not None} == set(figures)
    assert 0 < seen.hidden_error < 1e-3
    assert seen.logit_error is None or 0 < seen.logit_error < 1e-3
    assert seen.cosine is None or seen.cosine > 0.999999
    written = json.loads(proof.write(certificate, file).read_text())
    assert written["comparison"]["hidden_error"] == seen.hidden_error
    assert written["tensor_types"]["token_embd.weight"] == "F32"


@pytest.mark.parametrize(
    ("raw", "spoil", "words"),
    [
        (LLAMA, "layers.1.mlp.up_proj", "hidden error .*, logit error"),
        (LLAMA, "lm_head", r"source does: logit error 0\.3"),
        (VARIANTS["roberta, mean"], "value.weight", "hidden error"),
        (VARIANTS["bert classifier"], "pooler.dense.weight", "source does: logit error"),
        (VARIANTS["distilbert classifier"], "pre_classifier.weight", "source does: logit error"),
        (VARIANTS["bert tags"], "classifier.weight", "source does: logit error"),
    ],
)
def test_a_file_that_computes_something_else_is_refused(tmp_path, raw, spoil, words):
    file, reference = proven(tmp_path / "f32.gguf", raw, spoil=spoil)
    with pytest.raises(ConversionError, match=words):
        certify(file, "f32", reference, exact=True)
    assert certify(file, "f32", reference, exact=False).comparison.tokens


def test_a_wrong_pooling_is_refused(tmp_path):
    file, _ = proven(tmp_path / "mean.gguf", VARIANTS["bert, mean"])
    _, reference = proven(tmp_path / "cls.gguf", VARIANTS["bert, first token"])
    with pytest.raises(ConversionError, match=r"source does: cosine 0\.\d"):
        certify(file, "f32", reference, exact=True)


def test_a_file_without_the_sources_head_is_refused_at_every_level(tmp_path):
    file, _ = proven(tmp_path / "plain.gguf", VARIANTS["bert, mean"])
    _, reference = proven(tmp_path / "classifier.gguf", VARIANTS["bert classifier"])
    with pytest.raises(ConversionError, match=r"gives no logits, its source logits of shape \(4, 3\)"):
        certify(file, "q8_0", reference, exact=False)


def test_weights_that_run_over_are_refused_at_every_level(tmp_path):
    family = family_of(LLAMA)
    weights = random_weights(family, family.read_config(LLAMA))
    file, reference = proven(tmp_path / "f32.gguf", LLAMA, weights=weights)
    weights["model.norm.weight"][:] = 3e38
    proven(tmp_path / "over.gguf", LLAMA, weights=weights)
    with pytest.raises(ConversionError, match=r"NaN or infinity for over\.gguf"):
        certify(tmp_path / "over.gguf", "q8_0", reference, exact=False)
    assert certify(file, "q8_0", reference, exact=False)


def test_a_file_is_a_reference_too(tmp_path):
    for path in (
        tiny_llama(tmp_path / "llama.gguf"),
        proven(tmp_path / "bert.gguf", KINDS["tags by us"][0])[0],
    ):
        reference = expected(path, None, {}, {})
        seen = certify(path, "f32", reference, exact=True).comparison
        assert (seen.hidden_error, seen.logit_error, seen.top1_agreement) == (0, 0, 1)


def test_logits_alone_are_enough_of_a_reference(tmp_path):
    file = tiny_llama(tmp_path / "tiny.gguf")
    ids = proof.text_ids(file)
    logits = proof.file_logits(file, ids)
    assert certify(file, "f32", Reference({}, {}, ids, logits), exact=True).comparison == Comparison(
        len(ids), None, 0.0, 0.0, 1.0, None
    )
    with pytest.raises(ConversionError, match="top-1 agreement 0%"):
        certify(file, "bf16", Reference({}, {}, ids, np.roll(logits, 1, axis=-1)), exact=True)


def test_a_short_context_cuts_the_text(tmp_path):
    raw = {**VARIANTS["bert classifier"], "max_position_embeddings": 16}
    file, reference = proven(tmp_path / "short.gguf", raw)
    assert max(reference.lengths) == 16
    assert certify(file, "f32", reference, exact=True)


def test_a_file_that_lost_its_head_is_refused(tmp_path):
    family = family_of(raw := VARIANTS["bert tags"])
    config = family.read_config(raw)
    bare = replace(config, head=replace(config.head, output=None))
    file = f32_file(tmp_path / "bare.gguf", family, bare, random_weights(family, config))
    assert "edge.head.output.weight" not in gguf_header.read(file).metadata
    _, reference = proven(tmp_path / "tags.gguf", raw)
    with pytest.raises(ConversionError, match=r"bare\.gguf has no head to apply"):
        certify(file, "f32", reference, exact=True)
