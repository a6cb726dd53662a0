"""Generation on llama.cpp: `Engine` decodes, `Sampling` says how, `Chunk` is one step, `Tally` sums them up."""

from edge.engine.engine import Chunk, Engine
from edge.engine.sampling import Sampling
from edge.engine.tally import Tally, Timings, Usage

__all__ = ["Chunk", "Engine", "Sampling", "Tally", "Timings", "Usage"]
