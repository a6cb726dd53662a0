"""Conversion as a whole process: seconds and peak memory, beside llama.cpp's convert_hf_to_gguf.py.

    python -m edge.bench.convert compare CHECKPOINT [--repetitions 5]
    python -m edge.bench.convert memory TOKENIZER [--level q8_0]

`compare` takes turns with the peer where $EDGE_TORCH_PYTHON names an interpreter that has torch and transformers
and $EDGE_CONVERT_HF the script. `memory` converts a checkpoint of Llama 2 7B's names and shapes whose data are
holes (no model is needed, but a folder with a tokenizer of at most 32,000 tokens): it shows memory, and not
time, as nothing is read from a disk. Both write to the folder for temporary files ($TMPDIR).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.child import python_m
from edge.errors import EdgeError, RequestError

from .speed import Spread, spread_of
from .startup import Process, timed

PEER = "convert_hf_to_gguf.py"
SHARD = 10_000_000_000  # bytes, what transformers made of Llama 2
# config.json of Llama 2 7B (Touvron et al., 2023, arXiv:2307.09288)
LLAMA_2_7B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": 32000,
}


@dataclass(frozen=True)
class Converters:
    """Every converter's figures, and the peer's over each of ours, turn by turn (above 1: ours is better)."""

    processes: tuple[Process, ...]
    ratios: dict[str, dict[str, Spread]]


def edge(source: Path, level: str, out: Path, *, prove: bool) -> list[str]:
    """Our command."""
    command = python_m("edge", "convert", str(source), "--level", level, "--out", str(out))
    return command if prove else [*command, "--no-proof"]


def peer(source: Path, out: Path) -> list[str] | None:
    """convert_hf_to_gguf.py to F16, where the environment names it. Raises RequestError where it names half."""
    python, script = os.environ.get("EDGE_TORCH_PYTHON"), os.environ.get("EDGE_CONVERT_HF")
    if bool(python) != bool(script):
        raise RequestError("one of EDGE_TORCH_PYTHON and EDGE_CONVERT_HF is set", hint="set both or neither")
    if not (python and script):
        return None
    return [python, script, str(source), "--outtype", "f16", "--outfile", str(out / "peer.gguf")]


def compare(source: Path, *, repetitions: int = 5) -> Converters:
    """Time the checkpoint's conversion to F16. Raises EngineError where a command fails.

    The commands take turns, each into an empty folder; the first round only warms the caches. Ours waits until
    the file is on the disk (fsync); the peer does not.
    """
    samples: dict[str, list[tuple[float, int]]] = {}
    for turn in range(repetitions + 1):
        with tempfile.TemporaryDirectory() as folder:
            commands = {
                "edge convert --no-proof": edge(source, "f16", Path(folder, "plain"), prove=False),
                "edge convert": edge(source, "f16", Path(folder, "proven"), prove=True),
            }
            if (theirs := peer(source, Path(folder))) is not None:
                commands[PEER] = theirs
            for name, command in commands.items():
                taken = timed(command)
                if turn:
                    samples.setdefault(name, []).append(taken)
    return summary(samples)


def summary(samples: dict[str, list[tuple[float, int]]]) -> Converters:
    """Medians and extremes of (wall seconds, peak bytes) by converter, one a turn."""
    processes = tuple(
        Process(name, spread_of([wall for wall, _ in taken]), max(peak for _, peak in taken))
        for name, taken in samples.items()
    )
    theirs = samples.get(PEER, [])
    ratios = {
        name: {
            "wall": spread_of([other[0] / own[0] for other, own in zip(theirs, taken, strict=True)]),
            "peak_rss": spread_of([other[1] / own[1] for other, own in zip(theirs, taken, strict=True)]),
        }
        for name, taken in samples.items()
        if theirs and name != PEER
    }
    return Converters(processes, ratios)


def memory(tokenizer: Path, *, level: str = "q8_0") -> Process:
    """Convert a checkpoint of Llama 2 7B's shape once. Raises EngineError where the command fails."""
    with tempfile.TemporaryDirectory() as folder:
        source = sparse_checkpoint(Path(folder, "llama-2-7b-shape"), tokenizer, LLAMA_2_7B)
        wall, peak = timed(edge(source, level, Path(folder, "out"), prove=False))
    return Process(f"edge convert --level {level} --no-proof", spread_of([wall]), peak)


def sparse_checkpoint(
    folder: Path, tokenizer: Path, config: dict[str, Any], shard_bytes: int = SHARD
) -> Path:
    """A Llama checkpoint in shards of at most `shard_bytes`, F16, all weights 0 and none of them on the disk."""
    from edge.convert.families import family_of
    from edge.store.checkpoints import CONFIG, INDEX, TEXT_FILES

    folder.mkdir(parents=True)
    for name in TEXT_FILES:
        if (tokenizer / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(tokenizer / name, folder / name)
    (folder / CONFIG).write_text(json.dumps(config))
    family = family_of(config)
    shards: list[dict[str, Any]] = [{}]
    end = 0
    for weight in family.weights(family.read_config(config)):
        size = 2 * math.prod(weight.shape)
        if shards[-1] and end + size > shard_bytes:
            shards.append({})
            end = 0
        offsets = [end, end + size]
        shards[-1][weight.source] = {"dtype": "F16", "shape": weight.shape, "data_offsets": offsets}
        end += size
    places = {}
    for number, entries in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        places.update(dict.fromkeys(entries, name))
        header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + max(entry["data_offsets"][1] for entry in entries.values()))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def lines(processes: tuple[Process, ...], ratios: dict[str, dict[str, Spread]]) -> list[str]:
    """The figures as Markdown tables."""
    rows = ["| converter | wall s | peak RSS |", "|---|---|---|"]
    for one in processes:
        rows.append(f"| {one.name} | {shown(one.wall_s)} | {one.peak_rss_bytes / 2**20:.0f} MiB |")
    if ratios:
        rows += ["", f"| {PEER} over ours, turn by turn | wall | peak RSS |", "|---|---|---|"]
        rows += [
            f"| {name} | {shown(found['wall'])} | {shown(found['peak_rss'])} |"
            for name, found in ratios.items()
        ]
    return rows


def shown(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge.bench.convert", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True)
    comparing = verbs.add_parser("compare")
    comparing.add_argument("checkpoint", type=Path)
    comparing.add_argument("--repetitions", type=int, default=5)
    measuring = verbs.add_parser("memory")
    measuring.add_argument("tokenizer", type=Path)
    measuring.add_argument("--level", default="q8_0")
    asked = parser.parse_args()
    try:
        if asked.verb == "compare":
            found = compare(asked.checkpoint, repetitions=asked.repetitions)
        else:
            found = Converters((memory(asked.tokenizer, level=asked.level),), {})
    except EdgeError as error:
        parser.exit(error.exit_code, f"{error.line}\n")
    print("\n".join(lines(found.processes, found.ratios)))


if __name__ == "__main__":
    main()
