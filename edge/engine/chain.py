"""llama.cpp's native sampler chain for one answer: from logits to the next token."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary, finalize

import numpy as np
from numpy.typing import NDArray

from edge.engine.binding import llama
from edge.engine.gbnf import check_grammar
from edge.engine.grammar import Grammar
from edge.engine.sampling import Sampling
from edge.errors import EngineError, RequestError

CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # llama.h, llama_token_data
BREAKERS = (b"\n", b":", b'"', b"*")  # llama.cpp's own for DRY: repeats are not counted across them
MIROSTAT_TOKENS = 100  # m of the paper, as in llama.cpp
COLDEST = 1e-6  # dividing by less would overflow; no draw would differ from the likeliest token
NEVER = 1e-30  # a share that float32 still holds


class Vocabulary(Protocol):
    """What a chain asks of `edge.engine.vocab.Vocab` or `edge.onnx.vocab.OnnxVocab`."""

    size: int
    handle: Any

    def tokens(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...


class Chain:
    """The samplers of one answer, which have seen its prompt's end. One thread at a time; `close` frees it.

    The same settings, seed, prompt and logits give the same tokens, by `draw` and by `draw_from` alike.
    Raises RequestError for what this vocabulary cannot do (`check_fit`).
    """

    def __init__(self, sampling: Sampling, vocab: Vocabulary, seed: int, prompt: Sequence[int]) -> None:
        named = check_fit(sampling, vocab)
        self._lib = llama()
        self._vocab = vocab
        self._grammar = Grammar(sampling.grammar, vocab, named) if sampling.grammar else None
        self._never = None if self._grammar else never(sampling, vocab)
        params = self._lib.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = self._lib.llama_sampler_chain_init(params)
        for sampler in samplers(sampling, vocab, seed):
            self._lib.llama_sampler_chain_add(self._chain, sampler)
        if window := seen(sampling):
            for token in prompt[-window:]:
                self._lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the samplers; safe to call twice."""
        if self._chain is not None:
            self._lib.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._grammar.close()
        self._chain = self._grammar = None

    def draw(self, context: Any, row: int) -> int:
        """The next token by a row of a llama.cpp context's last logits; the chain then has seen it."""
        if self._grammar is not None or self._never is not None:
            pointer = self._lib.llama_get_logits_ith(context, row)
            logits = np.ctypeslib.as_array(pointer, (self._vocab.size,))
            if self._grammar is not None:
                return self.draw_from(logits)
            if (likeliest := self._likeliest(logits)) is not None:
                return likeliest
        token: int = self._lib.llama_sampler_sample(self._chain, context, row)
        return token

    def draw_from(self, logits: NDArray[np.float32]) -> int:
        """The next token by logits (vocabulary,), which are not changed; the chain then has seen it.

        Raises EngineError for NaN, RequestError where no token fits the grammar.
        """
        if np.isnan(logits).any():
            raise EngineError(
                "no token could be drawn", hint="the model computes no numbers; get another file"
            )
        if (likeliest := self._likeliest(logits)) is not None:
            return likeliest
        candidates = candidates_of(len(logits))
        candidates.fill(logits)
        token = candidates.chosen(self._chain)
        if self._grammar is not None and not self._grammar.allows(token):
            token = self._fitting(candidates, logits)
        self._lib.llama_sampler_accept(self._chain, token)
        if self._grammar is not None:
            self._grammar.accept(token)
        return token

    def _likeliest(self, logits: NDArray[np.float32]) -> int | None:
        """What the chain would choose, where that is plain to see, in a tenth of the time that it would take."""
        if self._never is None:
            return None
        token = int(logits.argmax())
        return None if token in self._never or math.isnan(logits[token]) else token

    def _fitting(self, candidates: Candidates, logits: NDArray[np.float32]) -> int:
        """A token drawn from those that the grammar allows, as llama.cpp's common_sampler_sample does."""
        assert self._grammar is not None
        candidates.fill(logits)
        allowed = candidates.left(self._grammar.sampler)
        while (allowed > -math.inf).any():
            candidates.fill(allowed)
            token = candidates.chosen(self._chain)
            if allowed[token] == -math.inf:
                break
            if self._grammar.allows(token):
                return token
            allowed[token] = -math.inf
        raise RequestError(
            "no token of the model fits the grammar here",
            hint="the grammar, logit-bias and the model's vocabulary leave none over",
        )


