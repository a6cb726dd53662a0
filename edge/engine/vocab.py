"""Text to tokens and back, by the tokenizer inside the model."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from edge.engine.binding import llama
from edge.errors import EngineError, PromptTooLong, RequestError

CHEAP_BYTES = 1 << 16  # below this, counting the tokens takes less time than finding the longest
LOSSLESS = (1, 2, 5)  # llama.h, enum llama_vocab_type: SentencePiece BPE, byte-level BPE, RWKV


P = ParamSpec("P")
R = TypeVar("R")


class LoadedFile:
    """Frees a model once nobody has this: neither who loaded it nor a thread in one of the vocabulary's functions."""

    def __init__(self, model: Any) -> None:
        weakref.finalize(self, llama().llama_model_free, model).atexit = False


def while_loaded(
    method: Callable[Concatenate[Vocab, P], R],
) -> Callable[Concatenate[Vocab, P], R]:
    """Keep the model in memory during the call. That raises EngineError where it is freed already."""

    @wraps(method)
    def call(self: Vocab, /, *args: P.args, **kwargs: P.kwargs) -> R:
        file = self._file()
        if file is None:
            raise EngineError("the model is closed", hint="load it again")
        return method(self, *args, **kwargs)

    return call


class Vocab:
    """The vocabulary of a loaded model, for any thread. Lives as long as the model, or as `file`, if given.

    `handle` is llama.cpp's, for those of its samplers that look at texts.
    """

    def __init__(self, model: Any, file: LoadedFile | None = None) -> None:
        lib = llama()
        self._file: Callable[[], object | None] = weakref.ref(file) if file else lambda: True
        self.handle = lib.llama_model_get_vocab(model)
        self.size: int = lib.llama_vocab_n_tokens(self.handle)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(self.handle)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._longest = 0

    @while_loaded
    def tokens(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        add_special puts BOS (and what else the model wants) around it; parse_special reads control tokens such
        as `<|im_end|>` written in the text as the tokens themselves. Raises RequestError for what is not text.
        """
        data = utf8(text)
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = llama().llama_tokenize(self.handle, data, len(data), ids, room, add_special, parse_special)
        if count < 0:
            raise EngineError("llama.cpp could not tokenize the text", hint="shorten it")
        return ids[:count]

    @while_loaded
    def check_length(self, text: str, context: int) -> None:
        """Raise PromptTooLong for a text that cannot be `context` tokens or fewer, without counting them.

        Ten million characters take llama.cpp half a minute and a gigabyte. No token stands for more bytes than
        the longest one has, which holds for the kinds of tokenizer that drop nothing.
        """
        size = len(text.encode("utf-8", "surrogatepass"))
        if size < CHEAP_BYTES or llama().llama_vocab_type(self.handle) not in LOSSLESS:
            return
        if not self._longest:
            self._longest = max(len(self._read_piece(token, special=True)) for token in range(self.size))
        least = -(-size // max(1, self._longest))
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
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = self._read_end(token)
        return known

    @while_loaded
    def special_text(self, which: str) -> str:
        """The text of the "bos" or "eos" token, or an empty string where the model has none."""
        lib = llama()
        token = getattr(lib, f"llama_vocab_{which}")(self.handle)
        text = lib.llama_vocab_get_text(self.handle, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""

    @while_loaded
    def has(self, text: str) -> bool:
        """Whether `text` is one control token of this vocabulary."""
        ids = self.tokens(text, add_special=False, parse_special=True)
        return len(ids) == 1 and bool(llama().llama_vocab_is_control(self.handle, ids[0]))

    @while_loaded
    def control_texts(self) -> frozenset[str]:
        """The texts of all control tokens; looks at every entry of the vocabulary."""
        lib = llama()
        return frozenset(
            lib.llama_vocab_get_text(self.handle, token).decode("utf-8", "replace")
            for token in range(self.size)
            if lib.llama_vocab_is_control(self.handle, token)
        )

    @while_loaded
    def _read_end(self, token: int) -> bool:
        return bool(llama().llama_vocab_is_eog(self.handle, token))

    @while_loaded
    def _read_piece(self, token: int, *, special: bool = False, room: int = 512) -> bytes:
        buffer = ctypes.create_string_buffer(room)  # of this call: another thread may read another token
        count = llama().llama_token_to_piece(self.handle, token, buffer, room, 0, special)
        if count < 0:  # the buffer is too small by its own account
            return self._read_piece(token, special=special, room=-count)
        return buffer.raw[:count]


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of a prompt. Raises RequestError for a NUL or half a surrogate pair."""
    if "\0" in text:
        raise RequestError(
            f"the prompt holds a NUL at character {text.index(chr(0))}", hint="is it a binary file? give text"
        )
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the prompt holds half a surrogate pair at character {error.start}",
            hint="give valid Unicode text",
        ) from error
