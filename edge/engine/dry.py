"""llama.cpp's own numbers for what a model would take: it loads only the metadata and simulates its allocations."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edge.engine.binding import llama, transcript, why
from edge.errors import EngineError
from edge.memory import LOGITS_ROWS, Cache

LOAD_NONE = 0  # llama.h, enum llama_load_mode: the simulation maps nothing
MIB = 1 << 20
# What each buffer says of itself in llama.cpp's log, in MiB with two digits
KV = r"llama_kv_cache: size = +([\d.]+) MiB"
STATES = r"llama_memory_recurrent: size = +([\d.]+) MiB"
COMPUTE = r"compute buffer size = +([\d.]+) MiB"


@dataclass(frozen=True)
class Dry:
    """Bytes of llama.cpp's buffers, to a hundredth of a MiB each."""

    kv_bytes: int
    compute_bytes: int


def dry(path: Path, context: int, cache: Cache) -> Dry:
    """The buffers of a context of so many tokens for each of the cache's sequences, or for all of one pool.

    Raises EngineError where llama.cpp refuses the model or the context.
    """
    lib = llama()
    model_params = lib.llama_model_default_params()
    model_params.n_gpu_layers, model_params.no_alloc, model_params.load_mode = 0, True, LOAD_NONE
    params = lib.llama_context_default_params()
    params.n_ctx = context * cache.streams
    params.n_batch, params.n_ubatch = max(cache.batch, 1), cache.batch
    params.n_seq_max = cache.sequences
    params.n_outputs_max = max(cache.sequences, LOGITS_ROWS)
    params.kv_unified = cache.sequences > 1 and not cache.split
    params.type_k = params.type_v = getattr(lib, f"GGML_TYPE_{cache.type.upper()}")
    params.flash_attn_type = int(cache.flash)
    params.swa_full = False
    opened = None
    with transcript() as log:
        model = lib.llama_model_load_from_file(os.fsencode(path), model_params)
        if model:
            opened = lib.llama_init_from_model(model, params)
            if opened:
                lib.llama_free(opened)
            lib.llama_model_free(model)
    if not opened:
        raise EngineError(f"llama.cpp cannot plan {path.name}: {why('it gives no reason')}")
    text = "".join(log)
    return Dry(said(KV, text) + said(STATES, text), said(COMPUTE, text))


def said(pattern: str, text: str) -> int:
    """The sum of these sizes in the log, in bytes."""
    return round(sum(float(found) for found in re.findall(pattern, text)) * MIB)
