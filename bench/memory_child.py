"""One cell of `edge bench memory`: plan, load, fill, answer, and say what it took.

    python -m edge.bench.memory_child '{"ref": …, "ctx": …, "parallel": …, …}'

A model that continues texts fills its conversations; an encoder reads texts as long as the context on all its
workers, as `edge embed` and `edge classify` run it. Prints one line of JSON. Exits with 4 where the plan says that it
does not fit, unless that is left `unasked`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from importlib import import_module
from random import Random
from string import ascii_lowercase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.planner import Plan
    from edge.tasks.encoder import Encoder
    from edge.tasks.rows import Row

ANSWER = 8  # tokens
FIRST = 300  # beyond control tokens and bytes, in the vocabularies that are measured
BATCHES = 4  # of full size on each worker


def main() -> None:
    from edge.errors import DoesNotFit
    from edge.peak import peak_rss_bytes
    from edge.planner import plan

    asked = json.loads(sys.argv[1])
    most, unasked = asked.pop("prompt"), asked.pop("unasked", False)
    encodes = asked.pop("encodes", False)
    # measured, not used: a command is loaded when a model is
    import_module("edge.cli.embed" if encodes else "edge.cli.chat")
    decided = plan(**asked)
    if unasked:
        decided = replace(decided, fits=True)
    try:
        decided.require_fit()
    except DoesNotFit as error:
        print(error.line, file=sys.stderr)
        sys.exit(error.exit_code)
    length = encode(decided) if encodes else continue_texts(decided, most)
    found = {
        "artifact": decided.artifact,
        "level": decided.level,
        "context": decided.context,
        "parallel": decided.parallel,
        "threads": decided.threads.prefill,
        "kv": decided.kv,
        "mmap": decided.mmap,
        "tokens": length,
        "memory": asdict(decided.memory),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    print(json.dumps(found))


def continue_texts(decided: Plan, most: int) -> int:
    """Prefill up to `most` random tokens in each conversation and answer; how many tokens those were."""
    from edge.chat.loaded import LoadedModel
    from edge.engine import Sampling

    random = Random(0)
    with LoadedModel(decided) as model:
        length = max(1, min(decided.context - ANSWER - 1, most))
        vocabulary = range(min(FIRST, model.engine.vocab.size - 1), model.engine.vocab.size)
        prompts = [random.choices(vocabulary, k=length) for _ in range(decided.parallel)]
        sampling = Sampling(temperature=0, max_tokens=ANSWER)
        for stream in [model.engine.submit(prompt, sampling) for prompt in prompts]:
            for _ in stream:
                pass
    return length


def encode(decided: Plan) -> int:
    """Read batches of texts of all the plan's context on every worker; how many tokens a text has."""
    from contextlib import closing

    from edge.tasks import stream
    from edge.tasks.open import open_encoder

    with closing(open_encoder(str(decided.path), threads=decided.threads.prefill)) as encoder:
        texts, length = long_texts(encoder, decided.context)
        for _ in stream.run(encoder, texts):
            pass
    return length


def long_texts(encoder: Encoder, tokens: int) -> tuple[list[Row], int]:
    """Texts of single letters, each a token, that fill some batches of every worker; and how many tokens each has."""
    from edge.tasks.rows import Row
    from edge.tasks.stream import BATCH_ROWS, BATCH_TOKENS

    random = Random(0)

    def text(letters: int) -> str:
        return " ".join(random.choices(ascii_lowercase, k=letters))

    (tried,) = encoder.tokenize([text(2)])
    letters = max(1, tokens - (len(tried.ids) - 2))
    in_batch = min(BATCH_ROWS, max(1, BATCH_TOKENS // tokens))
    rows = [Row(text(letters), line=at) for at in range(1, in_batch * encoder.about.workers * BATCHES + 1)]
    return rows, len(encoder.tokenize([rows[0].text])[0].ids)


if __name__ == "__main__":
    main()