class Candidates:
    """llama.cpp's array of candidates over memory that is used again from token to token."""

    def __init__(self, vocabulary: int) -> None:
        lib = llama()
        self.size = vocabulary
        self._apply = lib.llama_sampler_apply
        self._entries = np.zeros(vocabulary, CANDIDATE)
        self._ids = np.arange(vocabulary, dtype=np.int32)
        self._pointer = self._entries.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        self._array = lib.llama_token_data_array(self._pointer, vocabulary, -1, False)

    def fill(self, logits: NDArray[np.float32]) -> None:
        """Make every token a candidate: samplers sort them, drop some and move the array's beginning."""
        self._entries["id"] = self._ids
        self._entries["logit"] = logits
        self._entries["p"] = 0
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._pointer, self.size, -1, False

    def chosen(self, chain: Any) -> int:
        """The token a chain chooses."""
        self._apply(chain, ctypes.byref(self._array))
        return int(self._array.data[self._array.selected].id)

    def left(self, sampler: Any) -> NDArray[np.float32]:
        """Logits (vocabulary,) after a sampler that only bans."""
        self._apply(sampler, ctypes.byref(self._array))
        logits: NDArray[np.float32] = self._entries["logit"].copy()
        return logits


_mine = threading.local()


def candidates_of(vocabulary: int) -> Candidates:
    """This thread's candidates: answers of one engine take turns on them."""
    kept: Candidates | None = getattr(_mine, "kept", None)
    if kept is None or kept.size != vocabulary:
        kept = _mine.kept = Candidates(vocabulary)
    return kept


def check_fit(sampling: Sampling, vocab: Vocabulary) -> frozenset[int]:
    """The tokens that the grammar names. Raises RequestError for settings that this vocabulary cannot follow."""
    biases = dict(sampling.logit_bias)
    for token in biases:
        if token >= vocab.size:
            raise RequestError(
                f"logit-bias names token {token}", hint=f"the model has the tokens 0 to {vocab.size - 1}"
            )
    if sum(bias == -math.inf for bias in biases.values()) == vocab.size:
        raise RequestError("logit-bias bans every token", hint="leave some")
    if vocab.handle is None and (sampling.grammar or sampling.dry_multiplier):
        raise RequestError(
            f"{'a grammar' if sampling.grammar else 'dry-multiplier'} needs llama.cpp, and this is an ONNX model",
            hint="use its GGUF form",
        )
    named = set()
    for text in check_grammar(sampling.grammar) if sampling.grammar else ():
        ids = (
            [int(text[2:-2])]
            if text.startswith("<[")
            else vocab.tokens(text, add_special=False, parse_special=True)
        )
        if len(ids) != 1 or ids[0] >= vocab.size:
            raise RequestError(
                f"the grammar names {text}, which is no token of the model", hint="write it in quotes"
            )
        named.add(ids[0])
    return frozenset(named)


def seen(sampling: Sampling) -> int:
    """How many of the last tokens the chain has to know."""
    return max(
        sampling.repeat_last_n if penalised(sampling) else 0,
        sampling.dry_penalty_last_n if sampling.dry_multiplier else 0,
    )


def penalised(sampling: Sampling) -> bool:
    """Whether any of the three penalties is on."""
    return sampling.repeat_penalty != 1 or bool(sampling.frequency_penalty or sampling.presence_penalty)


