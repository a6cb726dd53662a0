"""What each tensor takes on this host in every type it may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edge import speed
from edge.candidate import ANSWER
from edge.gguf_header import Header
from edge.planner import TYPICAL_PROMPT
from edge.rates import Rates


def seconds_of(
    header: Header, kinds: Mapping[str, Sequence[str]], rates: Rates
) -> dict[str, dict[str, float]]:
    """Seconds that the tensor's products take of a prompt of 512 tokens and 128 of answer, by its name and type.

    `kinds` are the types by tensor; those that were not measured are left out. A tensor that is only looked up in
    takes none.
    """
    timed = {kernel.type for kernel in rates.kernels}
    found = {name: {kind: 0.0 for kind in of if kind in timed} for name, of in kinds.items()}
    for tensor, _ in speed.matrices(header):
        rows = 1 if speed.of_outputs(header, tensor) else TYPICAL_PROMPT
        for kind in found.get(tensor.name, {}):
            one = replace(tensor, type=kind)
            prompt = speed.seconds_of(header, rates, one, rates.prefill_threads, rows)
            step = speed.seconds_of(header, rates, one, rates.decode_threads, 1)
            found[tensor.name][kind] = prompt + ANSWER * step
    return found
