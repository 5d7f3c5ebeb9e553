"""Chat templates with the structure of the published ones, and folders of the families that use them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from hybridflow.policy.load import load_tokenizer
from tests.unit.data.model_folders import (
    CHATML_MARKS,
    DEEPSEEK_MARKS,
    QWEN_SPLIT,
    THINKING,
    byte_level,
    sentencepiece,
    write_folder,
)

R1_OLD = (
    "{% set ns = namespace(system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}"
)
R1_PRESENT = R1_OLD.replace("{{'<｜Assistant｜>'}}", r"{{'<｜Assistant｜><think>\n'}}")

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWQ = """
{%- for message in messages %}
    {%- if message.role in ("user", "system") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if not loop.last %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n' }}
{%- endif %}
"""
QWEN3 = """
{%- set ns = namespace(last=messages|length - 1, seeking=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.seeking and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.seeking = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role in ("user", "system") %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3_THINKING = QWEN3.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
QWEN3_SILENT = QWEN3.replace(
    "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system = false %}"
    "{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
NO_END = (
    "{% for message in messages %}{{ '### ' + message['role'] + '\n' + message['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)

_R1 = {"<｜begin▁of▁sentence｜>": True, "<｜end▁of▁sentence｜>": True, **DEEPSEEK_MARKS}
_R1_NAMES = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
_QWEN = {"<|endoftext|>": True, **CHATML_MARKS, "<tool_response>": False, **THINKING}
_QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
_LLAMA3 = {"<|begin_of_text|>": True, "<|start_header_id|>": True, "<|end_header_id|>": True, "<|eot_id|>": True}
_LLAMA3_NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
_LLAMA2_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}

TEMPLATES = {
    "R1-Distill present": R1_PRESENT,
    "R1-Distill older": R1_OLD,
    "QwQ": QWQ,
    "Qwen3": QWEN3,
    "Qwen3 thinking": QWEN3_THINKING,
    "Qwen3 silent": QWEN3_SILENT,
    "Llama 3": LLAMA3,
    "ChatML, base eos": CHATML,
    "Llama 2": LLAMA2,
    "Mistral": MISTRAL,
    "Gemma": GEMMA,
    "no end": NO_END,
}
_GEMMA = {"<bos>": True, "<eos>": True, "<start_of_turn>": True, "<end_of_turn>": True}


def write_family(path: Path, name: str) -> Path:
    """A folder with the tokenizer files of this family."""
    template = TEMPLATES[name]
    if name.startswith("R1"):
        names: dict[str, Any] = {**_R1_NAMES, "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}
        return write_folder(path, byte_level(_R1), template, **names)
    if name.startswith("Llama 3"):
        llama3 = byte_level(_LLAMA3, post="bos:<|begin_of_text|>", ignore_merges=True)
        return write_folder(path, llama3, template, **_LLAMA3_NAMES, tokenizer_class="PreTrainedTokenizerFast")
    if name in ("Llama 2", "Mistral"):
        return write_folder(path, sentencepiece(), template, **_LLAMA2_NAMES, add_bos_token=True)
    if name == "Gemma":
        return write_folder(path, byte_level(_GEMMA), template, bos_token="<bos>", eos_token="<eos>")
    names = _QWEN_NAMES | ({"eos_token": "<|endoftext|>"} if name.startswith("ChatML") else {})
    qwen = byte_level(_QWEN, split=QWEN_SPLIT, normalizer="NFC")
    return write_folder(path, qwen, template, model_type="qwen2", **names)


@cache
def family(name: str) -> PreTrainedTokenizerBase:
    """Its tokenizer as the commands load it."""
    with TemporaryDirectory() as folder:
        return load_tokenizer(write_family(Path(folder), name))
