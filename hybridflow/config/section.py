"""The base of all configuration sections, and the hiding of passwords and keys where a URL or a value is shown."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

HIDDEN = "***"

_USER = re.compile(r"(?<=://)[^/?#\s'\"]*@")
_QUERY_KEY = re.compile(
    r"(?<=[?&;#])([\w.%-]*(?:key|token|secret|passw|pwd|auth|sig|credential|%[0-9a-f]{2})[\w.%-]*)=([^&;#\s'\"]*)",
    re.IGNORECASE,
)
_KEY = re.compile(r"(?<![\w-])(?:sk|pk|rk|hf|gsk|xai|nvapi|ghp|key|pplx)[-_][\w-]{12,}|(?<![\w-])AIza[\w-]{20,}")
"""Keys of OpenAI, Anthropic, Hugging Face, Groq, xAI, NVIDIA, Google and their like."""


def secrets_in(url: str) -> bool:
    """Whether a URL names a user or password, or has a key in its query or path."""
    return hide_secrets(url) != url


def hide_secrets(text: str) -> str:
    """`text` with each user, password and key of the URLs in it as ***.

    Example: hide_secrets("http://me:pw@host/v1?api_key=1") == "http://***@host/v1?api_key=***"
    """
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _QUERY_KEY.sub(rf"\1={HIDDEN}", text)
    return _KEY.sub(HIDDEN, text)


class Section(BaseModel):
    """Read once, never changed; a key that it does not have is an error.

    Values are taken as they are: `true` is no number, "5" no integer, and no number is infinite. The text below a field
    is its meaning, which `hybridflow config --keys` prints.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
