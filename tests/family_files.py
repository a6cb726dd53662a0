"""A family's tiny model as an f32 file and back: what the tests of the families share."""

import gguf
import numpy as np
from tiny import add_tokenizer

from edge import gguf_header


def random_weights(family, config, seed=0):
    """float32 by checkpoint name; norms near 1, the rest so that activations stay near 1."""
    draw = np.random.default_rng(seed)

    def values(weight):
        noise = draw.standard_normal(weight.shape)
        if len(weight.shape) > 1:
            return noise / np.sqrt(weight.shape[-1])
        return (weight.source.endswith("weight")) + 0.1 * noise

    return {weight.source: values(weight).astype(np.float32) for weight in table(family, config)}


def table(family, config):
    """All that a checkpoint has: the file's tensors, and a head's that stand in its metadata."""
    return [*family.weights(config), *getattr(family, "head_weights", lambda config: ())(config)]


def f32_file(path, family, config, weights):
    """The model in llama.cpp's form, with the tiny test tokenizer."""
    writer = gguf.GGUFWriter(path, config.gguf_architecture)
    fields = {f"{config.gguf_architecture}.{key}": value for key, value in family.metadata(config).items()}
    if hasattr(family, "whole_fields"):
        fields |= family.whole_fields(config, weights.__getitem__)
    for key, value in fields.items():
        kind = {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            bool: writer.add_bool,
            list: writer.add_array,
        }
        kind[type(value)](key, value)
    add_tokenizer(writer, config.vocabulary, "smollm")
    for weight in family.weights(config):
        values = weights[weight.source]
        values = weight.layout.to_gguf(values) if weight.layout else values
        assert values.shape == weight.target_shape
        writer.add_tensor(weight.target, np.ascontiguousarray(values))
    for name, values in family.extra_tensors(config).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config_of_file(path, family):
    """The configuration that the way back reads out of a file."""
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    return family.read_config(family.config_json(gguf_header.read(path), tensors.__getitem__))


def float64(weights):
    return lambda name: weights[name].astype(np.float64)


def relative(theirs, ours):
    return np.abs(theirs - ours).max() / np.abs(ours).max()
