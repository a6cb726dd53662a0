"""The tokenizer files of a Hugging Face folder, read within bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.errors import ConversionError

from ..safetensors import halved
from . import sentencepiece

LARGEST = 64 << 20  # bytes; Gemma 3's tokenizer.json, the largest known, has 33 MB
SENTENCEPIECE_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
SPECIALS = ("bos", "eos", "unk", "pad", "cls", "sep", "mask")


@dataclass(frozen=True)
class Files:
    """What a folder says about its tokenizer. A file that is absent is None, or empty."""

    tokenizer_json: dict[str, Any] | None
    tokenizer_text: str  # the same, as it is written
    sentencepiece: sentencepiece.Model | None
    vocab_txt: list[str] | None
    settings: dict[str, Any]  # tokenizer_config.json
    specials: dict[str, str]  # "bos" → "<s>", as far as it is said
    added: dict[int, Mapping[str, Any]]  # beside the model's own: id → {"content", "special", …}
    chat_template: str | None
    followed: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


def read(folder: Path) -> Files:
    """Read them. Raises ConversionError for a file that is too large, damaged, or of another shape."""
    settings = _object(folder / "tokenizer_config.json")
    special_map = _object(folder / "special_tokens_map.json")
    model, name = None, ""
    for name in SENTENCEPIECE_NAMES:
        if (folder / name).is_file():
            model = sentencepiece.parse(read_bytes(folder / name), name)
            break
    vocab = folder / "vocab.txt"
    specials = {
        which: text
        for which in SPECIALS
        if (text := _text(settings.get(f"{which}_token")) or _text(special_map.get(f"{which}_token")))
    }
    whole = folder / "tokenizer.json"
    tokenizer_text = read_text(whole) if whole.is_file() else ""
    tokenizer_json = parse(tokenizer_text, whole.name) if whole.is_file() else None
    template, template_name, notes = _chat_template(folder, settings)
    if "auto_map" in settings:
        notes.append(
            "tokenizer_config.json names code that the checkpoint brings (auto_map); it is never run"
        )
    followed = [
        *(["tokenizer.json"] if tokenizer_json else []),
        *([name] if model else []),
        *(["tokenizer_config.json"] if settings else []),
        *([template_name] if template_name and template_name != "tokenizer_config.json" else []),
    ]
    return Files(
        tokenizer_json=tokenizer_json,
        tokenizer_text=tokenizer_text,
        sentencepiece=model,
        vocab_txt=read_text(vocab).split("\n") if vocab.is_file() else None,
        settings=settings,
        specials=specials,
        added=checked_added(_added(folder, settings, tokenizer_json)),
        chat_template=template,
        followed=tuple(followed),
        notes=tuple(notes),
    )


def read_bytes(path: Path) -> bytes:
    """A whole file of at most LARGEST bytes. Raises ConversionError."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ConversionError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST:
        raise ConversionError(
            f"{path.name} is larger than {LARGEST >> 20} MiB", hint="no tokenizer is; is it the right file?"
        )
    return data


def read_text(path: Path) -> str:
    """The same as UTF-8 text, line ends as \\n."""
    try:
        return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path.name} is not UTF-8 text at byte {error.start}") from error


def parse(text: str, name: str) -> dict[str, Any]:
    """A JSON object. Raises ConversionError for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversionError(
            f"{name} is not valid JSON: {error}", hint="download the checkpoint again"
        ) from error
    if not isinstance(value, dict):
        raise ConversionError(f"{name} is not a JSON object", hint="download the checkpoint again")
    if halved(text, value):
        raise ConversionError(f"{name} holds half of a character", hint="download the checkpoint again")
    return value


def _object(path: Path) -> dict[str, Any]:
    """A file's JSON object, empty where there is no such file."""
    return parse(read_text(path), path.name) if path.is_file() else {}


def _text(value: object) -> str | None:
    """A special token, written as text or as an object with its content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _added(
    folder: Path, settings: Mapping[str, Any], tokenizer_json: Mapping[str, Any] | None
) -> list[tuple[Any, Any]]:
    """The added tokens by id: tokenizer.json's list, or the places that came before it."""
    if tokenizer_json is not None:
        listed = tokenizer_json.get("added_tokens") or []
        if not isinstance(listed, list):
            raise ConversionError("tokenizer.json: added_tokens is not a list")
        return [(token.get("id"), token) for token in listed if isinstance(token, Mapping)]
    if isinstance(decoder := settings.get("added_tokens_decoder"), Mapping):
        return [
            (int(key) if str(key).isdecimal() and len(key) < 10 else None, token)
            for key, token in decoder.items()
        ]
    return [(key, {"content": text}) for text, key in _object(folder / "added_tokens.json").items()]


def checked_added(pairs: list[tuple[Any, Any]]) -> dict[int, Mapping[str, Any]]:
    """The same by id. Raises ConversionError for one without an id or a text, and for an id that comes twice."""
    added: dict[int, Mapping[str, Any]] = {}
    for key, token in pairs:
        if isinstance(key, bool) or not isinstance(key, int) or key < 0 or not _text(token):
            raise ConversionError(f"an added token has no usable id or text: {str(token)[:80]}")
        if key in added:
            raise ConversionError(
                f"added tokens {_text(added[key])!r} and {_text(token)!r} both have id {key}"
            )
        added[key] = token
    return added


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, str, list[str]]:
    """The chat template, the file it stands in, and notes. A file of its own precedes tokenizer_config.json."""
    if (path := folder / "chat_template.jinja").is_file():
        return read_text(path), path.name, []
    for name, holder in (
        ("chat_template.json", _object(folder / "chat_template.json")),
        ("tokenizer_config.json", settings),
    ):
        template = holder.get("chat_template")
        if isinstance(template, str):
            return template, name, []
        if isinstance(template, list):
            named = {
                one["name"]: one["template"]
                for one in template
                if isinstance(one, Mapping)
                and isinstance(one.get("name"), str)
                and isinstance(one.get("template"), str)
            }
            chosen = "default" if "default" in named else next(iter(named), None)
            if chosen is not None:
                others = ", ".join(sorted(set(named) - {chosen}))
                notes = [f"chat template {chosen!r} is taken; left out: {others}"] if others else []
                return named[chosen], name, notes
    return None, "", []
