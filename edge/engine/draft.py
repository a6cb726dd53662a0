"""A draft model: a small model of the same vocabulary that guesses what a large one will say."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from edge.artifact import ONNX_BACKEND, is_onnx, read_artifact
from edge.engine.backend import Backend, Row
from edge.engine.binding import llama
from edge.engine.llama import LlamaBackend
from edge.engine.speculate import MOST, Chances, Pace, PromptLookup, Proposer, best
from edge.engine.vocab import Vocab
from edge.errors import EdgeError, RequestError
from edge.memory import BATCH
from edge.planner import Plan, plan
from edge.store import resolve

PADDING = (
    128  # entries by which vocabularies of one family differ in length (llama.cpp, common/speculative.cpp)
)
# The chance that a guess is right by the probability that the draft gives it, before this pair has shown its own.
PRIOR = ((0.0, 0.15), (0.3, 0.35), (0.5, 0.5), (0.7, 0.65), (0.85, 0.8), (0.95, 0.9))
TRIAL = 16  # drafted steps after which it is decided whether drafting goes on
REST, LONGEST_REST = 64, 1024  # plain steps before it is tried again, doubled each time it did not pay
MEASURE = 64  # steps of which one is plain, so that what a plain step takes stays known


def draft_plan(ref: str, target: Plan, *, threads: int | None = None) -> Plan:
    """Plan the draft model `ref` for one conversation as long as the target's, or as it was trained for.

    Raises what `edge.plan` raises, RequestError where target or draft is no GGUF model.
    """
    if target.backend == ONNX_BACKEND:
        raise RequestError(
            "a draft model goes with a GGUF model, and this one is ONNX", hint="leave out --draft"
        )
    model = resolve(ref)
    if is_onnx(model):
        raise RequestError(
            "the draft model is ONNX, and only llama.cpp guesses ahead", hint="name its GGUF form"
        )
    trained = read_artifact(model).get("{arch}.context_length", int, target.context)
    return plan(ref, ctx=min(target.context, trained), threads=threads)


class DraftModel:
    """Guesses greedily, token by token, as long as the next guess is likely enough to pay. A `Proposer`.

    It belongs to an engine, not to a request: of the tokens of a call it computes what it has not from the last.
    Guessing stops where its measured yield, tokens in the time of drafting and decoding together, is below that of
    plain steps, and is tried again after a rest.

    Raises RequestError for a model of another vocabulary, or where one of the two cannot take guesses back;
    EngineError where it does not load. Used by one thread at a time.
    """

    def __init__(self, plan: Plan, target: Backend, pace: Pace) -> None:
        self._pace = pace
        self._backend = LlamaBackend(plan)
        try:
            check_pair(plan.artifact, self._backend, target)
        except BaseException:
            self._backend.close()
            raise
        self._size = target.vocab.size
        self._tokens: list[int] = []  # those whose state the sequence holds
        self._chances = Chances(PRIOR)
        self._sure: list[float] = []  # the probability of each guess of the last call
        self._unsaid: tuple[int, int, float] | None = (
            None  # its first one, where none was offered: place, token, sure
        )
        self._share = 0.5  # of a plain step's time that one drafted token takes
        self._seconds = 0.0  # what the last call took, without catching up
        self._steps = self._drafted = self._resting = 0
        self._rest = REST
        self._won = self._spent = 0.0  # tokens, and plain steps' times, of the trial under way

    def proposer(self) -> Proposer:
        """What guesses for one request: lookup where that pays, else this model."""
        return LookupOrDraft(PromptLookup(self._pace), self)

    def close(self) -> None:
        """Free the memory; safe to call twice."""
        self._backend.close()

    def abort(self) -> None:
        """From any thread: end a running call early, with EngineError."""
        self._backend.abort()

    def guess(self, tokens: Sequence[int], most: int = MOST) -> list[int]:
        """See Proposer. Raises EngineError where decoding fails."""
        self._learn_unsaid(tokens)
        self._sure, self._seconds = [], 0.0
        self._steps += 1
        if self._resting:
            self._resting -= 1
            return []
        most = min(most, MOST, self._backend.context - len(tokens))
        if not self._pace.one or most < 1 or self._steps % MEASURE == 0:
            return []
        begun = perf_counter()
        try:
            if (behind := self._catch_up(tokens)) > 2 * MOST:  # once in a request, so not what a step takes
                begun = perf_counter()
            if len(self._tokens) < len(tokens):
                return []
            guesses = self._go_on(behind - 1, most)
        except EdgeError:
            self._tokens = []
            self._backend.keep(0, 0)
            raise
        self._seconds = perf_counter() - begun
        seen = self._seconds / (1 + len(self._tokens) - len(tokens)) / self._pace.one
        self._share += (min(seen, 2 * self._share) - self._share) / 16
        return guesses

    def learn(self, offered: int, accepted: int, seconds: float) -> None:
        """See Proposer."""
        self._pace.learn(offered, seconds)
        for i, sure in enumerate(self._sure[: min(offered, accepted + 1)]):
            self._chances.learn(sure, i < accepted)
        if not self._seconds:
            return
        self._drafted += 1
        self._won += 1 + accepted
        self._spent += (seconds + self._seconds) / self._pace.one
        self._sure, self._seconds = [], 0.0  # the next step may be without a call, beside another's prompt
        if self._drafted % TRIAL == 0:
            if not self._worth():
                self._resting, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)
            else:
                self._rest = REST
            self._won = self._spent = 0.0

    def _learn_unsaid(self, tokens: Sequence[int]) -> None:
        """What was not offered is compared with what came, or a kind that was wrong at first would stay so."""
        if self._unsaid is not None:
            place, token, sure = self._unsaid
            if len(tokens) == place + 1:
                self._chances.learn(sure, tokens[place] == token)
        self._unsaid = None

    def _worth(self) -> bool:
        """Whether the trial gave more tokens than as many plain steps' times would have."""
        return self._won > self._spent

    def _catch_up(self, tokens: Sequence[int]) -> int:
        """Compute what of `tokens` is not computed, the last one always, or BATCH of it; returns how many that is."""
        shared = min(common(self._tokens, tokens), len(tokens) - 1)
        if shared < len(self._tokens) and not self._backend.keep(0, shared):
            shared = 0
        self._tokens = list(tokens[:shared])
        self._decode(tokens[shared : shared + BATCH])
        return len(tokens) - shared

    def _go_on(self, row: int, most: int) -> list[int]:
        """Up to `most` guesses from a row of logits on.

        A guess is worth its row where the chance that it comes to it, and it is right, is above a row's share of a
        plain step's time; drafting another one, where that chance is above both shares.
        """
        guesses: list[int] = []
        chances: list[float] = []
        right = 1.0
        while True:
            logits = self._backend.logits(row)
            token = int(logits.argmax())
            if token >= self._size:  # the target has no such token
                break
            sure = float(1 / np.exp(logits - logits[token]).sum())
            chances.append(self._chances.of(sure))
            right *= chances[-1]
            guesses.append(token)
            self._sure.append(sure)
            ends = len(guesses) == most or self._backend.vocab.is_end(token)
            if ends or right < self._share + self._pace.share:
                break
            self._decode([token])
            row = 0
        offered = best(chances, self._pace.share)
        if guesses and not offered:
            self._unsaid = len(self._tokens) - len(guesses) + 1, guesses[0], self._sure[0]
        return guesses[:offered]

    def _decode(self, tokens: Sequence[int]) -> None:
        """Compute these tokens after those that are; only the last has logits."""
        start, last = len(self._tokens), len(tokens) - 1
        self._backend.decode([Row(token, start + i, (0,), i == last) for i, token in enumerate(tokens)])
        self._tokens += tokens


