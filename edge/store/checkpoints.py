"""Which files a checkpoint is made of, among the names in a repository, a wheel or a folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from edge.errors import EdgeError, ModelNotFound, UnsafeFile
from edge.store.refs import PICKLES, RESERVED, SEGMENT

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "spm.model",
    "vocab.txt", "vocab.json",
)  # fmt: skip
# What says how text becomes ids, ids a prompt, and hidden states an embedding.
TEXT_FILES = (
    *TOKENIZERS, "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json",
    "generation_config.json", "chat_template.jinja", "chat_template.json",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json",
)  # fmt: skip
MAX_INDEX = 32 << 20  # bytes; DeepSeek-V3's is 9 MB
MAX_VALUES = 1 << 20  # commas and brackets of an index: bounds the memory its values take


def files_of(names: Collection[str], index: Callable[[], bytes]) -> list[str]:
    """The files of the checkpoint, or else of the LoRA adapter, among `names`; empty where neither is there.

    Its configuration comes first. Follows transformers: model.safetensors before the index, which `index` reads.
    Raises UnsafeFile for an index that makes no sense or names what is missing, is a pickle or lies elsewhere.
    """
    if CONFIG in names and (WEIGHTS in names or INDEX in names):
        weights = [WEIGHTS] if WEIGHTS in names else [INDEX, *shards(index(), names)]
        return [CONFIG, *(text for text in TEXT_FILES if text in names), *weights]
    if ADAPTER_CONFIG in names and ADAPTER_WEIGHTS in names:
        return [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    return []


def shards(text: bytes, names: Collection[str]) -> list[str]:
    """The files that an index puts tensors into; each has a plain name and is there."""
    hint = "take another revision, or tell who published it"
    found = sorted(set(map(str, weight_map(text).values())))
    for shard in found:
        if shard.lower().endswith(PICKLES):
            raise UnsafeFile(f"{INDEX} names {shard[:80]!r}, a pickle, which may run code", hint=hint)
        if not SEGMENT.fullmatch(shard) or shard.endswith(RESERVED) or not shard.endswith(".safetensors"):
            raise UnsafeFile(f"{INDEX} names {shard[:80]!r}, not a plain safetensors file", hint=hint)
        if shard not in names:
            raise UnsafeFile(f"{shard} is missing, and {INDEX} puts tensors there", hint=hint)
    return found


def weight_map(text: bytes) -> dict[str, Any]:
    """Tensor → file, as an index says. Raises UnsafeFile for what is none."""
    try:
        if len(text) > MAX_INDEX or sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise ValueError("it is too long")
        places = json.loads(text)["weight_map"]
        if not isinstance(places, dict) or not places:
            raise ValueError("its weight_map is empty")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnsafeFile(
            f"{INDEX} is not the index of a checkpoint ({error})"[:200], hint="take another revision"
        ) from None
    return places


def is_folder(names: Sequence[str]) -> bool:
    """Whether these files, as `files_of` orders them, are a folder rather than one model file or its parts."""
    return len(names) > 1 and names[0] in (CONFIG, ADAPTER_CONFIG)


def root(paths: Sequence[Path]) -> Path:
    """What is opened: the folder of a checkpoint's files, else the only or first file."""
    return paths[0].parent if is_folder([path.name for path in paths]) else paths[0]


def is_adapter(names: Collection[str]) -> bool:
    """Whether a folder's files are a LoRA adapter without its base model."""
    return ADAPTER_CONFIG in names and not {WEIGHTS, INDEX} & set(names)


def nothing(what: str, names: Collection[str], hint: str) -> EdgeError:
    """The error for a place that holds no checkpoint, by what it does hold."""
    pickles = sorted(name for name in names if name.lower().endswith(PICKLES))
    if pickles and not any(name.endswith(".safetensors") for name in names):
        return UnsafeFile(
            f"{what} has its weights only as pickles ({pickles[0][:80]}), which may run code when opened",
            hint="take a repository or revision that has them as .safetensors",
        )
    return ModelNotFound(f"{what} has no checkpoint ({CONFIG} with {WEIGHTS} or {INDEX})", hint=hint)


def remove_others(folder: Path, wanted: Collection[str]) -> None:
    """Delete what another commit of the same model left in its folder: its shards, its tokenizer's files."""
    texts = {CONFIG, INDEX, WEIGHTS, ADAPTER_CONFIG, *TEXT_FILES}
    for path in [*folder.glob("*"), *folder.glob("1_Pooling/*")]:
        name = path.relative_to(folder).as_posix().removesuffix(".etag").removesuffix(".partial")
        if name not in wanted and (name in texts or name.endswith(".safetensors")):
            path.unlink()
