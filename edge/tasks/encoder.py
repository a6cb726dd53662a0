"""What every backend of an encoder gives; it stands below the backends, which make it."""

from edge.engine.encoding import About, Array, Encoder, Tokens

__all__ = ["About", "Array", "Encoder", "Tokens"]
