"""What the decode thread does: admit requests, prefill their prompts in pieces, decode all that is live together.

A step is one piece of prompt and one batch with the next token of every live answer, so a long prompt holds the
others up for no more than a piece. Requests are admitted in the order they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from edge.engine.adapters import Adapter
from edge.engine.alike import alike_to, padding
from edge.engine.backend import Backend, Row
from edge.engine.best import Best
from edge.engine.chain import Chain
from edge.engine.logprobs import logprobs
from edge.engine.request import Chunk, Logprob, Request
from edge.engine.sampling import SEEDS
from edge.engine.slots import TILE, Slot, Slots
from edge.engine.speculate import Proposer
from edge.engine.text import TextStream
from edge.errors import EngineError
from edge.memory import BATCH, LOGITS_ROWS
from edge.planner import Plan

BESIDE = 2 * TILE  # tokens of prompt in a step that others wait for


@dataclass(eq=False)
class Answer:
    """One answer under way: its slot, its sampler, the text it holds back; `token` was drawn and is not decoded yet."""

    job: Job
    index: int
    slot: Slot
    chain: Chain
    text: TextStream
    token: int = -1
    count: int = 0


@dataclass(eq=False)
class Job:
    """A request that was admitted. `limit` is the most tokens an answer may have; times are `perf_counter`'s.

    `slots` are those it has, the prompt's first; an answer that ends gives its own back.
    """

    request: Request
    slots: list[Slot]
    reused: int
    limit: int
    begun: float
    best: Best | None
    proposer: Proposer | None
    prefilled: float = 0.0
    answers: list[Answer] = field(default_factory=list)

    @property
    def prompt_left(self) -> int:
        """Tokens of the prompt that are still to be computed."""
        return len(self.request.prompt) - len(self.slots[0].tokens)


class Scheduler:
    """The requests that were admitted and those that wait, and the steps that answer them. One thread at a time.

    `propose` makes what guesses ahead for a request, or None; `careful` only where the text is what it would be
    without, to the last bit of its logits. `waiting` may be added to by any thread.
    """

    def __init__(
        self,
        backend: Backend,
        plan: Plan,
        slots: Slots,
        propose: Callable[[Request], Proposer | None],
        *,
        careful: bool,
    ) -> None:
        self.waiting: deque[Request] = deque()
        self._backend, self._plan, self._slots, self._propose = backend, plan, slots, propose
        # Only with several slots can other requests change what is computed beside one
        self._alike = plan.parallel > 1 and backend.rolls_back and backend.every_row
        self._guesses = backend.rolls_back and backend.every_row
        # Positions below which guesses are made
        self._sure = alike_to(plan) if careful and not self._alike else backend.context
        self._jobs: list[Job] = []
        self._used: tuple[Adapter, ...] = ()

    @property
    def busy(self) -> bool:
        """Whether a request is admitted and not answered."""
        return bool(self._jobs)

    def step(self, *, admit: bool = True) -> None:
        """Move every admitted request on by a token or a piece of its prompt; `admit` lets waiting ones in before."""
        for job in self._jobs[:]:
            if job.request.cancelled:
                self._leave(job)
        for request in [request for request in tuple(self.waiting) if request.cancelled]:
            self.waiting.remove(request)
        if admit:
            self._admit()
        self._use_next_adapters()
        jobs = [job for job in self._jobs if job.request.adapters == self._used]
        live = [answer for job in jobs for answer in job.answers]
        live.sort(key=lambda answer: answer.slot.index)  # so that llama.cpp decodes neighbours together
        self._prefill([job for job in jobs if not job.prefilled], bool(live))
        if live:
            self._decode(live)

    def end(self, error: BaseException) -> None:
        """End all requests, those that wait too, with an error."""
        for job in self._jobs[:]:
            self._leave(job, error)
        while self.waiting:
            self.waiting.popleft().end(error)

    def _admit(self) -> None:
        """Give the first of the waiting a slot, and the next, as long as there are idle ones."""
        while self.waiting:
            request = self.waiting[0]
            alone = self._plan.unified  # its cells are one pool, which a request has whole
            if (alone and self._jobs) or len(self._slots.idle()) < request.n:
                return
            self.waiting.popleft()
            room = self._backend.context - len(request.prompt)
            room = room // request.n if self._plan.unified else room
            try:
                slots = self._slots.take(request.prompt, request.adapters, request.n)
            except (
                Exception
            ) as error:  # no memory for a copy, or a warning of the disk's that is to be an error
                request.end(error)
                continue
            self._jobs.append(
                Job(
                    request,
                    slots,
                    reused=len(slots[0].tokens),
                    limit=min(room, request.sampling.max_tokens or room),
                    begun=perf_counter(),
                    best=Best(request) if request.best_of else None,
                    proposer=self._propose(request) if self._guesses else None,
                )
            )

    def _use_next_adapters(self) -> None:
        """Requests with other adapters take turns: a batch is decoded with one set."""
        sets = list(dict.fromkeys(job.request.adapters for job in self._jobs))
        if sets:
            turn = sets.index(self._used) + 1 if self._used in sets else 0
            self._used = sets[turn % len(sets)]
            self._backend.use(self._used)

    def _prefill(self, jobs: Sequence[Job], beside: bool) -> None:
        """Compute a step's worth of prompts, the oldest's first."""
        budget = BESIDE if beside else BATCH
        for job in jobs:
            while not job.prefilled and budget >= TILE and job in self._jobs:
                piece = self._piece(job.prompt_left, budget)
                budget -= piece
                try:
                    row = self._prefill_piece(job, piece)
                    if not job.prompt_left:
                        self._begin_answers(job, row)
                except Exception as error:
                    self._fail([job], error)

    def _piece(self, left: int, budget: int) -> int:
        """Tokens to compute next: where prompts are to come out alike, whole tiles, and then the rest by itself."""
        piece = min(left, budget)
        return piece - piece % TILE if self._alike and piece > TILE else piece

    def _prefill_piece(self, job: Job, piece: int) -> int:
        """Compute so many tokens of the prompt; returns the row of the last."""
        slot, prompt = job.slots[0], job.request.prompt
        start = len(slot.tokens)
        last = start + piece == len(prompt)
        rows = [
            Row(prompt[position], position, (slot.index,), last and position + 1 == len(prompt))
            for position in range(start, start + piece)
        ]
        places = self._decode_rows(rows, [slot])
        slot.tokens += prompt[start : start + piece]
        return places[-1]

    def _begin_answers(self, job: Job, row: int) -> None:
        """The prompt is computed: draw the first token of each answer from the logits of its last."""
        request, first = job.request, job.slots[0]
        job.prefilled = perf_counter()
        self._slots.remember(first)
        for slot in job.slots[1:]:
            self._slots.fork(first, slot)
        for index, slot in enumerate(job.slots):
            chain = Chain(
                request.sampling, self._backend.vocab, (request.seed + index) % SEEDS, request.prompt
            )
            job.answers.append(Answer(job, index, slot, chain, TextStream(request.sampling.stop)))
        for answer in job.answers[:]:
            self._draw(answer, row)

    def _decode(self, live: Sequence[Answer]) -> None:
        """The next token of every live answer; for one alone, also what it is guessed to go on with."""
        try:
            guesses = self._guess(live[0]) if len(live) == len(self._jobs) == 1 else []
            rows = [Row(answer.token, len(answer.slot.tokens), (answer.slot.index,), True) for answer in live]
            for token in guesses:
                rows.append(Row(token, rows[-1].position + 1, rows[-1].sequences, True))
            started = perf_counter()
            places = self._decode_rows(rows, [answer.slot for answer in live])
        except Exception as error:
            self._fail(list(dict.fromkeys(answer.job for answer in live)), error)
            return
        took = perf_counter() - started
        for answer in live:
            answer.slot.tokens.append(answer.token)
        for place, answer in zip(places, live, strict=False):
            self._draw(answer, place)
        if len(live) == 1:
            self._accept(live[0], guesses, places, took)

    def _guess(self, answer: Answer) -> list[int]:
        """What the answer may go on with, no more than it and its slot have room for."""
        job = answer.job
        room = min(self._sure - len(answer.slot.tokens) - 1, job.limit - answer.count - 1)
        if job.proposer is None or room < 1:
            return []
        return job.proposer.guess([*answer.slot.tokens, answer.token], min(room, LOGITS_ROWS - 1))

    def _accept(self, answer: Answer, guesses: Sequence[int], places: Sequence[int], took: float) -> None:
        """Go on through the guesses as far as they are what is drawn; drop the state of the others."""
        job, slot = answer.job, answer.slot
        accepted = 0
        while accepted < len(guesses) and answer in job.answers and answer.token == guesses[accepted]:
            accepted += 1
            slot.tokens.append(answer.token)
            self._draw(answer, places[accepted], guessed=True)
        if accepted < len(guesses) and not self._backend.keep(slot.index, len(slot.tokens)):
            self._slots.empty(slot, unknown=True)
            if job in self._jobs:  # its last token or its callback may have ended it
                self._fail([job], EngineError("the model forgot what it had read", hint="ask again"))
        if job.proposer is not None:
            job.proposer.learn(len(guesses), accepted, took)

    def _decode_rows(self, rows: Sequence[Row], slots: Sequence[Slot]) -> Sequence[int]:
        """Decode rows of these slots, computed as they always are, whatever else is in the batch.

        Where each of them stands in the batch.
        """
        if not self._alike or (len(slots) == 1 and len(rows) >= TILE):
            self._backend.decode(rows)
            return range(len(rows))
        idle = {slot.index: len(slot.tokens) for slot in self._slots.idle()}
        extra = padding(rows, idle, self._plan.row_multiple, self._backend.context)
        # A batch is cut where its sequences do not go up by one
        batch = sorted([*rows, *extra], key=lambda row: (row.sequences, row.position))
        dropped: dict[int, int] = {}
        for row in extra:
            first = dropped.get(row.sequences[0], row.position)
            dropped[row.sequences[0]] = min(first, row.position)
        try:
            self._backend.decode(batch)
        finally:  # of a batch that fails, the pieces before may have been computed
            for sequence, length in dropped.items():
                self._backend.keep(sequence, length)
        places = {id(row): at for at, row in enumerate(batch)}
        return [places[id(row)] for row in rows]

    def _draw(self, answer: Answer, row: int, *, guessed: bool = False) -> None:
        """Draw the answer's next token from a row of logits and hand it over. Ends the answer, or the request."""
        job = answer.job
        request = job.request
        if answer not in job.answers:
            return  # a callback has ended the request at another of its answers, and closed the samplers of all
        try:
            answer.token = self._backend.draw(answer.chain, row)
            answer.count += 1
            text, reason = self._read(answer, job.limit)
            found = self._logprobs(answer, row)
            now = perf_counter()
            chunk = Chunk(
                answer.index, text, answer.token, reason, len(request.prompt), job.reused, answer.count,
                job.prefilled - job.begun, now - request.submitted, found, guessed,
            )  # fmt: skip
            if job.best is None:
                request.put(chunk)
            else:
                job.best.add(chunk)
                for held in job.best.chunks() if reason and job.answers == [answer] else ():
                    request.put(held)
        except BaseException as error:  # a callback can raise anything, and only its own request ends
            self._leave(job, error)
            return
        if reason is not None:
            job.answers.remove(answer)
            job.slots.remove(answer.slot)
            answer.chain.close()
            self._slots.release(answer.slot)
            if not job.answers:
                self._leave(job)

    def _read(self, answer: Answer, limit: int) -> tuple[str, str | None]:
        """The text the answer's new token makes showable, and the finish reason if it is the last."""
        vocab = self._backend.vocab
        if vocab.is_end(answer.token):
            return answer.text.finish(), "stop"
        text = answer.text.push(vocab.piece(answer.token))
        if answer.text.stopped:
            return text, "stop"
        if answer.count >= limit:
            return text + answer.text.finish(), "length"
        return text, None

    def _logprobs(self, answer: Answer, row: int) -> tuple[Logprob, ...] | None:
        """The token's and the likeliest ones', where they are asked for or the best answers looked for."""
        count = answer.job.request.sampling.logprobs
        if count is None and answer.job.best is None:
            return None
        found = logprobs(self._backend.logits(row), answer.token, count or 0)
        piece = self._backend.vocab.piece
        return tuple(Logprob(token, piece(token).decode("utf-8", "replace"), value) for token, value in found)

    def _leave(self, job: Job, error: BaseException | None = None) -> None:
        """The request has ended: its slots are idle again, with what they hold."""
        self._jobs.remove(job)
        job.request.end(error)
        for answer in job.answers:
            answer.chain.close()
        job.answers = []
        for slot in job.slots:
            self._slots.release(slot)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """Their last batch failed: end these requests, and trust nothing that their slots hold."""
        for job in jobs:
            for slot in job.slots:
                self._slots.empty(slot, unknown=True)
            self._leave(job, error)
