"""The work every runtime is given: the same token ids, in a fresh process that takes orders on stdin.

    python -m edge.bench.work edge FILE PREFILL_THREADS DECODE_THREADS CONTEXT
    python -m edge.bench.work llama-cpp-python FILE PREFILL_THREADS DECODE_THREADS CONTEXT

Each line on stdin, `PROMPT_TOKENS NEW_TOKENS SEED`, is one repetition; each line on stdout its result as JSON.
An empty line ends it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

from edge.peak import peak_rss_bytes

from .peer_work import Open, Stream, Threads, answer_orders, end_quietly, results_alone


def open_edge(path: str, threads: Threads, context: int) -> tuple[Stream, int]:
    """Our engine as a stream, and the vocabulary's size."""
    from edge.engine import Engine, Sampling
    from edge.planner import Threads as Both
    from edge.planner import plan

    decided = replace(plan(path, ctx=context), threads=Both(*threads))
    # No peer here guesses, and a greedy text soon repeats itself
    engine = Engine(decided, lookup=False)

    def stream(prompt: Sequence[int], new: int) -> Iterator[int]:
        for chunk in engine.submit(prompt, Sampling(temperature=0, max_tokens=new, ignore_eos=True)):
            yield chunk.completion_tokens

    return stream, engine.vocab.size


def open_llama_cpp_python(path: str, threads: Threads, context: int) -> tuple[Stream, int]:
    """`llama_cpp.Llama` streaming a completion, and the vocabulary's size."""
    from llama_cpp import Llama

    llama = Llama(
        path, n_ctx=context, n_threads=threads.decode, n_threads_batch=threads.prefill, verbose=False
    )

    def stream(prompt: Sequence[int], new: int) -> Iterator[int]:
        for _ in llama.create_completion(list(prompt), max_tokens=new, temperature=0, stream=True):
            yield llama.n_tokens - len(prompt) + 1

    return stream, llama.n_vocab()


RUNTIMES: dict[str, Open] = {"edge": open_edge, "llama-cpp-python": open_llama_cpp_python}


def main() -> None:
    end_quietly()
    runtime, *words = sys.argv[1:]
    answer_orders(RUNTIMES[runtime], words, results_alone(), peak_rss_bytes)


if __name__ == "__main__":
    main()
