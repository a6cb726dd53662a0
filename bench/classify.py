"""Encoders: how fast, how accurate at each level, how much memory over a long input.

    python -m edge.bench.classify speed REF… --texts FILE [--checkpoint DIR] [--plain FILE.onnx]
    python -m edge.bench.classify pick REF --texts FILE
    python -m edge.bench.classify accuracy CHECKPOINT TEST [CHECKPOINT TEST …] [--levels fp32,int8,…]
    python -m edge.bench.classify memory REF --texts FILE [--lines 1000000] [--plot FILE.png]

`speed` runs the whole path from text to result, tokenizing included. With a checkpoint, torch takes turns with ours
where $EDGE_TORCH_PYTHON names an interpreter that has torch and transformers, both plainly (batches of 32 in file
order) and at its best (sorted); `--plain` is somebody else's ONNX file, run plainly. `pick` times the form that is
picked by measurement, and each of the forms by itself. A text file is whatever `edge classify --input` reads.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

from edge.errors import EdgeError, RequestError

from . import classify_accuracy, classify_memory, classify_speed

BACKENDS = ("onnx", "gguf")


def texts_of(path: Path, most: int | None) -> list[str]:
    """The texts of a file that are not blank. Raises BadData, RequestError for a file that has none."""
    from edge.tasks import rows, source

    with source.opened(path) as opened:
        found = (row.text for row in rows.read(opened, None, rows.Fields()) if row.text.strip())
        texts = list(islice(found, most))
    if not texts:
        raise RequestError(f"{path} has no texts", hint="give one with texts")
    return texts


def pairs(words: list[Path]) -> list[tuple[Path, Path]]:
    """Checkpoints and their test sets."""
    if len(words) % 2:
        raise RequestError(f"{words[-1]} has no test set", hint="give a checkpoint, then its test set")
    return list(zip(words[::2], words[1::2], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge.bench.classify", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True)
    speed, pick, accuracy, memory = map(verbs.add_parser, ("speed", "pick", "accuracy", "memory"))
    speed.add_argument("refs", nargs="+")
    speed.add_argument("--checkpoint", type=Path)
    speed.add_argument("--plain", type=Path)
    pick.add_argument("ref")
    for verb in (speed, pick):
        verb.add_argument("--count", type=int, help="texts read of the file")
        verb.add_argument("--threads", type=int)
        verb.add_argument("--repetitions", type=int, default=5)
    accuracy.add_argument("sets", nargs="+", type=Path)
    accuracy.add_argument("--levels", default=",".join(classify_accuracy.LEVELS))
    memory.add_argument("ref")
    memory.add_argument("--lines", type=int, default=1_000_000)
    memory.add_argument("--plot", type=Path)
    for verb in (speed, pick, memory):
        verb.add_argument("--texts", type=Path, required=True)
    asked = parser.parse_args()
    try:
        print("\n".join(run(asked)))
    except EdgeError as error:
        parser.exit(error.exit_code, f"{error.line}\n")


def run(asked: argparse.Namespace) -> list[str]:
    """The figures that were asked for, in Markdown."""
    if asked.verb == "accuracy":
        levels = asked.levels.split(",")
        return classify_accuracy.lines(classify_accuracy.accuracy(pairs(asked.sets), levels), levels)
    if asked.verb == "memory":
        course = classify_memory.memory(asked.ref, texts_of(asked.texts, None), lines=asked.lines)
        if asked.plot:
            classify_memory.draw(
                course, f"edge classify {Path(asked.ref).name}, {asked.lines:,} lines", asked.plot
            )
        return classify_memory.lines(course)
    refs, peers = asked.refs if asked.verb == "speed" else [], {}
    if asked.verb == "pick":
        refs = [asked.ref, *(f"{asked.ref}@{backend}" for backend in BACKENDS)]
    else:
        peers = {"checkpoint": asked.checkpoint, "plain": asked.plain}
    found = classify_speed.speed(
        refs,
        texts_of(asked.texts, asked.count),
        threads=asked.threads,
        repetitions=asked.repetitions,
        **peers,
    )
    return classify_speed.lines(found)


if __name__ == "__main__":
    main()
