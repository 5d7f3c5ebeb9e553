"""Remedies where a judge gave no answer, by what it or the network said."""

from __future__ import annotations

import re

from hybridflow.config.judge_section import JudgeSection
from hybridflow.reward_service.judge.server import AskError, find_proxy

_BY_WORDS = (
    (r"CERTIFICATE_VERIFY_FAILED", "export SSL_CERT_FILE=<the file with the certificate of who signed it>"),
    (r"WRONG_VERSION_NUMBER|record layer failure", "write http:// instead of https://: it speaks without TLS"),
    (r"DNSError", "correct the name of the host, which is not known here"),
    (r"Invalid(Url|URL)", "correct the address, as http://HOST:PORT/v1, and that of a proxy, as http://HOST:PORT"),
    (r"HTTP 40[13]\b", "export {env}=<its key>, or name the variable that holds it in reward.judge.api_key_env"),
    (r"HTTP 402\b|quota", "pay for what the account has used, or name another server"),
    (r"HTTP 407\b", "put user and password of the proxy into {proxy_name}, or its host into no_proxy"),
    (r"HTTP 3\d\d\b", "name the address that it leads to"),
    (r"HTTP 4.*max_completion_tokens", "--set reward.judge.length_field=max_completion_tokens"),
    (r"HTTP 4.*temperature", "--set reward.judge.temperature=unset"),
    (
        r"HTTP 4.*(context.length|too long|too large|maximum.{1,20}tokens)",
        "lower reward.judge.max_tokens ({max_tokens}), or serve the model with a longer window",
    ),
    (r"HTTP 503\b", "wait until it has loaded, or look at its log"),
)
"""Patterns of reasons, each with its remedy."""


def find_judge_remedy(error: AskError, section: JudgeSection, models: str) -> str:
    """For a user; `models`: those that the server says it has, "" where it does not tell."""
    url = error.why.partition(": ")[0]
    proxy = find_proxy(url)
    if proxy is not None and "ProxyConnectionError" in error.why:
        return f"start the proxy {proxy} that the environment names, or put the host into no_proxy"
    for pattern, remedy in _BY_WORDS:
        if re.search(pattern, error.why, re.DOTALL):
            return remedy.format(
                env=section.api_key_env, max_tokens=section.max_tokens, proxy_name=f"{url.partition(':')[0]}_proxy"
            )
    if error.kind in ("refused", "bad_request"):
        known = f" ({models})" if models else ""
        return (
            f"name a model that it serves{known} in reward.judge.model, now {section.model!r}; or correct the address"
        )
    return _BY_KIND[error.kind]


_BY_KIND = {
    "timeout": "start it again, or wait until it is loaded; if it needs that long, set reward.judge.request_timeout_s, "
    "and so long it is waited for here",
    "unreachable": "start it (hybridflow judge serve --model ... --port ...), or correct the address",
    "malformed": "name an OpenAI-compatible server",
    "busy": "wait, or lower reward.judge.max_concurrency or set reward.judge.max_requests_per_s",
    "server_error": "look at its log; start it again",
}
