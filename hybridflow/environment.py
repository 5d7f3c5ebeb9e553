"""The environment that a process of a run gets: what it needs to work, and no secret of its user.

A shell's environment holds tokens, passwords and keys beside paths and locale. Verifiers, chat templates and models
come from others, and what a process has in its environment, everything that it starts has too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from hybridflow.errors import ConfigError

NAMES = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM"),
    *("PYTHONPATH", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "PYTHONWARNINGS", "PYTHONUTF8"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"),
    *("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS", "GLIBC_TUNABLES"),
}
"""In either case: proxies are often written small."""
PREFIXES = (
    *("LC_", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "NUMEXPR_", "MALLOC_", "DNNL_"),
    *("CUDA_", "CUDNN_", "CUBLAS_", "NVIDIA_", "NVTE_", "NCCL_", "GLOO_", "UCX_", "FI_", "OMPI_"),
    *("TORCH_", "TORCHINDUCTOR_", "TORCHDYNAMO_", "PYTORCH_", "TRITON_", "FLASHINFER_", "SGLANG_", "SGL_"),
    *("RAY_", "HYBRIDFLOW_"),
)
_SECRET = re.compile(r"TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|(?:API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE)


def joined_cluster() -> str | None:
    """Address of the Ray cluster that a run joins (RAY_ADDRESS); None where it starts Ray on this machine."""
    return os.environ.get("RAY_ADDRESS") or None


def needed(environment: Mapping[str, str], more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The part of `environment` that a process of a run needs, and `more` on top.

    Paths, locale, proxies, certificates, offline switches, thread limits, and what CUDA, NCCL, torch, SGLang and Ray
    are set by. A name that speaks of a secret is left out.
    """
    return {name: value for name, value in environment.items() if _is_needed(name)} | dict(more or {})


def named(names: Iterable[str] | Mapping[str, str | bool], key: str) -> dict[str, str]:
    """The variables that the configuration adds under `key`: names, or a table with a value or `True` for each.

    Raises ConfigError for one without a value that is not set.
    """
    table = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names, True)
    unset = [name for name, value in table.items() if value is True and name not in os.environ]
    if unset:
        raise ConfigError(
            f"{key} names {', '.join(unset)}, which is not set. Remedy: export it, or remove it from {key}"
        )
    return {name: os.environ[name] if value is True else str(value) for name, value in table.items()}


def given_values(table: Mapping[str, str | bool]) -> dict[str, str]:
    """Variables of a table as in `named` that have a value: they win over what a process would be given by itself."""
    return {name: str(value) for name, value in table.items() if value is not True}


def names_secret(name: str) -> bool:
    """Whether the name of a variable speaks of a secret."""
    return _SECRET.search(name) is not None


@contextmanager
def only(wanted: Mapping[str, str]) -> Iterator[None]:
    """`os.environ` holds `wanted` alone inside: for libraries that hand all of it to the processes they start.

    What they set or remove themselves meanwhile stays so.
    """
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        changed = {name: value for name, value in os.environ.items() if wanted.get(name) != value}
        kept = {name: value for name, value in before.items() if name in os.environ or name not in wanted}
        os.environ.clear()
        os.environ.update(kept | changed)


def _is_needed(name: str) -> bool:
    upper = name.upper()
    return (upper in NAMES or upper.startswith(PREFIXES)) and not names_secret(upper)
