"""Log-probabilities of tokens, as chat completions give them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def logprobs(logits: NDArray[np.float32], chosen: int, count: int) -> tuple[tuple[int, float], ...]:
    """(token, natural log-probability) of `chosen`, then of the `count` likeliest, likeliest first.

    Logits are (vocabulary,), as the model gives them: before penalties, temperature and truncation. Of equally
    likely tokens the smaller id stands first. The softmax is computed in float64.
    """
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    count = min(count, len(values))
    if count == 0:
        return ((chosen, float(values[chosen])),)
    least = np.partition(values, -count)[-count]
    candidates = np.flatnonzero(values >= least)  # by id, with all that are as likely as the last
    best = candidates[np.argsort(-values[candidates], kind="stable")][:count]
    return tuple((int(token), float(values[token])) for token in (chosen, *best))
