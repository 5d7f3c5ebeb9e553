"""Chat templates give here what they give in transformers."""

import pytest

from hybridflow.data.chat_template import Message, render_chat
from hybridflow.errors import ConfigError
from hybridflow.policy.tokenizer import build_tokenizer

MESSAGES: list[Message] = [
    {"role": "user", "content": 'A "quoted" <b> & é 😀 \u2028'},
    {"role": "assistant", "content": " So.\n"},
    {"role": "user", "content": "Next?"},
]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.role }}{{ m.content }}\n{% endfor %}",
        "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
        "{% for m in messages %}\n    {% generation %}{{ m.content | trim }}{% endgeneration %}\n{% endfor %}",
        "{{ strftime_now('%Y-%m') }}{{ tools is none }}{{ documents is none }}{{ enable_thinking is defined }}",
        "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ add_generation_prompt }}|{{ messages[5] is defined }}",
        "{% macro one(m) %}{{ m.content[::-1] | upper }}{% endmacro %}{{ messages | map(attribute='role') | join }}"
        "{% set x = namespace(n=0) %}{% for m in messages %}{% set x.n = x.n + 1 %}{{ one(m) }}{% endfor %}{{ x.n }}",
    ],
    ids=["loop controls", "tojson", "generation", "globals", "variables", "macros"],
)
@pytest.mark.parametrize("prompt", [True, False])
def test_texts_are_those_of_transformers(template: str, prompt: bool) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    expected = tokenizer.apply_chat_template([*MESSAGES], add_generation_prompt=prompt, tokenize=False)
    assert render_chat(tokenizer, MESSAGES, prompt) == expected


def test_several_templates_without_a_default() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = {"rag": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    with pytest.raises(ConfigError, match="multiple chat templates with no default"):
        render_chat(tokenizer, MESSAGES, True)
    tokenizer.chat_template["default"] = "{{ messages[2].content }}"
    assert render_chat(tokenizer, MESSAGES, True) == "Next?"
