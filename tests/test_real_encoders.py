"""Trained encoders as transformers saved them: converted, their labels are those of the NumPy pass."""

from pathlib import Path

import numpy as np
import pytest

from edge import gguf_header
from edge.convert import checkpoint, numpy_ops
from edge.convert.computed import outputs, tokens
from edge.convert.families import family_of, table_names
from edge.convert.to_gguf import convert

pytest.importorskip("tokenizers")

SHARED = Path(__file__).parents[2] / "shared"
SST2 = SHARED / "data" / "sst2" / "test.tsv"
# checkpoint → (texts, GGUF's pooling: rank, or none)
REAL = {
    "sst2-bert-tiny": (
        lambda: [line.rpartition("\t")[0] for line in SST2.read_text("utf-8").splitlines()[:30]],
        4,
    ),
    "finance-sentiment-minilm": (
        lambda: [
            "Operating profit rose to EUR 13.1 mn from EUR 8.7 mn in the corresponding period in 2007 .",
            "Net sales went down by 8 % and the company will lay off 150 people .",
            "The annual general meeting will be held in Helsinki on 3 April .",
        ],
        4,
    ),
    "ner-minilm": (
        lambda: [
            "SOCCER - JAPAN GET LUCKY WIN , CHINA IN SURPRISE DEFEAT .",
            "Nadim Ladki of Reuters reported from the United Arab Emirates on 6 December 1996 .",
        ],
        0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_trained_encoder_keeps_its_labels(tmp_path, name):
    folder = SHARED / "checkpoints" / name
    if not folder.is_dir() or not SST2.is_file():
        pytest.skip(f"the shared checkpoint {name} is not here")
    texts, pooling = REAL[name]
    made = convert(folder, ["f16", "q8_0", "q4_k_m"], tmp_path)
    with checkpoint.open(folder) as original:
        family = family_of(original.config)
        config, names = family.read_config(original.config), table_names(family, original.tensors)
        ids = tokens(made[0].path, texts())
        weights = {table: original.float32(own) for table, own in names.items()}
    logits = np.concatenate([family.forward(numpy_ops, weights.__getitem__, config, one)[1] for one in ids])
    choices = logits.argmax(axis=-1)
    assert len(set(choices)) > 1
    for one, error, agreement in zip(made, (5e-3, 5e-2, 0.2), (1, 0.98, 0.9), strict=True):
        theirs = outputs(one.path, ids).logits
        assert np.abs(theirs - logits).max() < error * np.abs(logits).max()
        assert (theirs.argmax(axis=-1) == choices).mean() >= agreement
        header = gguf_header.read(one.path)
        assert header.get("bert.pooling_type", int) == pooling
        assert gguf_header.elements(one.path, "bert.classifier.output_labels") == config.labels
        types = {tensor.name: tensor.type for tensor in header.tensors}
        assert types["token_types.weight"] == types["position_embd.weight"] == "F32"
        assert ("cls.weight" in types) == (pooling == 4)
    assert made[0].certificate.comparison.logit_error < 5e-3
