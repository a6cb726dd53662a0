"""Our passes and llama.cpp compute what transformers does on the same checkpoint (goldens/make.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints

from edge.convert import numpy_ops
from edge.convert.computed import outputs
from edge.convert.families import family_of
from edge.convert.to_gguf import convert

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("one_core")

GOLDENS = Path(__file__).parent / "goldens"
# GGUF cannot say what these compute beyond the window, of which the file promises no more, or of a second text.
NO_FILE = {"mistral-window", "qwen2-window", "bert-cross-encoder"}


def golden_of(case):
    found = json.loads((GOLDENS / f"{case}.json").read_text())
    arrays = {key: np.array(found[key]) for key in ("ids", "begin", "last", "head", "short") if key in found}
    return arrays | {key: found[key] for key in ("top",) if key in found}


def error(rows, golden):
    """Greatest difference over the golden's greatest number."""
    ours = np.concatenate([rows[:, : golden["begin"].shape[1]].ravel(), rows[-1]])
    return relative(ours, np.concatenate([golden["begin"].ravel(), golden["last"]]))


def relative(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def is_encoder(case):
    return not tiny_checkpoints.CASES[case]["architectures"][0].endswith(("ForCausalLM", "LMHeadModel"))


def model_of(case):
    family = family_of(tiny_checkpoints.CASES[case])
    return family, family.read_config(tiny_checkpoints.CASES[case]), tiny_checkpoints.weights(case)


def test_every_case_has_a_golden_of_its_own_and_no_golden_is_left_over():
    assert {path.stem for path in GOLDENS.glob("*.json")} == set(tiny_checkpoints.CASES)
    for case, config in tiny_checkpoints.CASES.items():
        assert golden_of(case)["ids"].tolist() == tiny_checkpoints.ids(config).tolist()


@pytest.mark.parametrize("case", tiny_checkpoints.CASES)
def test_our_pass_computes_what_transformers_does(case):
    family, config, weights = model_of(case)
    golden = golden_of(case)

    def computed(ids):
        kinds = tiny_checkpoints.types(tiny_checkpoints.CASES[case], len(ids))
        types = [kinds] if kinds.any() else []
        return family.forward(numpy_ops, lambda name: weights[name].astype(np.float64), config, ids, *types)

    hidden, logits = computed(golden["ids"])
    assert error(hidden if is_encoder(case) else logits, golden) < 1e-4
    if is_encoder(case):
        assert (logits is None) == ("head" not in golden)
        short, its_logits = computed(golden["ids"][: tiny_checkpoints.SHORT])
        assert relative(short[-1] if its_logits is None else its_logits, golden["short"]) < 1e-4
    if "head" in golden:
        assert relative(logits, golden["head"]) < 1e-4


@pytest.mark.parametrize("case", [case for case in tiny_checkpoints.GGUF if case not in NO_FILE])
def test_llama_cpp_computes_what_transformers_does(tmp_path, case):
    golden = golden_of(case)
    source = tiny_checkpoints.write(case, tmp_path / "checkpoint")
    (made,) = convert(source, ["f32"], tmp_path)
    assert made.certificate
    theirs = outputs(made.path, [golden["ids"]])
    bound = 1e-3 if "gelu" in str(tiny_checkpoints.CASES[case]) else 1e-4  # ggml's GELU is a table of f16
    assert error(theirs.hidden if is_encoder(case) else theirs.logits, golden) < bound
    if "head" in golden:
        assert relative(theirs.logits, golden["head"]) < bound
