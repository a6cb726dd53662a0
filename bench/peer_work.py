"""The work of `edge.bench.work` in another runtime's environment, where edge is not installed.

    PYTHON bench/peer_work.py xllamacpp FILE.gguf PREFILL_THREADS DECODE_THREADS CONTEXT
    PYTHON bench/peer_work.py torch CHECKPOINT PREFILL_THREADS DECODE_THREADS CONTEXT
    PYTHON bench/peer_work.py onnxruntime-genai FOLDER PREFILL_THREADS DECODE_THREADS CONTEXT

Runs as a script, with nothing but the standard library and that runtime. Each line on stdin,
`PROMPT_TOKENS NEW_TOKENS SEED`, is one repetition; each line on stdout its result as JSON. An empty line ends it.
onnxruntime-genai has one number of threads, that of decoding.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, TextIO

# (prompt ids, new tokens) → after every streamed piece, the tokens generated so far
Stream = Callable[[Sequence[int], int], Iterator[int]]
PIECE = 16  # tokens of a decode that make one point of its course


class Threads(NamedTuple):
    """For the prompt, and for each next token."""

    prefill: int
    decode: int


Open = Callable[[str, Threads, int], tuple[Stream, int]]  # file, threads, context


def open_xllamacpp(path: str, threads: Threads, context: int) -> tuple[Stream, int]:
    """The server inside xllamacpp, asked without HTTP, its caches of prompts off."""
    import queue
    import threading

    import xllamacpp  # type: ignore[import-not-found,unused-ignore]

    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel = path, context, 1
    asked.cpuparams.n_threads, asked.cpuparams_batch.n_threads = threads.decode, threads.prefill
    asked.cache_prompt, asked.cache_ram_mib, asked.fit_params = False, 0, False
    asked.n_ctx_checkpoints, asked.verbosity = 0, -1
    server = xllamacpp.Server(asked)

    def stream(prompt: Sequence[int], new: int) -> Iterator[int]:
        body = {"prompt": list(prompt), "max_tokens": new, "temperature": 0, "stream": True}
        body |= {"ignore_eos": True, "cache_prompt": False, "samplers": ["temperature"]}
        pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def answer() -> None:
            server.handle_completions(json.dumps(body), lambda piece: pieces.put(piece))
            pieces.put(None)

        threading.Thread(target=answer).start()
        count = 0
        while (piece := pieces.get()) is not None:
            event = json.loads(piece) if isinstance(piece, str) else piece
            if "choices" not in event:
                raise RuntimeError(f"xllamacpp refuses: {json.dumps(event)[:200]}")
            # A piece may hold the bytes of several tokens; the last one says how many there were
            count = event["usage"]["completion_tokens"] if event.get("usage") else count + 1
            yield count

    return stream, vocabulary_of_gguf(server)


def vocabulary_of_gguf(server: Any) -> int:
    """How many tokens the model of a server has, as its HTTP side says."""
    from urllib.request import urlopen

    with urlopen(f"{server.listening_address}/v1/models", timeout=30) as answer:
        return int(json.load(answer)["data"][0]["meta"]["n_vocab"])


def open_torch(path: str, threads: Threads, context: int) -> tuple[Stream, int]:
    """transformers in float32 with its own cache, a token at a time, in inference mode."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch  # type: ignore[import-not-found,unused-ignore]
    from transformers import AutoModelForCausalLM  # type: ignore[import-not-found,unused-ignore]
    from transformers.utils import logging  # type: ignore[import-not-found,unused-ignore]

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def stream(prompt: Sequence[int], new: int) -> Iterator[int]:
        ids, cache = torch.tensor([list(prompt)]), None
        for count in range(1, new + 1):
            torch.set_num_threads(threads.prefill if count == 1 else threads.decode)
            with torch.inference_mode():
                found = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                ids, cache = found.logits[:, -1:].argmax(-1), found.past_key_values
                ids.item()  # what comes next waits for it, as a reader would
            yield count

    return stream, int(model.config.vocab_size)


def open_genai(path: str, threads: Threads, context: int) -> tuple[Stream, int]:
    """onnxruntime-genai on a folder that its model builder made."""
    import onnxruntime_genai as genai  # type: ignore[import-not-found,unused-ignore]

    said = json.loads(Path(path, "genai_config.json").read_text(encoding="utf-8"))
    config = genai.Config(path)
    options = {"intra_op_num_threads": threads.decode, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = genai.Model(config)

    def stream(prompt: Sequence[int], new: int) -> Iterator[int]:
        params = genai.GeneratorParams(model)
        longest = len(prompt) + new
        # An end before `min_length` is not chosen
        params.set_search_options(do_sample=False, max_length=longest, min_length=longest)
        generator = genai.Generator(model, params)
        generator.append_tokens(list(prompt))
        for count in range(1, new + 1):
            generator.generate_next_token()
            yield count

    return stream, int(said["model"]["vocab_size"])


RUNTIMES: dict[str, Open] = {
    "xllamacpp": open_xllamacpp,
    "torch": open_torch,
    "onnxruntime-genai": open_genai,
}


def repetition(stream: Stream, prompt: Sequence[int], new: int) -> dict[str, Any]:
    """Run once; seconds to the first token and to all, and the course: when how many tokens were there.

    `course` is in seconds of the system's own clock, which all processes share.
    """
    started = monotonic()
    marks = [(monotonic(), tokens) for tokens in stream(prompt, new)]
    course = [marks[0]]
    for mark in marks[1:]:
        if mark[1] - course[-1][1] >= PIECE:
            course.append(mark)
    return {
        "ttft_s": marks[0][0] - started,
        "total_s": marks[-1][0] - started,
        "tokens": marks[-1][1],
        "course": course,
    }


def random_prompt(vocab: int, length: int, seed: int) -> list[int]:
    """Ids that no earlier repetition began with, so that nothing is served from a cache."""
    draw = random.Random(seed)
    return [draw.randrange(vocab // 10, vocab) for _ in range(length)]


def answer_orders(open_runtime: Open, words: Sequence[str], results: TextIO, peak: Callable[[], int]) -> None:
    """Load, then answer a line of stdin with a line of `results` until an empty one."""
    path, prefill, decode, context = words
    started = monotonic()
    stream, vocab = open_runtime(path, Threads(int(prefill), int(decode)), int(context))
    print(json.dumps({"load_s": monotonic() - started}), file=results, flush=True)
    for line in sys.stdin:
        if not line.strip():
            break
        length, new, seed = map(int, line.split())
        taken = repetition(stream, random_prompt(vocab, length, seed), new)
        print(json.dumps({**taken, "peak_rss_bytes": peak()}), file=results, flush=True)


def end_quietly() -> None:
    """Without a traceback where Ctrl-C reaches every process of a terminal, or who ordered the work is gone."""
    for name in ("SIGINT", "SIGPIPE"):
        if hasattr(signal, name):  # Windows has no SIGPIPE
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def peak_rss_bytes() -> int:
    """As edge.peak, which is not to be had here."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def results_alone() -> TextIO:
    """What was stdout; the libraries' own words go to stderr from now on."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return results


def main() -> None:
    end_quietly()
    runtime, *words = sys.argv[1:]
    code = 1
    try:
        answer_orders(RUNTIMES[runtime], words, results_alone(), peak_rss_bytes)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)  # some runtimes' threads do not end with the interpreter


if __name__ == "__main__":
    main()
