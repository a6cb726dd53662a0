"""Chat forms known by name, for files that carry no template: each a small Jinja text of our own.

The output is byte-equal to the published format; where that is defined stands above each.
"""

from __future__ import annotations

from collections.abc import Callable

from edge.errors import RequestError

# For the forms that have no system role: `rest` is the conversation without it, `system` its text.
SPLIT_SYSTEM = (
    "{% set has_system = messages[0].role == 'system' %}"
    "{% set system = messages[0].content if has_system else '' %}"
    "{% set rest = messages[1:] if has_system else messages %}"
)

FORMS = {
    # OpenAI, chatml.md in github.com/openai/openai-python (v0.27); as Qwen2 and SmolLM2 use it, no BOS.
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # Meta, ChatFormat in github.com/meta-llama/llama3 llama/tokenizer.py: contents are stripped.
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ m.content | trim ~ '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    # Meta, chat_completion in github.com/meta-llama/llama llama/generation.py: BOS opens and EOS ends each
    # pair; the system text lies inside the first user turn and is stripped with it, not alone.
    "llama-2": (
        SPLIT_SYSTEM + "{% for m in rest %}"
        "{% if m.role == 'user' %}"
        "{% set text = '<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' ~ m.content"
        " if has_system and loop.first else m.content %}"
        "{{ bos_token ~ '[INST] ' ~ text | trim ~ ' [/INST]' }}"
        "{% else %}{{ ' ' ~ m.content | trim ~ ' ' ~ eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    # Google, ai.google.dev/gemma/docs/core/prompt-structure; the system text before the first user turn as in
    # the Gemma 3 checkpoints' own template.
    "gemma": (
        SPLIT_SYSTEM + "{{ bos_token }}{% for m in rest %}"
        "{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' }}"
        "{{ (system ~ '\n\n' if has_system and loop.first else '') ~ m.content | trim ~ '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    # Mistral, docs.mistral.ai/cookbook/concept-deep-dive-tokenization-templates, tokenizer V1 (7B v0.1, v0.2,
    # Mixtral 8x7B): [INST] is plain text in spaces; the system text opens the first user turn.
    "mistral": (
        SPLIT_SYSTEM + "{{ bos_token }}{% for m in rest %}"
        "{% if m.role == 'user' %}"
        "{{ ' [INST] ' ~ (system ~ '\n\n' if has_system and loop.first else '') ~ m.content ~ ' [/INST]' }}"
        "{% else %}{{ ' ' ~ m.content ~ eos_token }}{% endif %}{% endfor %}"
    ),
    # The same page, tokenizer V3 (7B v0.3, Mixtral 8x22B): [INST] is a token; tools and the system text open the
    # last user turn.
    "mistral-v3": (
        SPLIT_SYSTEM + "{{ bos_token }}{% set ns = namespace(last=0) %}"
        "{% for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in rest %}{% set last = loop.index0 == ns.last %}"
        "{% if m.role == 'user' %}"
        "{{ '[AVAILABLE_TOOLS] ' ~ tools | tojson ~ '[/AVAILABLE_TOOLS]' if tools and last else '' }}"
        "{{ '[INST] ' ~ (system ~ '\n\n' if has_system and last else '') ~ m.content ~ '[/INST]' }}"
        "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] {\"content\": ' ~ m.content | tojson }}"
        "{{ ', \"call_id\": \"' ~ m.tool_call_id ~ '\"}[/TOOL_RESULTS]' }}"
        "{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}"
        "{{ (call.function | tojson)[:-1] ~ ', \"id\": \"' ~ call.id ~ '\"}' ~ (']' if loop.last else ', ') }}"
        "{% endfor %}{{ eos_token }}"
        "{% else %}{{ ' ' ~ m.content ~ eos_token }}{% endif %}{% endfor %}"
    ),
    # Microsoft, tokenizer_config.json of huggingface.co/microsoft/Phi-3-mini-4k-instruct: no BOS.
    "phi-3": (
        "{% for m in messages if m.role in ('system', 'user', 'assistant') %}"
        "{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}{% endfor %}"
        "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"
    ),
}

# A form and the vocabulary entries that only its models have; the first that is wholly there wins.
TOKENS = (
    ("chatml", ("<|im_start|>", "<|im_end|>")),
    ("llama-3", ("<|start_header_id|>", "<|eot_id|>")),
    ("gemma", ("<start_of_turn>", "<end_of_turn>")),
    ("phi-3", ("<|user|>", "<|assistant|>", "<|end|>")),
    ("mistral-v3", ("[INST]", "[/INST]")),
)

# Forms written in plain text: only the model's name tells, and only a tuned model was taught any.
NAMES = (
    ("llama-2", ("llama2", "chat")),
    ("mistral", ("mistral", "instruct")),
    ("mistral", ("mixtral", "instruct")),
)


def form(name: str) -> str:
    """The Jinja text of a named form; raises RequestError with the names there are."""
    key = name.lower()
    if key not in FORMS:
        raise RequestError(f"there is no chat template named {name!r}", hint=f"one of {', '.join(FORMS)}")
    return FORMS[key]


def recognise(architecture: str, model_name: str, has_token: Callable[[str], bool]) -> tuple[str, str]:
    """The form a file without a template was made for, and why; raises RequestError when nothing tells."""
    for name, tokens in TOKENS:
        if all(has_token(token) for token in tokens):
            return name, f"its vocabulary has {tokens[0]}"
    plain = "".join(character for character in model_name.lower() if character.isalnum())
    for name, words in NAMES:
        if all(word in plain for word in words):
            return name, f"it is named {model_name}"
    raise RequestError(
        f"the file has no chat template and its {architecture} model tells none: it may be a base model",
        hint="use `edge generate`, or choose a form with --template NAME",
    )
