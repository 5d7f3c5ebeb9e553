"""uv looks where pip is told to look."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest


@pytest.mark.parametrize(
    ("setting", "variable"),
    [
        ({"index-url": "https://u:p@index/simple"}, {"UV_DEFAULT_INDEX": "https://u:p@index/simple"}),
        ({"extra-index-url": "https://a/simple\n  file:///b/c"}, {"UV_INDEX": "https://a/simple file:///b/c"}),
        ({"find-links": "https://a/w /nowhere\nfile:///nowhere /tmp"}, {"UV_FIND_LINKS": "https://a/w,/tmp"}),
        ({"find-links": "/nowhere"}, {}),
        ({"no-index": "true"}, {"UV_NO_INDEX": "true"}),
        ({"trusted-host": "a b:80"}, {"UV_INSECURE_HOST": "a b:80"}),
        ({"cert": "/etc/ca.pem"}, {"SSL_CERT_FILE": "/etc/ca.pem"}),
        ({"cert": "/tmp"}, {"SSL_CERT_DIR": "/tmp"}),
        ({"client-cert": "/me.pem"}, {"SSL_CLIENT_CERT": "/me.pem"}),
        ({"proxy": "http://proxy:3128"}, {"ALL_PROXY": "http://proxy:3128"}),
        ({"timeout": "180"}, {"UV_HTTP_TIMEOUT": "180"}),
    ],
)
def test_each_setting_has_its_variable(
    uv_as_pip: ModuleType, setting: dict[str, str], variable: dict[str, str]
) -> None:
    assert uv_as_pip.uv_environment(setting, {}) == {"UV_INDEX_STRATEGY": "unsafe-best-match"} | variable


def test_what_uv_was_told_itself_wins(uv_as_pip: ModuleType) -> None:
    present = {"UV_DEFAULT_INDEX": "https://mine", "UV_INDEX_STRATEGY": "first-index"}

    assert uv_as_pip.uv_environment({"index-url": "https://pips"}, present) == {}


def test_files_and_variables_of_pip_are_read_and_variables_win(
    uv_as_pip: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://global\nextra-index-url =\n  https://x\n  https://it's\ntimeout = 7\n"
        "[install]\nfind-links = /of/install\n[download]\nno-index = true\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_INDEX_URL", "https://variable")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_DEFAULT_TIMEOUT", "PIP_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)

    settings = uv_as_pip.read_pip_settings()

    assert settings["index-url"] == "https://variable"
    assert settings["extra-index-url"].split() == ["https://x", "https://it's"]
    assert settings["find-links"] == "/of/install"
    assert settings["timeout"] == "7"
    assert "no-index" not in settings
