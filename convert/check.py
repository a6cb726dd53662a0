"""A certificate for a file that was made elsewhere."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

from edge import gguf_header
from edge.errors import ConversionError, RequestError, StoreError

from . import checkpoint as checkpoints
from . import proof, tokenizer
from .source import from_checkpoint


def check(file: Path, against: Path) -> proof.Certificate:
    """Hold a GGUF file to the checkpoint it is said to be made of, and write the certificate beside it.

    Raises BadGGUF and UnsafeFile for what is damaged, ConversionError for a checkpoint that is not known and for a
    file that gives other tokens, or at a level that loses nothing other logits.
    """
    header = gguf_header.read(file)
    if os.path.lexists(beside := file.with_suffix(".json")):
        raise StoreError(
            f"{beside} is there already", hint="move it away: the certificate would take its place"
        )
    if not against.is_dir():
        raise RequestError(
            f"{against} is no checkpoint's folder", hint="--against takes the folder it was made of"
        )
    with checkpoints.open(against) as original:
        source = from_checkpoint(original, against.resolve().name)
        words = tokenizer.compare(against, original.config, file)
        for difference in words.differences:
            if not difference.reason:
                raise ConversionError(
                    f"{file.name} has another tokenizer: {difference}", hint="convert the checkpoint anew"
                )
        reference = replace(source.expect(file), tokenizer=asdict(words))
        certificate = proof.certify(file, header.quantization.lower(), reference, exact=True)
    proof.write(certificate, file)
    return certificate
