"""Lets transformers compute the tiny checkpoints and real ones, and writes what it says beside this file.

Needs torch and transformers, which the project itself never does, so it has an environment of its own:

    python -m venv ENV
    ENV/bin/pip install torch transformers numpy gguf
    ENV/bin/pip install --no-deps -e .
    ENV/bin/python tests/goldens/make.py [CASE…]             the tiny checkpoints, all of them if none is named
    ENV/bin/python tests/goldens/make.py NAME=CHECKPOINT…    a real checkpoint's folder, into real/NAME.json

Made with torch 2.13.0 and transformers 5.23.0. A golden has what transformers computes for the fixed ids:

    begin   the first columns of every position's logits (of a decoder) or last hidden states (of an encoder)
    last    the last position: all of a tiny checkpoint's, the first columns of a real one's
    top     of a real decoder: the likeliest token at every position, and its logit
    head    of an encoder with a head: its logits, a row a text or a token
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tiny_checkpoints as tiny  # noqa: E402

COLUMNS, LAST_COLUMNS = 8, 320
TEXT = "The old captain, who had sailed these waters for 30 years, looked at the sky and said:"


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    for asked in sys.argv[1:] or tiny.CASES:
        name, real, folder = asked.partition("=")
        if real:
            words = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
            words.no_padding()
            ids = words.encode(TEXT).ids
            save(HERE / "real" / f"{name}.json", computed(Path(folder), ids, real=True))
        else:
            with tempfile.TemporaryDirectory() as scratch:
                golden = computed(tiny.write(name, Path(scratch)), tiny.ids(tiny.CASES[name]).tolist())
            save(HERE / f"{name}.json", golden)


def save(path: Path, golden: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    path.write_text("{\n" + lines + "\n}\n")
    print(path.name)


def computed(folder: Path, ids: list[int], *, real: bool = False) -> dict[str, Any]:
    """In float64, but for what transformers casts down itself (norms, rotations)."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, loading = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    # A tiny checkpoint has exactly what the family's table has; a real one may have more than the class reads.
    wrong = {key: sorted(found) for key, found in loading.items() if found}
    if wrong.keys() - ({"unexpected_keys"} if real else set()):
        raise SystemExit(f"{folder.name}: the checkpoint is not a {name}'s: {wrong}")
    with torch.no_grad():
        output = model.eval()(torch.tensor([ids]), output_hidden_states=True)
    decoder = name.endswith(("ForCausalLM", "LMHeadModel"))
    rows = output.logits[0] if decoder else output.hidden_states[-1][0]
    golden = {
        "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "ids": ids,
        "begin": rounded(rows[:, :COLUMNS]),
        "last": rounded(rows[-1][:LAST_COLUMNS]),
    }
    if real and decoder:
        likeliest = rows.max(dim=-1)
        golden["top"] = {"tokens": likeliest.indices.tolist(), "logits": rounded(likeliest.values)}
    if not decoder and "logits" in output:
        golden["head"] = rounded(output.logits.reshape(-1, output.logits.shape[-1]))
    return golden


def rounded(values: Any) -> Any:
    """Six digits are more than the tests compare."""
    return [rounded(row) for row in values] if values.ndim > 1 else [float(f"{x:.6g}") for x in values]


if __name__ == "__main__":
    main()
