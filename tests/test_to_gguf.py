"""From a real checkpoint to GGUF files that llama.cpp runs as the source computes."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edge import gguf_header
from edge.convert import checkpoint, numpy_ops
from edge.convert.families import llama
from edge.convert.proof import file_logits
from edge.convert.to_gguf import convert
from edge.errors import ConversionError, RequestError

pytest.importorskip("tokenizers")
SOURCE = Path(__file__).parents[2] / "shared" / "checkpoints" / "llama2-arch-20m"
pytestmark = pytest.mark.skipif(
    not SOURCE.exists(), reason="the trained checkpoint lies beside the repository"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return {one.level: one for one in convert(SOURCE, ["f32", "bf16", "q8_0", "q4_k_m"], folder, name="war")}


def test_each_level_is_a_named_file_and_nothing_else_is_left(made):
    folder = made["f32"].path.parent
    names = {f"war-{level}.{ending}" for level in made for ending in ("gguf", "json")}
    assert {path.name for path in folder.iterdir()} == names
    assert made["q4_k_m"].bytes < made["q8_0"].bytes < made["bf16"].bytes < made["f32"].bytes
    header = gguf_header.read(made["q4_k_m"].path)
    assert (header.architecture, header.quantization, header.layers) == ("llama", "Q4_K_M", 6)


def test_llama_cpp_computes_what_the_checkpoint_does(made):
    ids = np.random.default_rng(0).integers(3, 4000, 128)
    with checkpoint.open(SOURCE) as original:
        config = llama.read_config(original.config)
        _, logits = llama.forward(
            numpy_ops, lambda name: original.float32(name).astype(np.float64), config, ids
        )
    for level, bound in {"f32": 1e-3, "bf16": 3e-2, "q8_0": 5e-2}.items():
        theirs = file_logits(made[level].path, ids)
        assert np.abs(theirs - logits).max() / np.abs(logits).max() < bound, level
        assert (theirs.argmax(1) == logits.argmax(1)).mean() > (0.99 if level == "f32" else 0.9), level


def test_the_file_tells_a_story(made):
    from edge.engine import Engine, Sampling
    from edge.planner import plan

    with Engine(plan(str(made["q4_k_m"].path), ctx=256)) as engine:
        ids = engine.vocab.tokens("Prince Andrew looked at")
        text = "".join(chunk.text for chunk in engine.submit(ids, Sampling(temperature=0, max_tokens=24)))
    assert len(text.split()) > 8
    assert text.isprintable() or "\n" in text


def test_the_certificate_says_what_was_made_of_what_and_how_near_it_is(made):
    certificate = json.loads(made["q4_k_m"].path.with_suffix(".json").read_text())
    assert certificate["sha256"] == hashlib.sha256(made["q4_k_m"].path.read_bytes()).hexdigest()
    assert (
        certificate["source"]["config.json"]
        == hashlib.sha256((SOURCE / "config.json").read_bytes()).hexdigest()
    )
    assert len(certificate["source"]) >= 6  # four shards among them
    assert certificate["tensor_types"]["blk.0.attn_norm.weight"] == "F32"
    assert certificate["tokenizer"]["probes"] > 50
    divergence = {level: one.certificate.comparison.kl_divergence for level, one in made.items()}
    assert divergence["f32"] <= divergence["bf16"] < divergence["q8_0"] < divergence["q4_k_m"] < 0.1
    assert made["f32"].certificate.comparison.top1_agreement > 0.98


def test_without_proof_the_file_says_so(tmp_path):
    (one,) = convert(SOURCE, ["q8_0"], tmp_path, prove=False)
    assert one.certificate is None
    assert gguf_header.read(one.path).metadata["edge.proof"] == "none"
    assert [path.name for path in tmp_path.iterdir()] == ["llama2-arch-20m-q8_0.gguf"]


def test_a_file_that_computes_something_else_is_refused_and_not_kept(tmp_path, monkeypatch):
    from edge.convert.families import weight

    wrong = weight.Layout(lambda x: x, lambda x: x)  # what a converter does that forgets the rope rows
    monkeypatch.setattr(llama, "rope_rows", lambda head_size: wrong)
    with pytest.raises(ConversionError, match="does not compute what its source does"):
        convert(SOURCE, ["f16"], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def copy(tmp_path):
    for path in SOURCE.iterdir():
        target = tmp_path / "copy" / path.name
        target.parent.mkdir(exist_ok=True)
        if path.suffix == ".safetensors":
            target.symlink_to(path)
        else:
            shutil.copyfile(path, target)
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["LlamaForCausalML"]}, "LlamaForCausalML is not an architecture"),
        ({"architectures": []}, "names no architecture"),
        ({"num_hidden_layers": 7}, "no tensor model.layers.6.input_layernorm.weight"),
        ({"num_hidden_layers": 5}, "9 tensors that this family does not know"),
        ({"num_key_value_heads": 4}, "k_proj.weight is .128, 512. and config.json makes it .256, 512."),
        ({"vocab_size": 4000}, "embed_tokens.weight is"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(copy, tmp_path, change, words):
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=words) as refused:
        convert(copy, ["f16"], tmp_path / "out")
    assert "\n" not in refused.value.line
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_an_unknown_level_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(RequestError, match="'q99' is not a level"):
        convert(tmp_path / "nothing", ["q99"], tmp_path)
