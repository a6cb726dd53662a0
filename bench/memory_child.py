"""One cell of `edge bench memory`: plan, load, fill, answer, and say what it took.

    python -m edge.bench.memory_child '{"ref": …, "ctx": …, "parallel": …, …}'

Prints one line of JSON. Exits with 4 where the plan says that it does not fit, unless that is left `unasked`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from importlib import import_module
from random import Random

ANSWER = 8  # tokens
FIRST = 300  # beyond control tokens and bytes, in the vocabularies that are measured


def main() -> None:
    import_module("edge.cli.chat")  # measured, not used: a command is loaded when a model is
    from edge.chat.loaded import LoadedModel
    from edge.engine import Sampling
    from edge.errors import DoesNotFit
    from edge.peak import peak_rss_bytes
    from edge.planner import plan

    asked = json.loads(sys.argv[1])
    most, unasked = asked.pop("prompt"), asked.pop("unasked", False)
    decided = plan(**asked)
    if unasked:
        decided = replace(decided, fits=True)
    try:
        decided.require_fit()
    except DoesNotFit as error:
        print(error.line, file=sys.stderr)
        sys.exit(error.exit_code)
    random = Random(0)
    with LoadedModel(decided) as model:
        length = max(1, min(decided.context - ANSWER - 1, most))
        vocabulary = range(min(FIRST, model.engine.vocab.size - 1), model.engine.vocab.size)
        prompts = [random.choices(vocabulary, k=length) for _ in range(decided.parallel)]
        sampling = Sampling(temperature=0, max_tokens=ANSWER)
        for stream in [model.engine.submit(prompt, sampling) for prompt in prompts]:
            for _ in stream:
                pass
        found = {
            "artifact": decided.artifact,
            "level": decided.level,
            "context": decided.context,
            "parallel": decided.parallel,
            "kv": decided.kv,
            "mmap": decided.mmap,
            "tokens": length,
            "memory": asdict(decided.memory),
            "peak_rss_bytes": peak_rss_bytes(),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
