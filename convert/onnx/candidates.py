"""The ONNX folders that an encoder's checkpoint could become, as they would be described; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge.onnx_folder import GRAPH, OnnxFolder, our_words

from ..source import title_of
from . import tokenizer_json
from .folder import describe
from .levels import LEVELS
from .to_onnx import generates, graph_of, opened, tokens_read, understood


def folders(path: Path, name: str | None = None) -> Iterator[OnnxFolder]:
    """Every level's, `path` what it would be called; none for a decoder. Raises as `convert` does before it writes."""
    with opened(path) as original:
        model = understood(original)
        if generates(model.config):
            return
        words = tokenizer_json.read(
            original.path, model.config.vocabulary, original.config["architectures"][0]
        )
        most = tokens_read(model, words)
        for level in LEVELS:
            folder = Path(f"{title_of(path, name)}-{level}")
            config = describe(model, level, most, {})
            size = graph_of(model, level, folder.name).weight_bytes
            said = our_words(config, folder)
            yield OnnxFolder(folder, folder / GRAPH, size, ours=True, config=config, **said)
