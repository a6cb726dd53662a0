"""Tiny encoders in both forms, made by our own converters of tests/tiny_checkpoints.py, and what they should give."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import tiny_checkpoints

from edge.convert import numpy_ops, to_gguf
from edge.convert.families import family_of
from edge.convert.onnx import to_onnx

TEXTS = ("a ferry left at 7:45", "b", "", "x" * 90, "it was late, and nobody minded: 42 crates")


@cache
def folder() -> Path:
    """Where they are kept for the life of the process."""
    return Path(mkdtemp(prefix="edge-tests-"))


@cache
def checkpoint(case: str) -> Path:
    return tiny_checkpoints.write(case, folder() / case)


@cache
def as_onnx(case: str, level: str = "fp32") -> Path:
    """The folder of a case at a level."""
    return to_onnx.convert(checkpoint(case), [level], folder() / "forms", prove=False)[0].path


@cache
def as_gguf(case: str, level: str = "f32") -> Path:
    """The GGUF file of a case at a level."""
    return to_gguf.convert(checkpoint(case), [level], folder() / "forms", prove=False)[0].path


def expected(case, tokens):
    """Logits of each text by our pass in NumPy: (labels,), or (its tokens, labels)."""
    config, weights = tiny_checkpoints.CASES[case], tiny_checkpoints.weights(case)
    family = family_of(config)
    read = family.read_config(config)
    found = [
        family.forward(numpy_ops, weights.__getitem__, read, one.ids, one.types)[1].astype(np.float32)
        for one in tokens
    ]
    return [rows if read.task == "tokens" else rows[0] for rows in found]