class LookupOrDraft:
    """For one request: what the text has said before, where that pays, else what the draft model says."""

    def __init__(self, lookup: PromptLookup, draft: DraftModel) -> None:
        self._lookup, self._draft = lookup, draft
        self._asked: Proposer = lookup

    def guess(self, tokens: Sequence[int], most: int = MOST) -> list[int]:
        """See Proposer."""
        guesses = self._lookup.guess(tokens, most)
        self._asked = self._lookup if guesses else self._draft
        return guesses or self._draft.guess(tokens, most)

    def learn(self, offered: int, accepted: int, seconds: float) -> None:
        """See Proposer."""
        self._asked.learn(offered, accepted, seconds)


def check_pair(name: str, draft: Backend, target: Backend) -> None:
    """Raise RequestError where the draft called `name` cannot guess for the target."""
    for backend, which in ((target, "the model"), (draft, name)):
        if not (backend.rolls_back and backend.every_row):
            raise RequestError(
                f"{which} cannot take tokens back, so nothing can be guessed ahead", hint="leave out --draft"
            )
    ours, theirs = target.vocab, draft.vocab
    another = "name a draft model of the same family"
    if abs(ours.size - theirs.size) > PADDING:
        raise RequestError(
            f"{name} has a vocabulary of {theirs.size} tokens and the model one of {ours.size}", hint=another
        )
    if not (isinstance(ours, Vocab) and isinstance(theirs, Vocab)):
        raise RequestError(f"{name} and the model are of different kinds", hint=another)
    lib = llama()
    for token in range(min(ours.size, theirs.size)):
        texts = [lib.llama_vocab_get_text(vocab.handle, token) for vocab in (theirs, ours)]
        if texts[0] != texts[1]:
            said, wanted = (repr((text or b"").decode("utf-8", "replace")) for text in texts)
            raise RequestError(
                f"{name} has another vocabulary: its token {token} is {said}, the model's {wanted}",
                hint=another,
            )


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences share from the beginning on; compared as slices, which is C's work."""
    longest = min(len(one), len(other))
    if list(one[:longest]) == list(other[:longest]):
        return longest
    return bisect_right(range(1, longest + 1), False, key=lambda n: list(one[:n]) != list(other[:n]))
