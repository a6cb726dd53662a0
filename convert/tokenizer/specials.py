"""Which ids are special, as GGUF fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.errors import ConversionError

from .files import SPECIALS, Files
from .reference import Reference
from .vocabulary import CONTROL, Vocabulary

# GGUF's names (github.com/ggml-org/ggml, docs/gguf.md); "seperator" is spelled so there.
KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "cls": "tokenizer.ggml.cls_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
# Tokens that end a turn or a tool call. Where the file does not say, llama.cpp takes whichever its hash table
# yields first, `<|endoftext|>` among them.
ENDS_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "[EOT]")
END_OF_MESSAGE = "<|eom_id|>"


def known(files: Files, config: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, int]:
    """The id of each special token: by its text in the tokenizer's files, else by config.json's `…_token_id`."""
    found = {}
    for which in SPECIALS:
        said = files.specials.get(which)
        index = vocabulary.find(said) if said else config.get(f"{which}_token_id")
        if isinstance(index, list):  # several ends: the first is the text's, the others end turns
            index = next(iter(index), None)
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < len(vocabulary.tokens):
            found[which] = index
    return found


def fields(ids: Mapping[str, int], reference: Reference, vocabulary: Vocabulary) -> dict[str, Any]:
    """Their fields, with what is added around a text.

    What the reference adds decides over what is said: llama.cpp adds BOS and EOS and no others. Raises
    ConversionError without an end of text, for which llama.cpp would take some token of its own.
    """
    chosen = dict(ids)
    if reference.before:
        chosen["bos"] = reference.before[0]
    if reference.after:
        chosen["eos"] = reference.after[0]
    if "eos" not in chosen:
        raise ConversionError(
            "neither the tokenizer's files nor config.json name the token that ends a text",
            hint='name it as "eos_token" in tokenizer_config.json',
        )
    written: dict[str, Any] = {KEYS[which]: chosen[which] for which in SPECIALS if which in chosen}
    written["tokenizer.ggml.add_bos_token"] = bool(reference.before)
    written["tokenizer.ggml.add_eos_token"] = bool(reference.after)
    if (turn := next(filter(None, (_control(vocabulary, text) for text in ENDS_OF_TURN)), None)) is not None:
        written["tokenizer.ggml.eot_token_id"] = turn
    if (message := _control(vocabulary, END_OF_MESSAGE)) is not None:
        written["tokenizer.ggml.eom_token_id"] = message
    return written


def _control(vocabulary: Vocabulary, text: str) -> int | None:
    index = vocabulary.find(text)
    return index if index is not None and vocabulary.types[index] == CONTROL else None
