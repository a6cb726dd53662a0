"""llama.cpp's own programs as peers; `bench/peers/llama.cpp.sh` builds them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from edge.errors import EngineError
from edge.planner import Plan


def program(name: str) -> Path:
    """Where `name` (llama-bench, llama-completion) is: in $EDGE_PEERS, or on the PATH. Raises EngineError."""
    folder = os.environ.get("EDGE_PEERS")
    found = shutil.which(name, path=folder) or shutil.which(name)
    if not found:
        raise EngineError(
            f"{name} is not here", hint="build it with bench/peers/llama.cpp.sh DIR and set EDGE_PEERS=DIR"
        )
    return Path(found)


def llama_bench(plan: Plan, prompt: int, new: int) -> dict[str, float]:
    """One repetition of llama-bench's pp`prompt` and tg`new` on the plan's file and threads, tokens a second."""
    prefill = ran(plan, plan.threads.prefill, "-p", str(prompt), "-n", "0")
    decode = ran(plan, plan.threads.decode, "-p", "0", "-n", str(new))
    return {"prefill_tps": prefill, "decode_tps": decode}


def ran(plan: Plan, threads: int, *work: str) -> float:
    command = [str(program("llama-bench")), "-m", str(plan.path), "-t", str(threads), *work]
    done = subprocess.run([*command, "-r", "1", "-o", "json"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"llama-bench failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return float(json.loads(done.stdout)[0]["avg_ts"])
