"""Our side of `edge.bench.serve`: a process that answers several prompts at once and says how long each took.

    python -m edge.bench.serve_work FILE PREFILL_THREADS DECODE_THREADS CONTEXT PARALLEL

Each line on stdin, {"prompts": […], "tokens": N}, is one turn, and each line on stdout its `Load` as JSON. One asyncio
loop reads all answers, as a server in Python would.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from time import perf_counter, process_time

from edge.chat.loaded import LoadedModel
from edge.engine import Sampling
from edge.planner import Threads, plan

from .peer_work import end_quietly
from .serve_load import Load


async def answered(model: LoadedModel, prompts: Sequence[str], tokens: int) -> Load:
    """Ask all prompts at once, greedily, and read the answers to their ends."""
    sampling = Sampling(temperature=0, max_tokens=tokens, ignore_eos=True)
    started, cpu = perf_counter(), process_time()

    async def answer(prompt: str) -> tuple[float, int]:
        first, count = 0.0, 0
        async for chunk in model.generate(prompt, sampling):
            first = first or perf_counter() - started
            count = chunk.completion_tokens
        return first, count

    answers = await asyncio.gather(*map(answer, prompts))
    return Load(
        seconds=perf_counter() - started,
        tokens=sum(count for _, count in answers),
        ttft_s=tuple(first for first, _ in answers),
        cpu_s=process_time() - cpu,
    )


def main() -> None:
    end_quietly()
    path, *counts = sys.argv[1:]
    prefill, decode, context, parallel = map(int, counts)
    decided = replace(plan(path, ctx=context, parallel=parallel), threads=Threads(prefill, decode))
    with LoadedModel(decided, lookup=False) as model:
        print(json.dumps({}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            taken = asyncio.run(answered(model, order["prompts"], order["tokens"]))
            print(json.dumps(asdict(taken)), flush=True)


if __name__ == "__main__":
    main()
