"""Which variables a process of a run gets."""

from __future__ import annotations

import os

import pytest

from hybridflow.config.cluster_section import ClusterSection
from hybridflow.environment import given_values, joined_cluster, named, needed, only
from hybridflow.errors import ConfigError


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "TMPDIR", "https_proxy", "NO_PROXY", "SSL_CERT_FILE"),
        *("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "RAY_ADDRESS", "HF_HUB_OFFLINE"),
        *("TOKENIZERS_PARALLELISM", "SGLANG_PLUGINS", "TRITON_CACHE_DIR", "LD_LIBRARY_PATH"),
    ],
)
def test_what_a_process_needs_it_gets(name: str) -> None:
    assert needed({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "HF_TOKEN_PATH", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"),
        *(
            "RAY_AUTH_TOKEN",
            "SGLANG_API_KEY",
            "NVIDIA_API_KEY",
            "PGPASSWORD",
            "SSH_AUTH_SOCK",
            "EDITOR",
            "PYTHONSTARTUP",
        ),
        *("torch_password", "CUDA_CREDENTIALS"),
    ],
)
def test_what_it_does_not_need_it_does_not_get(name: str) -> None:
    assert needed({name: "x", "PATH": "/bin"}) == {"PATH": "/bin"}


def test_more_is_given_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "t")
    assert needed({"HOME": "/h"}, named(["MY_TOKEN"], "reward.environment")) == {"HOME": "/h", "MY_TOKEN": "t"}


def test_one_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ConfigError, match=r"reward\.environment names NOT_SET, which is not set\. Remedy: export it"):
        named(["PATH", "NOT_SET"], "reward.environment")


def test_only_what_is_wanted_is_there_inside_and_what_was_changed_inside_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "t")
    monkeypatch.setenv("REMOVED_INSIDE", "t")
    monkeypatch.setenv("PATH", os.environ["PATH"])  # as it is, to be so again afterwards
    monkeypatch.delenv("SET_INSIDE", raising=False)
    before = {name: value for name, value in os.environ.items() if name != "REMOVED_INSIDE"}
    with pytest.raises(ValueError, match="inside"), only({"PATH": "/bin", "REMOVED_INSIDE": "t"}):
        assert dict(os.environ) == {"PATH": "/bin", "REMOVED_INSIDE": "t"}
        del os.environ["REMOVED_INSIDE"]
        os.environ["SET_INSIDE"] = "1"
        os.environ["PATH"] = "/sbin"
        raise ValueError("inside")
    assert dict(os.environ) == before | {"SET_INSIDE": "1", "PATH": "/sbin"}
    del os.environ["SET_INSIDE"]


def test_a_table_gives_values_and_passes_others_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "t")
    monkeypatch.delenv("NOT_SET", raising=False)
    table = ClusterSection.model_validate(
        {"environment": {"NCCL_DEBUG": "INFO", "NCCL_IB_TIMEOUT": 22, "MY_TOKEN": True}}
    )
    assert named(table.environment, "cluster.environment") == {
        "NCCL_DEBUG": "INFO",
        "NCCL_IB_TIMEOUT": "22",
        "MY_TOKEN": "t",
    }
    assert given_values(table.environment) == {"NCCL_DEBUG": "INFO", "NCCL_IB_TIMEOUT": "22"}
    listed = ClusterSection.model_validate({"environment": ["MY_TOKEN"]})
    assert listed.environment == {"MY_TOKEN": True}
    with pytest.raises(ConfigError, match=r"cluster\.environment names NOT_SET, which is not set"):
        named({"NOT_SET": True, "SET": "x"}, "cluster.environment")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"A": False}, "A = false would be"),
        ({"HF_TOKEN": "abc"}, r"HF_TOKEN would stand in the run folder with its value\. Remedy: export it"),
        ("A=1", "is no table of variables"),
        ([1], "is no table of variables"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterSection.model_validate({"environment": given})


@pytest.mark.parametrize(("value", "address"), [(None, None), ("", None), ("head:6379", "head:6379"), ("auto", "auto")])
def test_a_run_joins_the_cluster_that_ray_address_names(
    value: str | None, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one names none."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if value is not None:
        monkeypatch.setenv("RAY_ADDRESS", value)
    assert joined_cluster() == address
