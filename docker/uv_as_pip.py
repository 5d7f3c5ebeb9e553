"""Runs uv with the settings that pip has here: `python docker/uv_as_pip.py ARGUMENTS...` is `uv ARGUMENTS...`.

uv reads neither pip.conf nor PIP_* variables. What they say about where packages come from and whom to trust is handed
over as uv's own variables; one of those that is set already wins.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

NAMES = {
    "UV_DEFAULT_INDEX": "index-url",
    "UV_INDEX": "extra-index-url",
    "UV_FIND_LINKS": "find-links",
    "UV_NO_INDEX": "no-index",
    "UV_INSECURE_HOST": "trusted-host",
    "UV_KEYRING_PROVIDER": "keyring-provider",
    "UV_HTTP_TIMEOUT": "timeout",
    "SSL_CLIENT_CERT": "client-cert",
    "ALL_PROXY": "proxy",
}
BETWEEN = {"UV_FIND_LINKS": ","}
"""Between the items of a list; a space elsewhere. pip takes any white space."""
OF_ENVIRONMENT = ":env:"


def main() -> None:
    settings = read_pip_settings()
    environment = uv_environment(settings, os.environ)
    uv = Path(sys.executable).with_name("uv")
    os.execve(uv, [str(uv), *sys.argv[1:]], dict(os.environ) | environment)


def read_pip_settings() -> dict[str, str]:
    """pip's settings by name: files, then [install], then PIP_* variables, the later before the earlier."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    by_section: dict[str, dict[str, str]] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        by_section.setdefault(section, {})[name.replace("_", "-")] = str(ast.literal_eval(value))
    merged: dict[str, str] = {}
    for section in ("global", "install", OF_ENVIRONMENT):
        merged |= by_section.get(section, {})
    if "default-timeout" in merged:
        merged.setdefault("timeout", merged["default-timeout"])
    return merged


def uv_environment(settings: Mapping[str, str], present: Mapping[str, str]) -> dict[str, str]:
    """uv's variables for pip's `settings`, without those that `present` has.

    pip passes over a folder of find-links that does not exist, and takes the best version of all indexes; so uv is told
    to.
    """
    wanted = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for variable, name in NAMES.items():
        items = settings.get(name, "").split()
        if name == "find-links":
            items = [item for item in items if _is_there(item)]
        if items:
            wanted[variable] = BETWEEN.get(variable, " ").join(items)
    certificates = settings.get("cert")
    if certificates:
        wanted["SSL_CERT_DIR" if Path(certificates).is_dir() else "SSL_CERT_FILE"] = certificates
    return {name: value for name, value in wanted.items() if name not in present}


def _is_there(place: str) -> bool:
    """Whether a place of find-links can be read: every URL, and each path that exists."""
    url = urlsplit(place)
    if url.scheme == "file":
        return Path(unquote(url.path)).exists()
    return bool(url.scheme) or Path(place).expanduser().exists()


if __name__ == "__main__":
    main()
