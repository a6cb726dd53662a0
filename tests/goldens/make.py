"""Lets transformers compute every tiny checkpoint, and writes what it says beside this file.

Needs torch and transformers, which the project itself never does, so it has an environment of its own:

    python -m venv ENV
    ENV/bin/pip install torch transformers numpy gguf
    ENV/bin/pip install --no-deps -e .
    ENV/bin/python tests/goldens/make.py [CASE…]

Made with torch 2.13.0 and transformers 5.23.0.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import tiny_checkpoints as tiny  # noqa: E402

COLUMNS = 8  # of every position; the last position is kept whole


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    for case in sys.argv[1:] or tiny.CASES:
        with tempfile.TemporaryDirectory() as folder:
            golden = computed(case, tiny.write(case, Path(folder)))
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
        (HERE / f"{case}.json").write_text("{\n" + lines + "\n}\n")
        print(case)


def computed(case: str, folder: Path) -> dict[str, Any]:
    """What transformers computes, in float64 but for what it casts down itself (norms, rotations).

    `begin` has the first columns of every position's logits (of a decoder) or last hidden states (of an encoder),
    `last` the whole last position, `head` the logits of an encoder's head.
    """
    name = tiny.CASES[case]["architectures"][0]
    model, loading = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    wrong = {key: sorted(found) for key, found in loading.items() if found}
    if wrong:
        raise SystemExit(f"{case}: the family's table is not {name}'s: {wrong}")
    ids = tiny.ids(tiny.CASES[case])
    with torch.no_grad():
        output = model.eval()(torch.from_numpy(ids)[None], output_hidden_states=True)
    decoder = name.endswith(("ForCausalLM", "LMHeadModel"))
    rows = output.logits[0] if decoder else output.hidden_states[-1][0]
    golden = {
        "made_with": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "ids": ids.tolist(),
        "begin": rounded(rows[:, :COLUMNS]),
        "last": rounded(rows[-1]),
    }
    if not decoder and "logits" in output:
        golden["head"] = rounded(output.logits.reshape(-1, output.logits.shape[-1]))
    return golden


def rounded(values: Any) -> Any:
    """Six digits are more than the tests compare."""
    return [rounded(row) for row in values] if values.ndim > 1 else [float(f"{x:.6g}") for x in values]


if __name__ == "__main__":
    main()
