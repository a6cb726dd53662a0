"""A server of xllamacpp for `edge.bench.serve`, run by the Python that has it; nothing of edge is there.

    PYTHON bench/peer_serve.py FILE.gguf PREFILL_THREADS DECODE_THREADS CONTEXT SLOTS KV_TYPE PORT

CONTEXT is a slot's own. Serves until it is ended.
"""

from __future__ import annotations

import signal
import sys


def main() -> None:
    import xllamacpp  # type: ignore[import-not-found,unused-ignore]

    path, *words = sys.argv[1:]
    prefill, decode, context, slots, port = (int(words[at]) for at in (0, 1, 2, 3, 5))
    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel, asked.port = path, context * slots, slots, port
    asked.cpuparams.n_threads, asked.cpuparams_batch.n_threads = decode, prefill
    asked.cache_type_k = asked.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{words[4].upper()}")
    asked.kv_unified, asked.fit_params, asked.n_ctx_checkpoints = False, False, 0
    asked.cache_prompt, asked.cache_ram_mib, asked.verbosity = False, 0, -1
    server = xllamacpp.Server(asked)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
