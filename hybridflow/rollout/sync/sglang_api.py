"""SGLang's calls of a weight update; differences between its versions are known here alone.

    0.5.23          what this project is tested with
    0.5.21 and up   an update runs between `begin_weight_update` and `end_weight_update`; outside of them it is refused
    0.5.15 and up   no such calls: every update prepares and finishes itself

A version with neither is refused by name. Older versions of the request objects have fewer fields: those that are not
there are left out where that changes nothing, and named in an error where it would.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from hybridflow.errors import WeightSyncError
from hybridflow.weights.broadcast import BroadcastGroup

TESTED_VERSION = "0.5.23"
FIRST_VERSION = (0, 5, 15)
FIRST_WITH_SESSIONS = (0, 5, 21)


class WeightApi:
    """Weight update calls of one engine.

    Args:
        manager: SGLang's tokenizer manager.
        io_struct: the module `sglang.srt.managers.io_struct`.
        version: of SGLang, as it says itself.
        run: waits for one of the manager's coroutines and returns its result.
    """

    def __init__(self, manager: Any, io_struct: Any, version: str, run: Callable[[Coroutine[Any, Any, Any]], Any]):
        """Raises WeightSyncError for a version whose updates are not known."""
        self._manager, self._io, self._version, self._run = manager, io_struct, version, run
        self._has_sessions = hasattr(manager, "begin_weight_update")
        number = _read_version(version)
        known = number >= FIRST_VERSION and (self._has_sessions or number < FIRST_WITH_SESSIONS)
        if not (known and hasattr(manager, "update_weights_from_tensor")):
            raise WeightSyncError(
                f"SGLang {version}: it is not known how this version's weights are updated. Install 0.5.15 or later; "
                f"{TESTED_VERSION} is tested"
            )

    def begin(self) -> None:
        """Opens an update."""
        if self._has_sessions:
            self._check(self._manager.begin_weight_update(self._io.BeginWeightUpdateReqInput()), "begin")

    def end(self) -> None:
        """Closes it: what SGLang makes of weights after loading is made."""
        if self._has_sessions:
            self._check(self._manager.end_weight_update(self._io.EndWeightUpdateReqInput()), "end")

    def update(self, payloads: list[bytes], load_format: str | None) -> None:
        """Gives SGLang one payload per rank; returns when every rank has copied it."""
        request = self._io.UpdateWeightsFromTensorReqInput(
            serialized_named_tensors=payloads, load_format=load_format, flush_cache=False
        )
        self._check(self._manager.update_weights_from_tensor(request, None), "load a bucket of")

    def join_group(self, group: BroadcastGroup, rank_offset: int) -> None:
        """Every rank of the engine joins a process group, as rank `rank_offset` and on; rank 0 of it sends."""
        request = self._io.InitWeightsUpdateGroupReqInput(
            master_address=group.address,
            master_port=group.port,
            rank_offset=rank_offset,
            world_size=group.world_size,
            group_name=group.name,
            backend=group.backend,
        )
        self._check(self._manager.init_weights_update_group(request, None), "join a group for")

    def receive(self, names: list[str], dtypes: list[str], shapes: list[list[int]], name: str) -> None:
        """Takes whole tensors that rank 0 of the group broadcasts, in this order; every rank cuts its part itself."""
        request = self._io.UpdateWeightsFromDistributedReqInput(
            names=names, dtypes=dtypes, shapes=shapes, group_name=name, flush_cache=False
        )
        self._check(self._manager.update_weights_from_distributed(request, None), "receive")

    def leave_group(self, name: str) -> None:
        request = self._io.DestroyWeightsUpdateGroupReqInput(group_name=name)
        self._check(self._manager.destroy_weights_update_group(request, None), "leave the group for")

    def checksums(self, names_to_skip: list[str]) -> list[dict[str, str]]:
        """SGLang's checksum of each of its parameters, by rank; without those that need not be read.

        Raises WeightSyncError where this version cannot tell.
        """
        request_type = self._io.CheckWeightsReqInput
        wanted = {"action": "checksum", "skip_tensor_list": names_to_skip, "selector": "target"}
        request = request_type(**{key: value for key, value in wanted.items() if key in _fields(request_type)})
        success, message, *more = self._run(self._manager.check_weights(request))
        self._judge(success, message, "verify")
        if not more or not more[0]:
            raise WeightSyncError(
                f"SGLang {self._version} does not say which weights it holds: set rollout.verify_weights = 'none', or "
                f"install {TESTED_VERSION}"
            )
        return [rank["checksums"] for rank in more[0]]  # SGLang gathers them in the order of ranks

    def _check(self, answer: Coroutine[Any, Any, tuple[bool, str]], action: str) -> None:
        success, message = self._run(answer)
        self._judge(success, message, action)

    @staticmethod
    def _judge(success: bool, message: str, action: str) -> None:
        # SGLang reports a refused update as (False, message) and does not raise.
        if not success:
            raise WeightSyncError(f"SGLang refused to {action} the weight update: {message}")


def _read_version(text: str) -> tuple[int, ...]:
    """Read the numbers 0, 5 and 23 of "0.5.23.post1"."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _fields(struct: Any) -> set[str]:
    """Names that a request takes: msgspec structs since 0.5.2x, data classes before."""
    return set(getattr(struct, "__struct_fields__", None) or getattr(struct, "__dataclass_fields__", ()))
