"""A request, whatever decodes it: one prompt, n answers, one loop that streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from secrets import randbelow
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

from edge.engine.binding import listen, llama
from edge.engine.sampling import SEEDS, Sampling, open_chain
from edge.engine.text import TextStream
from edge.errors import PromptTooLong, RequestError
from edge.planner import Plan

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of one answer.

    index              which of the n answers this belongs to
    text               what the step made showable; may be empty, may end a held-back piece
    token              the id that was chosen
    finish_reason      None, or in the last chunk of an answer: "stop" (the model ended it or a stop text
                       appeared) or "length" (max_tokens reached or the context is full)
    prompt_tokens      length of the prompt
    reused_tokens      how many of those were still in the KV cache from the call before
    completion_tokens  tokens of this answer so far
    prefill_s          seconds until the prompt was processed
    elapsed_s          seconds since the request; in the first chunk this is the time to first token
    """

    index: int
    text: str
    token: int
    finish_reason: str | None
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    prefill_s: float
    elapsed_s: float


@dataclass
class Answer:
    """One answer under way: its sequence, its sampler and the text it holds back."""

    index: int
    chain: Any
    text: TextStream
    token: int = -1
    count: int = 0


class Vocabulary(Protocol):
    """Text to tokens and back; `edge.engine.vocab.Vocab` says what each function does."""

    size: int

    def tokens(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...
    def check_length(self, text: str, context: int) -> None: ...
    def piece(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...
    def special_text(self, which: str) -> str: ...
    def has(self, text: str) -> bool: ...
    def control_texts(self) -> frozenset[str]: ...


class Decoding(ABC):
    """A model loaded as a plan says. Close it, or use it as a context manager.

    One request runs at a time: a second `stream` ends the first.

    context  tokens that a prompt and its answers may take
    load_s   seconds it took to load
    """

    plan: Plan
    context: int
    load_s: float

    def __init__(self) -> None:
        self._kept: list[int] = []  # the tokens whose KV state sequence 0 holds
        self._request = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Free the memory; safe to call twice."""

    @property
    @abstractmethod
    def vocab(self) -> Vocabulary:
        """The model's vocabulary. Raises EngineError when the model is closed."""

    @abstractmethod
    def meta(self, key: str) -> str | None:
        """What the model says under one of GGUF's keys, as text; None where it says nothing.

        Raises EngineError when the model is closed.
        """

    def stream(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> Generator[Chunk, None, None]:
        """Answer `prompt` n times from one prefill, a chunk a token, the answers interleaved.

        What the prompt shares with the call before is not computed again. Raises RequestError for an empty
        prompt or too many answers, PromptTooLong where the prompt leaves no room for an answer, and, while it
        streams, EngineError where decoding fails.
        """
        self._check(prompt, n)
        return self._stream(prompt, sampling, n)

    def _stream(self, prompt: Sequence[int], sampling: Sampling, n: int) -> Generator[Chunk, None, None]:
        self._check_open()  # a generator begins at its first `next`, and the model may be gone by then
        listen()
        self._request += 1
        request, started = self._request, perf_counter()
        room = (self.context - len(prompt)) // n
        limit = min(room, sampling.max_tokens or room)
        seed = sampling.seed if sampling.seed is not None else randbelow(SEEDS)
        reused = self._rewind(prompt)
        self._prefill(prompt, reused)
        prefill_s = perf_counter() - started
        self._fork(n)
        answers = [
            Answer(
                i,
                open_chain(sampling, self.vocab.size, (seed + i) % SEEDS, prompt),
                TextStream(sampling.stop),
            )
            for i in range(n)
        ]
        live, rows = answers, [-1] * n  # the row of logits each live answer samples from
        try:
            while live:
                for answer, row in zip(live, rows, strict=True):
                    answer.token = self._draw(answer, row)
                    answer.count += 1
                going = []
                for answer in live:
                    text, reason = self._read(answer, limit)
                    if reason is None:
                        going.append(answer)
                    yield Chunk(
                        answer.index, text, answer.token, reason, len(prompt), reused,
                        answer.count, prefill_s, perf_counter() - started,
                    )  # fmt: skip
                    if request != self._request:
                        return  # the engine was closed or another request took the context over
                live, rows = going, list(range(len(going)))
                if live:
                    self._step(live, len(prompt))
        finally:
            for answer in answers:
                llama().llama_sampler_free(answer.chain)

    def _check(self, prompt: Sequence[int], n: int) -> None:
        self._check_open()
        if not prompt:
            raise RequestError("the prompt is empty", hint="give at least one word")
        if not 1 <= n <= self.plan.sequences:
            raise RequestError(
                f"{n} answers asked for and the plan has room for {self.plan.sequences}",
                hint=f"load the model for {n} or ask for fewer",
            )
        if len(prompt) + n > self.context:
            raise PromptTooLong(len(prompt), self.context)

    def _read(self, answer: Answer, limit: int) -> tuple[str, str | None]:
        """The text the answer's new token makes showable, and the finish reason if it is the last."""
        if self.vocab.is_end(answer.token):
            return answer.text.finish(), "stop"
        text = answer.text.push(self.vocab.piece(answer.token))
        if answer.text.stopped:
            return text, "stop"
        if answer.count >= limit:
            return text + answer.text.finish(), "length"
        return text, None

    def _shared(self, prompt: Sequence[int]) -> int:
        """How many tokens the prompt and sequence 0 begin with; the prompt's last always has to be computed."""
        shared = 0
        for have, want in zip(self._kept, prompt[:-1], strict=False):
            if have != want:
                break
            shared += 1
        return shared

    @abstractmethod
    def _check_open(self) -> None:
        """Raise EngineError when the model is closed."""

    @abstractmethod
    def _rewind(self, prompt: Sequence[int]) -> int:
        """Keep the KV state that the prompt shares with what is there; return how many tokens that is."""

    @abstractmethod
    def _prefill(self, prompt: Sequence[int], start: int) -> None:
        """Compute the prompt from its token `start` on; the last one's logits are the row −1."""

    @abstractmethod
    def _fork(self, n: int) -> None:
        """Give the prompt's KV state to the sequences 1 to n − 1."""

    @abstractmethod
    def _draw(self, answer: Answer, row: int) -> int:
        """The answer's next token, from a row of the last logits."""

    @abstractmethod
    def _step(self, live: Sequence[Answer], prompt_tokens: int) -> None:
        """Feed every live answer its last token; row i of the logits is live[i]'s."""
