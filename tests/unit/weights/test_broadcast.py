"""The sender's group for broadcasts: beside the default one, never a part of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from hybridflow.weights.broadcast import Broadcaster, BroadcastGroup


def test_the_group_is_not_split_off_a_default_group_that_is_bound_to_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch looks at `bound_device_id`, and NCCL would then ask the ranks of the default group for the new one."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    default = dist.GroupMember.WORLD
    assert default is not None
    seen: list[object] = []

    def made(*_: object, **__: object) -> tuple[dist.ProcessGroup, None]:
        seen.append(default.bound_device_id)
        return dist.ProcessGroup(0, 1), None

    try:
        default.bound_device_id = torch.device("cuda", 1)
        monkeypatch.setattr(c10d, "_new_process_group_helper", made)
        monkeypatch.setattr("hybridflow.weights.broadcast.open_store", lambda *_: store)
        Broadcaster(BroadcastGroup(name="g", address="a", port=1, world_size=2, backend="gloo"))
        assert seen == [None]
        assert default.bound_device_id == torch.device("cuda", 1)
    finally:
        default.bound_device_id = None
        dist.destroy_process_group()