def samplers(sampling: Sampling, vocab: Vocabulary, seed: int) -> list[Any]:
    """The native samplers in llama.cpp's order (common/sampling.cpp, common_sampler_init)."""
    lib = llama()
    made = []
    if biases := banned(sampling, vocab):
        entries = (lib.llama_logit_bias * len(biases))(*biases.items())
        made.append(lib.llama_sampler_init_logit_bias(vocab.size, len(entries), entries))
    cold = sampling.temperature < COLDEST
    if sampling.mirostat and not cold:
        made.append(lib.llama_sampler_init_temp(sampling.temperature))
        tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
        if sampling.mirostat == 1:
            return [*made, lib.llama_sampler_init_mirostat(vocab.size, seed, tau, eta, MIROSTAT_TOKENS)]
        return [*made, lib.llama_sampler_init_mirostat_v2(seed, tau, eta)]
    made += [] if sampling.mirostat else penalties(sampling, vocab)
    if cold:
        return [*made, lib.llama_sampler_init_greedy()]
    if sampling.top_k:
        made.append(lib.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1:
        # Its entropy is NaN where a probability is 0, and it then keeps the likeliest instead
        made.append(lib.llama_sampler_init_min_p(NEVER, 1))
        made.append(lib.llama_sampler_init_typical(sampling.typical_p, 1))
    if sampling.top_p < 1:
        made.append(lib.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        made.append(lib.llama_sampler_init_min_p(sampling.min_p, 1))
    if sampling.xtc_probability:
        made.append(lib.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, seed))
    return [*made, lib.llama_sampler_init_temp(sampling.temperature), lib.llama_sampler_init_dist(seed)]


def never(sampling: Sampling, vocab: Vocabulary) -> frozenset[int] | None:
    """The tokens that are banned, where of all others the likeliest is drawn; None where more goes on than that."""
    dry = sampling.dry_multiplier and not sampling.mirostat
    if sampling.temperature >= COLDEST or dry or (penalised(sampling) and not sampling.mirostat):
        return None
    biases = banned(sampling, vocab)
    return frozenset(biases) if all(bias == -math.inf for bias in biases.values()) else None


def penalties(sampling: Sampling, vocab: Vocabulary) -> list[Any]:
    """Those that look at what was said: the three penalties, then DRY."""
    lib = llama()
    made = []
    if penalised(sampling):
        made.append(
            lib.llama_sampler_init_penalties(
                vocab.size, sampling.repeat_last_n, sampling.repeat_penalty, sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )  # fmt: skip
    if sampling.dry_multiplier:
        made.append(lib.llama_sampler_clone(dry_of(vocab, sampling).sampler))
    return made


class Dry:
    """A DRY sampler that has read the vocabulary for its breakers, which takes 60 ms for 49,152 tokens."""

    def __init__(self, vocab: Vocabulary, settings: tuple[float, float, int, int]) -> None:
        lib = llama()
        breakers = (ctypes.c_char_p * len(BREAKERS))(*BREAKERS)
        self.settings = settings
        self.sampler = lib.llama_sampler_init_dry(vocab.handle, *settings, breakers, len(breakers))
        finalize(self, lib.llama_sampler_free, self.sampler)


_dry: WeakKeyDictionary[Vocabulary, Dry] = WeakKeyDictionary()


def dry_of(vocab: Vocabulary, sampling: Sampling) -> Dry:
    """The sampler to clone; the last settings of each vocabulary are kept."""
    settings = (
        sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length, sampling.dry_penalty_last_n,
    )  # fmt: skip
    kept = _dry.get(vocab)
    if kept is None or kept.settings != settings:
        kept = _dry[vocab] = Dry(vocab, settings)
    return kept


def banned(sampling: Sampling, vocab: Vocabulary) -> dict[int, float]:
    """What to add to logits: the caller's, −inf for what the file suppresses, and for ends with ignore_eos."""
    biases = dict(sampling.logit_bias)
    if vocab.handle is not None:
        count = ctypes.c_int32()
        suppressed = llama().llama_vocab_get_suppress_tokens(vocab.handle, ctypes.byref(count))
        biases |= {suppressed[at]: -math.inf for at in range(count.value)}
    if sampling.ignore_eos:
        biases |= dict.fromkeys(ends_of(vocab), -math.inf)
    return biases


_ends: WeakKeyDictionary[Vocabulary, tuple[int, ...]] = WeakKeyDictionary()


def ends_of(vocab: Vocabulary) -> tuple[int, ...]:
    """The tokens that end an answer; looks at every entry of a vocabulary once."""
    if vocab not in _ends:
        _ends[vocab] = tuple(token for token in range(vocab.size) if vocab.is_end(token))
    return _ends[vocab]
