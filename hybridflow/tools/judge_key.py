"""The key of a judge that is served: what it may be, and who may do without giving one."""

from __future__ import annotations

import ipaddress
import os
import re

from hybridflow.errors import ConfigError

MIN_KEY_CHARS = 16
DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
"""Default of `reward.judge.api_key_env`."""


def read_key(given: str | None, variable: str | None) -> str:
    """The key as it is given, or as an environment variable has it; "" where neither is named. ConfigError."""
    if given is not None and variable is not None:
        raise ConfigError("--api-key and --api-key-env name a key each. Remedy: give one of the two")
    if variable is not None and not os.environ.get(variable, "").strip():
        raise ConfigError(f"--api-key-env {variable}: this variable is empty or not set. Remedy: export it")
    key = os.environ[variable].strip() if variable is not None else given
    if key == "":
        raise ConfigError("--api-key is empty. Remedy: give a key, or leave the option out")
    return key or ""


def is_own_address(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_key(key: str, host: str) -> None:
    """Raises ConfigError for a key too short to protect, and for a server without one that other machines reach."""
    if key and (len(key) < MIN_KEY_CHARS or not re.fullmatch(r"[!-~]+", key)):
        raise ConfigError(
            f"the key has to be {MIN_KEY_CHARS} or more visible ASCII characters without spaces. Remedy: make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    if not key and not is_own_address(host):
        raise ConfigError(
            f"--host {host} is reached by other machines, and there is no key. Remedy: put a key into an "
            "environment variable and name it with --api-key-env, or serve on 127.0.0.1"
        )
