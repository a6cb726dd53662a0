"""Reads the header of a GGUF file that nobody vouches for; nothing else touches one.

Layout and limits: the GGUF specification (ggml, docs/gguf.md) and ggml's own reader (gguf.cpp). Every number
the file states is checked against the bytes that are there before anything is done with it, so a lie costs
neither time nor memory. Tensor data is never read.
"""

from edge.gguf_header.header import Array, Header, Tensor, Value
from edge.gguf_header.reader import elements, packed, read
from edge.gguf_header.tables import HF_TOKENIZER, TYPES

__all__ = ["HF_TOKENIZER", "TYPES", "Array", "Header", "Tensor", "Value", "elements", "packed", "read"]
