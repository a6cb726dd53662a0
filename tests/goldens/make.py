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
    head    of a model with a classifier's head: its logits, a row a text or a token
    short   of a tiny one that is no language model: `head`, else `last`, of the text's beginning, padded in a batch
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
            save(HERE / "real" / f"{name}.json", computed(Path(folder), ids))
        else:
            with tempfile.TemporaryDirectory() as scratch:
                config = tiny.CASES[name]
                golden = computed(tiny.write(name, Path(scratch)), tiny.ids(config).tolist(), config)
            save(HERE / f"{name}.json", golden)


def save(path: Path, golden: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    path.write_text("{\n" + lines + "\n}\n")
    print(path.name)


def computed(folder: Path, ids: list[int], tiny_config: dict[str, Any] | None = None) -> dict[str, Any]:
    """In float64, but for what transformers casts down itself (norms, rotations)."""
    real = tiny_config is None
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, loading = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    # A tiny checkpoint has exactly what the family's table has; a real one may have more than the class reads.
    wrong = {key: sorted(found) for key, found in loading.items() if found}
    if wrong.keys() - ({"unexpected_keys"} if real else set()):
        raise SystemExit(f"{folder.name}: the checkpoint is not a {name}'s: {wrong}")
    with torch.no_grad():
        types = {} if real else types_of(tiny_config, [len(ids)])
        output = model.eval()(torch.tensor([ids]), output_hidden_states=True, **types)
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
    if not decoder and not real:
        golden["short"] = padded(model, ids, tiny_config)
    return golden


def types_of(config: dict[str, Any], counts: list[int]) -> dict[str, Any]:
    """The token types of texts of so many tokens, filled up to the first one's; none where all are 0."""
    rows = [tiny.types(config, count).tolist() + (counts[0] - count) * [0] for count in counts]
    return {"token_type_ids": torch.tensor(rows)} if any(map(any, rows)) else {}


def padded(model: Any, ids: list[int], config: dict[str, Any]) -> Any:
    """What the model computes of the first tokens, padded in a batch.

    By a few: where padding is so far away that it sees no token, transformers computes NaN, and not of padding only.
    """
    short, rest = tiny.SHORT, tiny.PADDING
    ids = ids[: short + rest]
    batch = {
        "input_ids": torch.tensor([ids, ids[:short] + rest * [model.config.pad_token_id]]),
        "attention_mask": torch.tensor([[1] * len(ids), [1] * short + [0] * rest]),
    }
    with torch.no_grad():
        output = model(**batch, **types_of(config, [len(ids), short]), output_hidden_states=True)
    if "logits" not in output:
        return rounded(output.hidden_states[-1][1, short - 1])
    logits = output.logits[1]
    return rounded(logits[:short] if logits.ndim > 1 else logits[None])


def rounded(values: Any) -> Any:
    """Six digits are more than the tests compare."""
    return [rounded(row) for row in values] if values.ndim > 1 else [float(f"{x:.6g}") for x in values]


if __name__ == "__main__":
    main()
