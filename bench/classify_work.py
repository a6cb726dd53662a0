"""The work every runtime of an encoder is given: the same texts, in a fresh process that takes orders on stdin.

    python -m edge.bench.classify_work edge REF[@onnx|@gguf] THREADS TEXTS
    python -m edge.bench.classify_work onnxruntime GRAPH TOKENIZER THREADS TEXTS
    PYTHON_WITH_TORCH bench/classify_work.py torch[-sorted] CHECKPOINT THREADS TEXTS

TEXTS is a JSON list. After its first line, which says what was loaded, each line on stdout is one pass over all texts,
in seconds of the wall and of all processor cores, tokenizing included; each line on stdin orders one.
`onnxruntime` and `torch` are run plainly: batches of 32 in the order of the input, padded to the longest.
`torch-sorted` is torch at its best: sorted by length, in batches of 16.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

PLAIN, SORTED = 32, 16  # texts a batch
Pass = Callable[[], object]


def open_edge(ref: str, threads: int, texts: Sequence[str]) -> tuple[Pass, dict[str, Any]]:
    """Our own path: texts stream through as `edge classify --input` has them."""
    from edge.tasks import stream
    from edge.tasks.open import open_encoder
    from edge.tasks.rows import Row

    name, _, backend = ref.rpartition("@") if ref.endswith(("@onnx", "@gguf")) else (ref, "", None)
    encoder = open_encoder(name, backend=backend, threads=threads, sample=texts[:64])
    rows = [Row(text, line=at) for at, text in enumerate(texts, 1)]
    about = encoder.about
    told = {
        "title": f"edge {about.backend} {about.level}",
        "path": str(about.path),
        "reason": getattr(encoder, "reason", ""),
    }
    return lambda: deque(stream.run(encoder, rows), maxlen=0), told


def open_onnxruntime(
    graph: str, tokenizer: str, threads: int, texts: Sequence[str]
) -> tuple[Pass, dict[str, Any]]:
    """A foreign graph as its user runs it: every option left as it is, but the threads."""
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped]
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    words = Tokenizer.from_file(tokenizer)
    words.enable_padding()
    words.enable_truncation(512)

    def once() -> None:
        for start in range(0, len(texts), PLAIN):
            read = words.encode_batch(texts[start : start + PLAIN])
            feeds = {
                "input_ids": np.array([one.ids for one in read], np.int64),
                "attention_mask": np.array([one.attention_mask for one in read], np.int64),
                "token_type_ids": np.array([one.type_ids for one in read], np.int64),
            }
            hidden, mask = (
                session.run(None, {name: feeds[name] for name in names})[0],
                feeds["attention_mask"],
            )
            if hidden.ndim == 3:
                (hidden * mask[..., None].astype(np.float32)).sum(1) / mask.sum(1, keepdims=True)

    return once, {"title": f"onnxruntime {Path(graph).name}, batches of {PLAIN}"}


def open_torch(
    checkpoint: str, threads: int, texts: Sequence[str], *, by_length: bool
) -> tuple[Pass, dict[str, Any]]:
    """transformers in float32, in inference mode."""
    import torch  # type: ignore[import-not-found,unused-ignore]
    from transformers import (  # type: ignore[import-not-found,unused-ignore]
        AutoModel,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    torch.set_num_threads(threads)
    config = json.loads(Path(checkpoint, "config.json").read_text(encoding="utf-8"))
    labelled = "SequenceClassification" in config["architectures"][0]
    kind = AutoModelForSequenceClassification if labelled else AutoModel
    model = kind.from_pretrained(checkpoint, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(checkpoint)
    size = SORTED if by_length else PLAIN

    def once() -> None:
        with torch.inference_mode():
            order = sorted(texts, key=len) if by_length else texts
            for start in range(0, len(order), size):
                read = words(
                    list(order[start : start + size]),
                    padding=True, truncation=True, max_length=512, return_tensors="pt",
                )  # fmt: skip
                found = model(**read)
                if not labelled:
                    mask = read["attention_mask"][..., None].float()
                    (found.last_hidden_state * mask).sum(1) / mask.sum(1)

    how = f"sorted, batches of {size}" if by_length else f"batches of {size}"
    return once, {"title": f"torch float32, {how}"}


def main() -> None:
    runtime, *words, threads, texts_file = sys.argv[1:]
    texts = json.loads(Path(texts_file).read_text(encoding="utf-8"))
    # results alone on stdout; libraries talk there too
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if runtime == "edge":
        once, told = open_edge(words[0], int(threads), texts)
    elif runtime == "onnxruntime":
        once, told = open_onnxruntime(words[0], words[1], int(threads), texts)
    else:
        once, told = open_torch(words[0], int(threads), texts, by_length=runtime == "torch-sorted")
    print(json.dumps(told), file=results, flush=True)
    for _ in sys.stdin:
        wall, cores = perf_counter(), process_time()
        once()
        done = {"wall_s": perf_counter() - wall, "cores_s": process_time() - cores}
        print(json.dumps(done), file=results, flush=True)


if __name__ == "__main__":
    main()
