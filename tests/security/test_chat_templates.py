"""A chat template is a program by whoever made the model's folder: it neither holds up the loader nor fills memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hybridflow.data.chat_encoding import encode_chat
from hybridflow.data.chat_template import Message
from hybridflow.errors import ConfigError, DataError, HybridFlowError
from hybridflow.policy.load import load_tokenizer
from tests.unit.data.model_folders import byte_level, write_folder

ASK: list[Message] = [{"role": "user", "content": "What is the rate?"}]
DEEP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLE = (
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
)
CALLS_ITSELF = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"
BOUNDED = "takes more than|cannot be rendered"


def load(folder: Path, template: str):
    return load_tokenizer(write_folder(folder, byte_level({"<|end|>": True}), template, eos_token="<|end|>"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        pytest.param(DEEP, "takes more than 2 s of CPU time", marks=pytest.mark.full),
        ("{{ 10 ** (10 ** 9) }}", BOUNDED),
        pytest.param("{% if messages %}{{ 7 ** (10 ** 9) }}{% endif %}", BOUNDED, marks=pytest.mark.full),
        ("{{ 'x' * 10**9 }}", "takes more than 512 MiB of memory"),
        ("{{ '%900000000d' % 1 }}", "takes more than 512 MiB of memory"),
        (DOUBLE, "takes more than 512 MiB of memory"),
        ("{{ messages[0].content * 10**6 }}", "makes 17000000 characters of one conversation"),
        (CALLS_ITSELF, "nested too deeply"),
        ("{% for message in messages %}", "is malformed: line 1"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content.nothing.more }}", "has no attribute"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "is unsafe"),
        ("{% include '/etc/passwd' %}", "does not take messages"),
    ],
    ids=lambda value: value[:30],
)
def test_a_hostile_template_is_an_error_that_names_its_file(tmp_path: Path, template: str, message: str) -> None:
    tokenizer = load(tmp_path, template)
    before, started = psutil.Process().memory_info().rss, time.process_time()
    with pytest.raises(HybridFlowError, match=message) as caught:
        encode_chat(tokenizer, ASK)
    assert isinstance(caught.value, (ConfigError, DataError)) and str(tmp_path / "tokenizer_config.json") in str(
        caught.value
    )
    assert psutil.Process().memory_info().rss - before < 64 << 20 and time.process_time() - started < 1


def test_after_an_attack_harmless_rows_are_rendered(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "{% if messages[0].content == 'bad' %}" + DEEP + "{% endif %}{{ messages[0].content }}")
    with pytest.raises(ConfigError, match="CPU time"):
        encode_chat(tokenizer, [{"role": "user", "content": "bad"}])
    assert tokenizer.decode(encode_chat(tokenizer, ASK)) == "What is the rate?"


def test_the_process_sees_no_secret_and_ends_with_its_maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    others = {process.pid for process in psutil.Process().children()}
    encode_chat(load(tmp_path, "{{ messages[0].content }} of its own"), ASK)
    (process,) = [process for process in psutil.Process().children() if process.pid not in others]
    assert not {"HF_TOKEN", "HOME"} & process.environ().keys()

    code = (
        "from pathlib import Path; import os; from tests.security.test_chat_templates import *;"
        "encode_chat(load(Path(sys.argv[1]), '{{ messages[0].content }}'), ASK);"
        "print(psutil.Process().children()[0].pid, flush=True); os._exit(0)"
    )
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    psutil.wait_procs([psutil.Process(int(out.stdout))] if psutil.pid_exists(int(out.stdout)) else [], timeout=30)
    assert not psutil.pid_exists(int(out.stdout))
