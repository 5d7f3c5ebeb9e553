"""Weight updates with versions of SGLang that are not installed here; the installed one: tests/stack_cpu."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, make_dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from hybridflow.errors import WeightSyncError
from hybridflow.rollout.sync.sglang_api import WeightApi

RANKS = [{"checksums": {"norm": "1"}, "parallelism_info": []}, {"checksums": {"norm": "2"}, "parallelism_info": []}]


@dataclass
class Update:
    serialized_named_tensors: list[bytes]
    load_format: str | None = None
    flush_cache: bool = True


class Manager:
    """SGLang without sessions; what it was asked is in `calls`."""

    def __init__(self, answer: tuple[bool, str] = (True, "Success"), ranks: list[Any] | None = RANKS) -> None:
        self.calls: list[Any] = []
        self._answer, self._ranks = answer, ranks

    async def update_weights_from_tensor(self, request: Any, _: None) -> tuple[bool, str]:
        self.calls.append(request)
        return self._answer

    async def check_weights(self, request: Any) -> tuple[Any, ...]:
        self.calls.append(request)
        return True, "", self._ranks, "sum of all"


class SessionManager(Manager):
    async def begin_weight_update(self, request: Any) -> tuple[bool, str]:
        self.calls.append("begin")
        return self._answer

    async def end_weight_update(self, request: Any) -> tuple[bool, str]:
        self.calls.append("end")
        return self._answer


def api(manager: Manager, version: str, *check_fields: str) -> WeightApi:
    structs = SimpleNamespace(
        BeginWeightUpdateReqInput=object,
        EndWeightUpdateReqInput=object,
        UpdateWeightsFromTensorReqInput=Update,
        CheckWeightsReqInput=make_dataclass("Check", ["action", *check_fields]),
    )
    return WeightApi(manager, structs, version, asyncio.run)


@pytest.mark.parametrize(
    ("manager", "version", "calls"),
    [
        (SessionManager(), "0.5.23", ["begin", "end"]),
        (SessionManager(), "0.6.1.post2", ["begin", "end"]),
        (Manager(), "0.5.15", []),
        (Manager(), "0.5.20.post1", []),
    ],
)
def test_an_update_is_opened_and_closed_where_the_version_has_that(
    manager: Manager, version: str, calls: list[str]
) -> None:
    weights = api(manager, version)
    weights.begin()
    weights.update([b"rank 0"], "direct")
    weights.end()
    (update,) = [call for call in manager.calls if isinstance(call, Update)]
    assert update == Update([b"rank 0"], "direct", flush_cache=False)
    assert [call for call in manager.calls if call is not update] == calls


@pytest.mark.parametrize(("manager", "version"), [(Manager(), "0.5.21"), (Manager(), "0.5.14"), (Manager(), "1.0")])
def test_a_version_that_is_not_known_is_named(manager: Manager, version: str) -> None:
    with pytest.raises(WeightSyncError, match=rf"SGLang {version}: .* Install 0\.5\.15 or later; 0\.5\.23 is tested"):
        api(manager, version)


def test_a_refusal_is_an_error_although_sglang_only_says_so() -> None:
    with pytest.raises(WeightSyncError, match="refused to load a bucket of the weight update: no session"):
        api(Manager((False, "no session")), "0.5.20").update([b""], None)


def test_checksums_are_asked_for_in_the_words_of_the_version() -> None:
    manager = Manager()
    assert api(manager, "0.5.20").checksums(["embed"]) == [{"norm": "1"}, {"norm": "2"}]
    assert vars(manager.calls[-1]) == {"action": "checksum"}
    api(manager, "0.5.20", "skip_tensor_list", "selector").checksums(["embed"])
    assert vars(manager.calls[-1]) == {"action": "checksum", "skip_tensor_list": ["embed"], "selector": "target"}


def test_a_version_that_cannot_tell_its_weights_names_the_setting() -> None:
    with pytest.raises(WeightSyncError, match=r"SGLang 0\.5\.20 .*rollout\.verify_weights = 'none'"):
        api(Manager(ranks=None), "0.5.20").checksums([])
