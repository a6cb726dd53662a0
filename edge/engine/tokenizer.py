"""The checkpoint's own tokenizer, in Rust: texts to ids, with the characters that each token stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from edge.engine.encoding import Tokens
from edge.errors import EdgeError, EngineError, RequestError, UnsafeFile

MAX_BYTES = 64 << 20  # of a tokenizer.json; one of 256,000 tokens has 33 MB
NOWHERE = (0, 0)


class TextTokenizer:
    """A tokenizer.json, opened. May be used from several threads at once."""

    def __init__(self, text: str | bytes, name: str) -> None:
        """Raises UnsafeFile for a text that is no tokenizer; `name` is what it is called then."""
        self._name = name
        self._rust, self.pad = opened(text, name)

    def size(self) -> int:
        """Ids that it may give, from 0 on."""
        return max(self._rust.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None, most: int, *, spans: bool
    ) -> list[Tokens]:
        """Texts in tokens, at most `most` of each; a longer one loses its end, of a pair the longer text first.

        Raises RequestError where a text gives no token at all, UnsafeFile where the tokenizer cannot be applied.
        """
        inputs: Any = list(zip(texts, pairs, strict=True)) if pairs is not None else list(texts)
        encode = self._rust.encode_batch if spans else self._rust.encode_batch_fast
        with refusing(self._name):
            found = encode(inputs)
            return [
                tokens_of(encoding, 0, spans) if len(encoding) <= most else self._cut(one, most, spans)
                for one, encoding in zip(inputs, found, strict=True)
            ]

    def _cut(self, text: str | tuple[str, str], most: int, spans: bool) -> Tokens:
        """A text or pair that is too long: cut, then the special tokens around it (transformers' longest_first)."""
        parts = [text] if isinstance(text, str) else list(text)
        encodings = [self._rust.encode(part, add_special_tokens=False) for part in parts]
        room = most - self._rust.num_special_tokens_to_add(len(parts) == 2)
        lengths = [len(encoding) for encoding in encodings]
        for encoding, keep in zip(encodings, shares(lengths, room), strict=True):
            if keep < len(encoding):
                encoding.truncate(keep)
        left_out = sum(lengths) - sum(map(len, encodings))
        whole = self._rust.post_process(encodings[0], encodings[1] if len(parts) == 2 else None)
        return tokens_of(whole, left_out, spans)


def opened(text: str | bytes, name: str) -> tuple[Any, int | None]:
    """The library's Tokenizer of a tokenizer.json, and the id it pads with if it says one.

    Raises UnsafeFile for a text that is no tokenizer, EngineError where the library is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EngineError("tokenizers does not load", hint="pip install tokenizers") from error
    if len(text) > MAX_BYTES:
        raise UnsafeFile(f"{name} has more than {MAX_BYTES:,} bytes", hint="check where it came from")
    with refusing(name):
        found = Tokenizer.from_str(text if isinstance(text, str) else text.decode())
    # Batches are padded where they are run, and what is left out of a text is said
    pad: int | None = found.padding["pad_id"] if found.padding else None
    found.no_padding()
    found.no_truncation()
    return found, pad


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Raise UnsafeFile for all that the library raises: Exception itself, and where it panics not even that."""
    try:
        yield
    except (EdgeError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except TypeError as error:
        raise RequestError(f"what is to be read is not text: {error}"[:200]) from None
    except BaseException as error:
        raise UnsafeFile(f"{name} is no tokenizer: {error}"[:200], hint="download it again") from None


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """How much of each of one or two texts fits: the longer gives first, then both are halves.

    As the library cuts ("longest_first"). Raises RequestError for no room at all.
    """
    if room < len(lengths):
        raise RequestError("the model reads too few tokens for any text", hint="take another model")
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    less = min(min(lengths), room // 2)
    kept = [less, min(max(lengths), room - less)]
    return kept if lengths[0] <= lengths[1] else kept[::-1]


def tokens_of(encoding: Any, left_out: int, spans: bool) -> Tokens:
    ids = np.array(encoding.ids, np.int64)
    if not len(ids):
        raise RequestError("a text has no tokens", hint="leave out empty texts: this model cannot read them")
    types = np.array(encoding.type_ids, np.int64)
    if not spans:
        return Tokens(ids, types, left_out=left_out)
    words = [-1 if word is None else word for word in encoding.word_ids]
    return Tokens(
        ids,
        types,
        [NOWHERE if word < 0 else span for word, span in zip(words, encoding.offsets, strict=True)],
        words,
        left_out,
    )
