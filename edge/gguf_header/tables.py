"""What the numbers in a GGUF file stand for, the limits it is held to, and what else bears its name."""

from __future__ import annotations

# ggml type id → name, elements in a block, bytes of a block (ggml.h, ggml-common.h). Ids not here were
# removed (4, 5, 31-33, 36-38) or never existed.
# fmt: off
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    19: ("IQ1_S", 256, 50), 29: ("IQ1_M", 256, 56), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    22: ("IQ2_S", 256, 82), 18: ("IQ3_XXS", 256, 98), 21: ("IQ3_S", 256, 110), 20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}

HF_TOKENIZER = "tokenizer.huggingface.json"  # a key: the whole tokenizer.json (GGUF specification)
# general.file_type → level (enum llama_ftype in llama.h).
FILE_TYPES = {
    0: "F32", 1: "F16", 32: "BF16", 2: "Q4_0", 3: "Q4_1", 8: "Q5_0", 9: "Q5_1", 7: "Q8_0",
    10: "Q2_K", 21: "Q2_K_S", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M",
    16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    24: "IQ1_S", 31: "IQ1_M", 19: "IQ2_XXS", 20: "IQ2_XS", 28: "IQ2_S", 29: "IQ2_M", 23: "IQ3_XXS",
    22: "IQ3_XS", 26: "IQ3_S", 27: "IQ3_M", 25: "IQ4_NL", 30: "IQ4_XS",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}

# Metadata value type → name, struct code. 8 is a string, 9 an array.
SCALARS = {
    0: ("u8", "B"), 1: ("i8", "b"), 2: ("u16", "H"), 3: ("i16", "h"), 4: ("u32", "I"), 5: ("i32", "i"),
    6: ("f32", "f"), 7: ("bool", "?"), 10: ("u64", "Q"), 11: ("i64", "q"), 12: ("f64", "d"),
}
# fmt: on
STRING, ARRAY = 8, 9

# Far above every real model, low enough that a file of lies is refused within a second.
MAX_HEADER = 128 << 20  # bytes before the tensor data
MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_STRINGS = 1 << 21  # over all string arrays
MAX_DECODED = 1024  # elements of a numeric array that is decoded
MAX_ALIGNMENT = 1 << 20
MAX_NAME = 63  # bytes of a tensor's name: GGML_MAX_NAME less its zero
MAX_LAYERS = 512  # LLAMA_MAX_LAYERS

AGAIN = "download it again"
OTHER = "get the GGUF file of this model"
# What else is found under the name .gguf: first bytes, what it is, what to do.
FOREIGN = (
    (b"version https://git-lfs", "a Git-LFS pointer", "run `git lfs pull`, or pull the model with edge"),
    (b"PK\x03\x04", "a zip archive or a PyTorch pickle", OTHER),
    (b"\x80", "a Python pickle, which is never opened", OTHER),
    (b"lmgg", "a GGML file of 2023, before GGUF", OTHER),
    (b"fmgg", "a GGMF file of 2023, before GGUF", OTHER),
    (b"tjgg", "a GGJT file of 2023, before GGUF", OTHER),
    (b"algg", "a GGLA adapter of 2023, before GGUF", OTHER),
    (b"\x1f\x8b", "gzip-compressed", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it first"),
    (b"{", "JSON, perhaps a server's error message", AGAIN),
    (b"\0\0\0\0", "zeros: a download that reserved its space and never finished", AGAIN),
)
