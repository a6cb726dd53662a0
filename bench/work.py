"""The work every runtime is given: the same token ids, in a fresh process that takes orders on stdin.

    python -m edge.bench.work edge FILE THREADS CONTEXT
    python -m edge.bench.work llama-cpp-python FILE THREADS CONTEXT

Each line on stdin, `PROMPT_TOKENS NEW_TOKENS SEED`, is one repetition; each line on stdout its result as JSON.
An empty line ends it.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

from edge.peak import peak_rss_bytes

# (prompt ids, new tokens) → after every streamed piece, the tokens generated so far
Stream = Callable[[Sequence[int], int], Iterator[int]]


def open_edge(path: str, threads: int, context: int) -> tuple[Stream, int]:
    """Our engine as a stream, and the vocabulary's size."""
    from edge.engine import Engine, Sampling
    from edge.planner import plan

    # No peer here guesses, and a greedy text soon repeats itself
    engine = Engine(plan(path, ctx=context, threads=threads), lookup=False)

    def stream(prompt: Sequence[int], new: int) -> Iterator[int]:
        for chunk in engine.submit(prompt, Sampling(temperature=0, max_tokens=new, ignore_eos=True)):
            yield chunk.completion_tokens

    return stream, engine.vocab.size


def open_llama_cpp_python(path: str, threads: int, context: int) -> tuple[Stream, int]:
    """`llama_cpp.Llama` streaming a completion, and the vocabulary's size."""
    from llama_cpp import Llama

    llama = Llama(path, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)

    def stream(prompt: Sequence[int], new: int) -> Iterator[int]:
        for _ in llama.create_completion(list(prompt), max_tokens=new, temperature=0, stream=True):
            yield llama.n_tokens - len(prompt) + 1

    return stream, llama.n_vocab()


RUNTIMES = {"edge": open_edge, "llama-cpp-python": open_llama_cpp_python}


def repetition(stream: Stream, prompt: Sequence[int], new: int) -> dict[str, float | int]:
    """Run once; seconds to the first token, and to all."""
    started = perf_counter()
    marks = [(perf_counter() - started, tokens) for tokens in stream(prompt, new)]
    return {
        "ttft_s": marks[0][0],
        "total_s": marks[-1][0],
        "tokens": marks[-1][1],
        "peak_rss_bytes": peak_rss_bytes(),
    }


def random_prompt(vocab: int, length: int, seed: int) -> list[int]:
    """Ids that no earlier repetition began with, so that nothing is served from a cache."""
    draw = random.Random(seed)
    return [draw.randrange(vocab // 10, vocab) for _ in range(length)]


def main() -> None:
    runtime, path, threads, context = sys.argv[1:]
    started = perf_counter()
    stream, vocab = RUNTIMES[runtime](path, int(threads), int(context))
    print(json.dumps({"load_s": perf_counter() - started}), flush=True)
    for line in sys.stdin:
        if not line.strip():
            break
        length, new, seed = map(int, line.split())
        print(json.dumps(repetition(stream, random_prompt(vocab, length, seed), new)), flush=True)


if __name__ == "__main__":
    main()
