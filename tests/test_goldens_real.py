"""Real checkpoints: our pass and the converted files compute what transformers does (goldens/make.py)."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import MODEL_HOME
from test_goldens import GOLDENS, error, golden_of, relative

from edge import store
from edge.convert import checkpoint, numpy_ops
from edge.convert.computed import outputs
from edge.convert.families import family_of, table_names
from edge.convert.to_gguf import convert
from edge.convert.to_safetensors import to_safetensors
from edge.errors import EdgeError

pytest.importorskip("tokenizers")
SHARED = Path(__file__).parents[2] / "shared" / "checkpoints"
NAMES = sorted(path.stem for path in (GOLDENS / "real").glob("*.json"))
DEFAULT, MINILM = "smollm2-135m-instruct", "all-minilm-l6-v2"
MARKS = {DEFAULT: (pytest.mark.model, pytest.mark.slow), MINILM: (pytest.mark.model, pytest.mark.slow)}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=MARKS.get(name, ())) for name in NAMES])
def real(request, tmp_path_factory):
    """A golden and the folder of its checkpoint."""
    name = request.param
    if name == DEFAULT:
        folder = tmp_path_factory.mktemp("real") / name
        to_safetensors(request.getfixturevalue("default_model"), folder)
    elif name == MINILM:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGE_HOME", str(MODEL_HOME))
            try:
                folder = store.pull(name).path
            except EdgeError as error:
                pytest.skip(f"{name} cannot be pulled: {error.line}")
    else:
        folder = SHARED / name
        if not folder.exists():
            pytest.skip("it lies beside the repository")
    return golden_of(f"real/{name}"), folder


@contextmanager
def passing(folder):
    """A function from ids to what the family's pass computes in float64."""
    with checkpoint.open(folder) as original:
        family = family_of(original.config)
        names = table_names(family, original.tensors)

        def weight(name):
            return original.float32(names[name]).astype(np.float64)

        config = family.read_config(original.config)
        yield lambda ids: family.forward(numpy_ops, weight, config, ids)


def test_our_pass_computes_what_transformers_does(real):
    golden, folder = real
    with passing(folder) as forward:
        hidden, logits = forward(golden["ids"])
    check(golden, hidden, logits, 1e-4)


def check(golden, hidden, logits, bound):
    """`top` is there for a decoder only, `head` for an encoder that has one."""
    rows = logits if "top" in golden else hidden
    width = len(golden["last"])
    assert error(rows[:, :width], golden) < bound
    if "head" in golden:
        assert relative(logits, golden["head"]) < bound
    if "top" in golden:
        assert np.array_equal(logits.argmax(axis=1), golden["top"]["tokens"])
        assert relative(logits.max(axis=1), np.array(golden["top"]["logits"])) < bound


# llama.cpp computes BERT's GELU by its tanh approximation from a table of f16: of a pass that does so, too, MiniLM
# is 7e-5 away, and of the exact one 1.0e-3 and more. At f16 it rounds activations as well.
def test_llama_cpp_computes_what_transformers_does(real, tmp_path):
    golden, folder = real
    f32, f16 = convert(folder, ["f32", "f16"], tmp_path)
    loose = folder.name in ("ner-minilm", MINILM)
    for made, bound in ((f32, 2e-3 if loose else 1e-3), (f16, 1e-2)):
        theirs = outputs(made.path, [golden["ids"]])
        check(golden, theirs.hidden, theirs.logits, bound)
