"""Text to tokens and back, by the tokenizer.json beside an ONNX decoder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from threading import Lock
from typing import Any

from edge.engine.tokenizer import MAX_BYTES, opened, refusing
from edge.engine.vocab import CHEAP_BYTES, utf8
from edge.errors import PromptTooLong, UnsafeFile
from edge.onnx_folder import DecoderFolder

SPACE = "▁"  # SentencePiece's
ONE_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # its token of a byte that is in no other


class OnnxVocab:
    """The vocabulary of an ONNX decoder, with the functions of `edge.engine.vocab.Vocab`.

    `size` are the model's ids, of which the tokenizer may know fewer. Raises UnsafeFile for a file that is no
    tokenizer, or one of a kind whose tokens are not pieces of text.
    """

    handle = None  # llama.cpp has no such vocabulary

    def __init__(self, path: Path, said: DecoderFolder) -> None:
        with path.open("rb") as file:
            self._tokenizer, _ = opened(file.read(MAX_BYTES + 1), str(path))
        self._path, self._switch = path, Lock()
        self.size = said.vocabulary
        self._special_ids = {"bos": said.bos, "eos": said.eos}
        self._end_ids = frozenset(said.ends)
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._byte_level = byte_level(self._tokenizer, path)
        self._pieces: dict[int, bytes] = {}
        self._longest = 0

    @property
    def adds_bos(self) -> bool:
        """Whether BOS is put before a text."""
        first = self._tokenizer.encode("", add_special_tokens=True).ids[:1]
        return bool(first) and first[0] == self._special_ids["bos"]

    def tokens(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        add_special puts around it what the model wants; parse_special reads control tokens such as `<|im_end|>`
        written in the text as the tokens themselves. Raises RequestError for what is not text.
        """
        utf8(text)
        # The switch is the tokenizer's own: another thread's would make control tokens of what a user wrote
        with self._switch, refusing(str(self._path)):
            self._tokenizer.encode_special_tokens = not parse_special
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special).ids
        return ids

    def check_length(self, text: str, context: int) -> None:
        """Raise PromptTooLong for a text that cannot be `context` tokens or fewer, without counting them."""
        if len(text) < CHEAP_BYTES:
            return
        if self._byte_level and self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)  # NFC, which may be shorter
        if not self._longest:
            self._longest = max(len(self.piece(token)) for token in range(self.size))
        least = -(-len(text.encode("utf-8", "surrogatepass")) // max(1, self._longest))
        if least > context:
            raise PromptTooLong(least, context, exact=False)

    def piece(self, token: int) -> bytes:
        """The bytes of one token; control tokens are empty. A character may span several tokens."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._read_piece(token)
        return known

    def is_end(self, token: int) -> bool:
        """Whether this token ends an answer (EOS, end of turn)."""
        return token in self._end_ids

    def special_text(self, which: str) -> str:
        """The text of the "bos" or "eos" token, or an empty string where the model has none."""
        token = self._special_ids[which]
        return (self._tokenizer.id_to_token(token) or "") if token is not None else ""

    def has(self, text: str) -> bool:
        """Whether `text` is one control token of this vocabulary."""
        token = self._tokenizer.token_to_id(text)
        return token is not None and self._is_control(token)

    def control_texts(self) -> frozenset[str]:
        """The texts of all control tokens."""
        return frozenset(added.content for added in self._added.values() if added.special)

    def _is_control(self, token: int) -> bool:
        return token in self._added and self._added[token].special

    def _read_piece(self, token: int) -> bytes:
        if token in self._added:
            added = self._added[token]
            return b"" if added.special else bytes(added.content.encode())
        text: str | None = self._tokenizer.id_to_token(token)
        if text is None:  # a row of the table that stands for nothing
            return b""
        if self._byte_level:
            return bytes(BYTES[letter] for letter in text if letter in BYTES)
        if byte := ONE_BYTE.fullmatch(text):
            return bytes.fromhex(byte[1])
        return text.replace(SPACE, " ").encode()


def byte_level(tokenizer: Any, path: Path) -> bool:
    """Whether tokens spell bytes in GPT-2's letters, or are SentencePiece's. Raises UnsafeFile for other kinds."""
    decoder = tokenizer.decoder
    said = json.loads(decoder.__getstate__()) if decoder is not None else {}
    kinds = {said.get("type"), *(step.get("type") for step in said.get("decoders", ()))}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"ByteFallback", "Metaspace"}:
        return False
    raise UnsafeFile(
        f"{path} turns tokens into text in a way that is not known here",
        hint="known are byte-level tokens and SentencePiece's",
    )


def letters() -> dict[str, int]:
    """GPT-2's letter of each byte: printable ones stand for themselves, the others for 256 and up (its encoder.py)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): byte for at, byte in enumerate(others)}


BYTES = letters()
