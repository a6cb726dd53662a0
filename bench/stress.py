"""Thousands of requests of random lengths, read from threads and from asyncio, cancelled, dropped and failed at random.

    python -m edge.bench.stress [REF] [--requests 10000] [--parallel 4] [--clients 16] [--seed 0]

Without REF a tiny model of random weights is made, so that the engine and not the model is what works. Before, each of
a few dozen prompts is answered alone; later every answer has to be that text, and one that was cancelled or failed its
beginning. The queue is short, so that it is full at times. Resident memory is sampled after every hundredth of the
requests. Ends with 1 where a text was lost or crossed, an error was not the one to come, or nothing came for a minute:
then with the place where each thread stands.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from edge.engine import Chunk, Engine, Sampling, Stream
from edge.errors import EdgeError, PromptTooLong, QueueFull, RequestError
from edge.planner import Plan, plan

from .tiny_model import tiny_model

CONTEXT, CASES, LONGEST, MOST = (
    256,
    48,
    150,
    24,
)  # tokens of a slot, prompts, their tokens, tokens of an answer
QUEUE = 6
STUCK_S = 60
# What becomes of a request, and how often
FATES = {"read": 12, "cancelled": 3, "dropped": 1, "callback": 2, "refused": 1}


class Whim(Exception):
    """What a callback raises."""


@dataclass(frozen=True)
class Case:
    """A prompt, how it is answered, and the answers' texts when it was alone."""

    prompt: list[int]
    sampling: Sampling
    n: int
    texts: tuple[str, ...] = ()


