"""llama.cpp's grammar sampler for one answer: which tokens may come next."""

from __future__ import annotations

import ctypes
from time import thread_time
from typing import Any, Protocol

from edge.engine.binding import llama, why
from edge.errors import RequestError

# Seconds of this thread. The ways to read an ambiguous answer can double with each letter, and going on takes
# their square: 13 letters of `root ::= "a" root "b" | "a" root "c" | "a"` took 0.03 s to check, 5 s to accept
SLOWEST_CHECK_S = 0.01
SLOWEST_ACCEPT_S = 0.5


class Speller(Protocol):
    """What is asked of a vocabulary."""

    handle: Any

    def piece(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...


class Grammar:
    """What an answer may still be. `sampler` bans what it may not; `close` frees it.

    `named` are the tokens that the text names by themselves. Raises RequestError where llama.cpp refuses a text
    that `check_grammar` let through.
    """

    def __init__(self, text: str, vocab: Speller, named: frozenset[int]) -> None:
        self._lib = llama()
        self._vocab = vocab
        self._named = named
        self.sampler = self._lib.llama_sampler_init_grammar(vocab.handle, text.encode(), b"root")
        if not self.sampler:
            raise RequestError(
                f"llama.cpp refuses the grammar ({why('it does not parse')})", hint="simplify it"
            )
        self._one = self._lib.llama_token_data(0, 1.0, 0.0)
        self._alone = self._lib.llama_token_data_array(ctypes.pointer(self._one), 1, -1, False)

    def close(self) -> None:
        """Free it; safe to call twice."""
        if self.sampler:
            self._lib.llama_sampler_free(self.sampler)
        self.sampler = None

    def says(self, token: int) -> bool:
        """Whether a token is text or an end, or one that the grammar names.

        llama.cpp takes control tokens for their names, which the answer's text does not have.
        """
        return bool(self._vocab.piece(token)) or self._vocab.is_end(token) or token in self._named

    def allows(self, token: int) -> bool:
        """Whether a token may come next. Raises RequestError where that takes too long to be followed."""
        if not self.says(token):
            return False
        self._one.id, self._one.logit = token, 1.0
        started = thread_time()
        self._lib.llama_sampler_apply(self.sampler, ctypes.byref(self._alone))
        check_pace(thread_time() - started, SLOWEST_CHECK_S)
        return bool(self._one.logit == 1.0)

    def accept(self, token: int) -> None:
        """Go on behind a token that `allows` lets through; any other would end the process.

        Raises RequestError where that took too long.
        """
        started = thread_time()
        self._lib.llama_sampler_accept(self.sampler, token)
        check_pace(thread_time() - started, SLOWEST_ACCEPT_S)


def check_pace(seconds: float, most: float) -> None:
    """Raise RequestError for a grammar that takes too long."""
    if seconds > most:
        raise RequestError(
            "the grammar is too ambiguous: there are too many ways to read the answer by it",
            hint="let alternatives begin with different text",
        )
