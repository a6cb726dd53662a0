"""How byte-level BPE's text is split before the merges: tokenizer.json's steps for a `tokenizer.ggml.pre`.

llama.cpp names each way (llama-vocab.cpp) and matches the text by one regular expression after the other, as
tokenizer.json's isolated splits do. Where it had to simplify its original's, the original's stands here.
"""

from __future__ import annotations

from typing import Any

from edge.errors import ConversionError

_ENGLISH = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _words(digits: str, start: str = _ENGLISH + "|", letters: str = r"\p{L}", others: str = r"\p{L}") -> str:
    return rf"{start}[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s{others}\p{{N}}]+[\r\n]*{_END}"


def _cased(digits: str, suffix: str) -> str:
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    start = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{start}{upper}*{lower}+{suffix}|{start}{upper}+{lower}*{suffix}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_END}"
    )


_THREE, _ONE = r"\p{N}{1,3}", r"\p{N}"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _END
)

# one name of each way → its regular expressions in turn
REGEXES: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "smollm": (_ONE, _GPT2),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "llama-bpe": (_words(_THREE),),
    "qwen2": (_words(_ONE),),
    "qwen35": (_words(_ONE, letters=r"[\p{L}\p{M}]", others=r"\p{L}\p{M}"),),
    "minicpm5": (_THREE, _words(r"\p{N}+")),
    "ufakzeka": (_words(_ONE, start=""),),
    "tekken": (_cased(_ONE, ""),),
    "gpt-4o": (_cased(_THREE, _ENGLISH + "?"),),
    "deepseek-v3": (_THREE, _CJK, _DEEPSEEK),
}
# other names of the same ways
SAME: dict[str, str] = {
    **dict.fromkeys(("roberta-bpe", "jina-v1-en", "jina-v2-code", "jina-v2-es", "jina-v2-de"), "gpt-2"),
    **dict.fromkeys(("phi-2", "jina-es", "jina-de", "gigachat", "a.x-4.0", "mellum"), "gpt-2"),
    **dict.fromkeys(
        ("modern-bert", "mpt", "olmo", "jais", "trillion", "exaone4", "granite-docling"), "gpt-2"
    ),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    "mellum2": "smollm",
    **dict.fromkeys(
        ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"
    ),
    **dict.fromkeys(("jina-v5-nano", "dbrx", "smaug-bpe", "chatglm-bpe", "glm4", "glm5"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan"), "qwen2"),
    **dict.fromkeys(("solar-open", "grok-2"), "qwen2"),
    **dict.fromkeys(("llama4", "kanana2", "talkie", "minimax-m2"), "gpt-4o"),
    **dict.fromkeys(("hunyuan-dense", "joyai-llm", "hy_v4"), "deepseek-v3"),
}
# these take a word that is a token as that token, whatever the merges say
WHOLE_WORDS = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    "glm4", "glm5", "tekken", "minicpm5",
)  # fmt: skip


def steps_for(pre: str) -> dict[str, Any]:
    """tokenizer.json's `pre_tokenizer`. Raises ConversionError for a name that is not known here."""
    behaviour = SAME.get(pre, pre)
    if behaviour not in REGEXES:
        raise ConversionError(
            f"the file's pre-tokenizer {pre[:40]!r} is not known here", hint=f"known are {', '.join(REGEXES)}"
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if behaviour == "gpt-2":  # this split is the step's own
        return {**byte_level, "use_regex": True}
    if behaviour == "smollm":
        digits = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [digits, {**byte_level, "use_regex": True}]}
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in REGEXES[behaviour]
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, {**byte_level, "use_regex": False}]}