@dataclass
class Tally:
    """What came of the requests so far; `wrong` says in words what should not have come. Any thread adds to it."""

    requests: int
    done: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    full: int = 0
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fate: str, tokens: int, wrong: str) -> None:
        """One more is done."""
        with self.lock:
            self.done += 1
            self.fates[fate] += 1
            self.tokens += tokens
            if wrong:
                self.wrong.append(wrong)
            if self.done * 100 // self.requests > len(self.rss):
                self.rss.append(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class Report:
    """What came of them all, and how long it took in seconds."""

    tally: Tally
    seconds: float

    @property
    def growth(self) -> int:
        """Bytes by which the most of the last quarter lies above the most of the quarter before."""
        quarter = max(1, len(self.tally.rss) // 4)
        return max(self.tally.rss[-quarter:]) - max(self.tally.rss[-2 * quarter : -quarter])


def stress(decided: Plan, *, requests: int, clients: int, seed: int) -> Report:
    """Half of the clients are threads, half are tasks of one asyncio loop. Raises what loading raises."""
    draw = random.Random(seed)
    with Engine(decided, queue=QUEUE) as engine:
        cases = [alone(engine, case) for case in made(draw, engine.vocab.size, decided.sequences)]
        tally = Tally(requests)
        counts = [requests // clients + (at < requests % clients) for at in range(clients)]
        started = time.perf_counter()
        threads = [
            threading.Thread(
                target=in_thread, args=(engine, cases, random.Random(f"{seed}.{at}"), count, tally)
            )
            for at, count in enumerate(counts[: clients // 2])
        ]
        loop = threading.Thread(
            target=lambda: asyncio.run(in_loop(engine, cases, seed, counts[clients // 2 :], tally))
        )
        watch(tally, [*threads, loop])
        return Report(tally, time.perf_counter() - started)


def made(draw: random.Random, vocab: int, slots: int) -> Iterable[Case]:
    """Prompts of random lengths, some of which begin alike, and random settings."""
    shared = [draw.randrange(vocab // 10, vocab) for _ in range(LONGEST)]
    for at in range(CASES):
        length, common = draw.randint(1, LONGEST), draw.choice((0, 0, 64, 130))
        prompt = shared[: min(common, length - 1)]
        prompt += [draw.randrange(vocab // 10, vocab) for _ in range(length - len(prompt))]
        sampling = Sampling(
            temperature=draw.choice((0, 0.8, 1.5)),
            seed=at,
            max_tokens=draw.randint(1, MOST),
            repeat_penalty=draw.choice((1, 1, 1.2)),
            stop=draw.choice(((), (), ("e",), ("ab", "th"))),
            ignore_eos=draw.random() < 0.5,
        )
        yield Case(prompt, sampling, min(slots, draw.choice((1, 1, 1, 2))))


def alone(engine: Engine, case: Case) -> Case:
    """The case with its texts, while nothing else is asked."""
    texts = [""] * case.n
    for chunk in engine.submit(case.prompt, case.sampling, n=case.n):
        texts[chunk.index] += chunk.text
    return Case(case.prompt, case.sampling, case.n, tuple(texts))


def submitted(
    engine: Engine, case: Case, tally: Tally, on_chunk: Callable[[Chunk], None] | None
) -> Stream | None:
    """The case's stream, None where the queue is full."""
    try:
        return engine.submit(case.prompt, case.sampling, n=case.n, on_chunk=on_chunk)
    except QueueFull:
        with tally.lock:
            tally.full += 1
        return None


class Client:
    """One request of a case with a fate: takes its chunks, then judges them."""

    def __init__(self, case: Case, draw: random.Random) -> None:
        self.case = case
        self.fate = draw.choices(list(FATES), list(FATES.values()))[0]
        self.after = draw.randint(0, MOST)  # chunks until fate strikes; it may come too late
        self.texts = [""] * case.n
        self.chunks = self.finished = self.called = 0

    def callback(self) -> Callable[[Chunk], None] | None:
        """What is called with every chunk, where that is the request's fate."""
        if self.fate != "callback":
            return None

        def call(_: Chunk) -> None:
            self.called += 1
            if self.called > self.after:
                raise Whim

        return call

    def take(self, stream: Stream, chunk: Chunk) -> bool:
        """Read a chunk; whether to go on."""
        self.texts[chunk.index] += chunk.text
        self.chunks += 1
        self.finished += chunk.finish_reason is not None
        if self.chunks > self.after:
            if self.fate == "cancelled":
                stream.cancel()
                stream.cancel()
            return self.fate != "dropped"
        return True

    def verdict(self, raised: bool) -> str:
        """What is wrong with what came; nothing is wrong: empty. `raised` where the callback's exception came."""
        whole = self.finished == self.case.n
        if raised != (self.fate == "callback" and self.called > self.after):
            return f"a callback's exception {'came from nowhere' if raised else 'was lost'}"
        if whole and tuple(self.texts) != self.case.texts:
            return f"{self.texts} instead of {list(self.case.texts)}"
        if not whole and self.fate == "read":
            return f"an answer has no end: {self.texts}"
        if not whole and self.fate == "callback" and not raised:
            return f"an answer whose callback raised nothing has no end: {self.texts}"
        pairs = zip(self.texts, self.case.texts, strict=True)
        if not all(whole_text.startswith(text) for text, whole_text in pairs):
            return f"{self.texts} is no beginning of {list(self.case.texts)}"
        return ""


def refused(engine: Engine, draw: random.Random) -> str:
    """Ask what cannot be answered; what is wrong with the answer."""
    bad: Sequence[int] = draw.choice(([], [engine.vocab.size], [3] * (engine.context + 1)))
    try:
        engine.submit(bad)
    except (RequestError, PromptTooLong):
        return ""
    return f"{len(bad)} bad tokens were not refused"


def in_thread(engine: Engine, cases: Sequence[Case], draw: random.Random, count: int, tally: Tally) -> None:
    """A client that asks one request after the other."""
    for _ in range(count):
        client, raised = Client(draw.choice(cases), draw), False
        if client.fate == "refused":
            tally.add(client.fate, 0, refused(engine, draw))
            continue
        while (stream := submitted(engine, client.case, tally, client.callback())) is None:
            time.sleep(0.005)
        wrong = ""
        try:
            for chunk in stream:
                if not client.take(stream, chunk):
                    break
        except Whim:
            raised = True
        except EdgeError as error:
            wrong = f"an error nobody made: {error.line}"
        del stream
        tally.add(client.fate, client.chunks, wrong or client.verdict(raised))


async def in_loop(
    engine: Engine, cases: Sequence[Case], seed: int, counts: Sequence[int], tally: Tally
) -> None:
    """Clients as tasks of one loop."""

    async def ask(draw: random.Random, count: int) -> None:
        for _ in range(count):
            client, raised = Client(draw.choice(cases), draw), False
            if client.fate == "refused":
                tally.add(client.fate, 0, refused(engine, draw))
                continue
            while (stream := submitted(engine, client.case, tally, client.callback())) is None:
                await asyncio.sleep(0.005)
            wrong = ""
            try:
                async for chunk in stream:
                    if not client.take(stream, chunk):
                        break
            except Whim:
                raised = True
            except EdgeError as error:
                wrong = f"an error nobody made: {error.line}"
            del stream
            tally.add(client.fate, client.chunks, wrong or client.verdict(raised))

    await asyncio.gather(*(ask(random.Random(f"{seed}.loop.{at}"), n) for at, n in enumerate(counts)))


def watch(tally: Tally, threads: Sequence[threading.Thread]) -> None:
    """Run the threads to their ends. Ends the process where nothing is done for STUCK_S."""
    for thread in threads:
        thread.daemon = True
        thread.start()
    seen, since = -1, time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.2)
        if tally.done != seen:
            seen, since = tally.done, time.monotonic()
        elif time.monotonic() - since > STUCK_S:
            faulthandler.dump_traceback(all_threads=True)
            print(f"stuck after {tally.done} of {tally.requests} requests", file=sys.stderr)
            sys.exit(1)


def lines(report: Report) -> list[str]:
    """What came of it, in Markdown."""
    tally, mib = report.tally, 1 << 20
    fates = ", ".join(f"{count:,} {fate}" for fate, count in sorted(tally.fates.items()))
    quarters = [tally.rss[len(tally.rss) * part // 4 - 1] / mib for part in range(1, 5)]
    rows = " | ".join(f"{rss:.1f}" for rss in quarters)
    found = [
        f"{tally.done:,} requests in {report.seconds:.0f} s ({fates}), {tally.tokens:,} tokens read, "
        f"the queue full {tally.full:,} times; {len(tally.wrong)} wrong",
        "",
        "| RSS, MiB, after | 25 % | 50 % | 75 % | 100 % | last quarter's most over the third's |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        f"| | {rows} | {report.growth / mib:+.2f} |",
    ]
    return [*found, *(f"wrong: {words}" for words in tally.wrong[:10])]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge.bench.stress", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ref", nargs="?")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.requests < 100 or asked.clients < 2:
        parser.error("it takes 100 requests and 2 clients")
    with tempfile.TemporaryDirectory() as folder:
        try:
            ref = asked.ref or str(tiny_model(Path(folder) / "tiny.gguf", context=CONTEXT))
            decided = plan(ref, ctx=CONTEXT, threads=asked.threads, parallel=asked.parallel).require_fit()
            report = stress(decided, requests=asked.requests, clients=asked.clients, seed=asked.seed)
        except EdgeError as error:
            parser.exit(error.exit_code, f"{error.line}\n")
    print("\n".join(lines(report)))
    sys.exit(bool(report.tally.wrong))


if __name__ == "__main__":
    main()
