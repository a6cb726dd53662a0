"""What a decoder's folder says of itself, and its certificate: the graph with its cache beside the pass in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ConversionError, EngineError
from edge.onnx.session import Session
from edge.onnx_folder import GRAPH

from .. import numpy_ops, proof, tokenizer
from ..computed import Outputs
from ..tokenizer.specials import KEYS
from ..tokenizer.trial import loaded
from ..understood import Understood
from . import computed
from .certificate import EXACT, Certificate, of_folder, refuse
from .decoder import context_of
from .decoder_ops import IDS, PAST, past_and_present
from .model import LOGITS
from .tokenizer_json import Words

Array = NDArray[Any]
PIECE = 48  # tokens of a prefill in pieces: the fixed text has several


def ids_of(named: object) -> list[int]:
    """The tokens that config.json names: one, several, or null for none."""
    return [one for one in (named if isinstance(named, list) else [named]) if isinstance(one, int)]


def described(model: Understood) -> dict[str, Any]:
    """The object `edge` of config.json, but for the level, as edge/onnx_folder.py says.

    What ends an answer is what llama.cpp takes for an end in the file that it would get of this tokenizer; where it
    cannot reproduce the tokenizer, what config.json names.
    """
    config, raw = model.config, model.checkpoint.config
    template, special, ends = None, {}, set[int]()
    try:
        words = tokenizer.convert(model.checkpoint.path, raw, config.vocabulary)
    except ConversionError:
        for which in ("bos", "eos"):
            special[which] = next(iter(ids_of(raw.get(f"{which}_token_id"))), None)
        ends = set(ids_of(raw.get("eos_token_id")))
        template = tokenizer.files.read(model.checkpoint.path).chat_template
    else:
        template = words.chat_template
        special = {which: words.fields.get(KEYS[which]) for which in ("bos", "eos")}
        with loaded(words.fields) as vocab:
            ends = {token for token in range(vocab.size) if vocab.is_end(token)}
    return {
        "task": "generation",
        "labels": [],
        "problem": None,
        "pooling": "none",
        "normalize": False,
        "max_tokens": context_of(config),
        "width": config.width,
        "architecture": config.gguf_architecture,
        "layers": config.layers,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_size": config.head_size,
        "inner": config.inner,
        "vocabulary": config.vocabulary,
        "context": context_of(config),
        "chat_template": template,
        **special,
        "ends": sorted(ends),
    }


def notes(said: Mapping[str, Any]) -> tuple[str, ...]:
    """What a user should know of the folder."""
    if said["chat_template"]:
        return ()
    return ("the checkpoint has no chat template: `edge chat` needs --template for the folder",)


def expected(model: Understood, words: Words) -> proof.Reference:
    """What the family's pass makes of the fixed text."""
    ((ids, _),) = words.encode([proof.TEXT], context_of(model.config))
    _, logits = model.family.forward(numpy_ops, model.float32, model.config, np.array(ids))
    return proof.Reference(
        source=model.checkpoint.sha256(),
        tokenizer={"kind": words.tokenizer.model.__class__.__name__, "followed": list(words.followed)},
        ids=np.array(ids),
        logits=logits,
    )


def certify(
    folder: Path, level: str, types: Mapping[str, str], config: Any, reference: proof.Reference
) -> Certificate:
    """Decode the fixed text token by token, whole, and in pieces, and compare.

    Raises ConversionError where a level that keeps every weight does not compute the same each way.
    """
    session, ids = computed.session(folder / GRAPH), reference.ids
    single = continued(session, config, [ids[at : at + 1] for at in range(len(ids))])
    pieces = continued(session, config, [ids[at : at + PIECE] for at in range(0, len(ids), PIECE)])
    whole = continued(session, config, [ids])
    theirs = Outputs(np.empty((0, 0)), single, None)
    comparison = proof.compare(theirs, reference)
    difference = max(proof.error(one[-1], whole[-1]) for one in (single, pieces))
    if level in EXACT:
        wrong = proof.beyond(comparison, EXACT[level], many=False)
        if not difference <= EXACT[level]:
            wrong.append(f"prefill in pieces differs by {difference:.3g}")
        refuse(level, wrong)
    return replace(of_folder(folder, level, types, reference, comparison), pieces_error=difference)


def continued(session: Session, config: Any, pieces: Sequence[Array]) -> Array:
    """The logits after each piece of a text (pieces, vocabulary). Raises ConversionError where it fails."""
    past = [name for layer in range(config.layers) for name in past_and_present(layer)[0]]
    present = [name for layer in range(config.layers) for name in past_and_present(layer)[1]]
    cache = [np.zeros((1, config.kv_heads, 0, config.head_size), np.float32)] * len(past)
    done, found = 0, []
    for piece in pieces:
        feed = {IDS: np.array([piece], np.int64), PAST: np.array(done, np.int64)}
        try:
            logits, *cache = session.run(feed | dict(zip(past, cache, strict=True)), [LOGITS, *present])
        except EngineError as error:
            raise ConversionError(str(error), hint="this is a bug") from None
        if not np.isfinite(logits).all():
            raise ConversionError("ONNX Runtime computes NaN or infinity for it", hint="leave that level out")
        found.append(logits[0])
        done += len(piece)
    return np.stack(found)
