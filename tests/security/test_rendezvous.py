"""Ranks meet where nobody else can; a stranger who comes all the same is found out before his bytes are unpickled."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.ports import free_port

TIMEOUT_S = 60.0


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self._path,)


def run_rank(address: str, port: int, token: str, told: Any) -> None:
    """Rank 0 of 2: what it ended with, or what it gathered, and where it listened meanwhile."""
    from megatron_ext.parallel.layout import Layout
    from megatron_ext.parallel.topology import init_distributed

    try:
        init_distributed(0, 2, address, port, Layout(dp=2), seed=0, timeout_s=TIMEOUT_S, token=token)
        import torch.distributed as dist

        gathered: list[Any] = [None, None]
        dist.all_gather_object(gathered, "mine")
        outcome = str(gathered)
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    told.put((outcome, {c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"}))
    told.close()
    told.join_thread()
    os._exit(0)  # a group whose other half is gone does not end by itself


def join_as_stranger(address: str, port: int, mark: Path) -> None:
    """Comes as rank 1, shows a proof that is none, and sends an object."""
    import torch
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(address, 2) if port == 0 else dist.TCPStore(address, port, 2, is_master=False)
    dist.init_process_group("gloo", store=store, rank=1, world_size=2)
    try:
        shown = [torch.zeros(32, dtype=torch.uint8) for _ in range(2)]
        dist.all_gather(shown, shown[1])
        dist.all_gather_object([None, None], Payload(mark))
    finally:
        os._exit(0)


def join_as_rank(address: str, port: int, token: str) -> None:
    """Rank 1 as it should be."""
    from megatron_ext.parallel.layout import Layout
    from megatron_ext.parallel.topology import init_distributed

    init_distributed(1, 2, address, port, Layout(dp=2), seed=0, timeout_s=TIMEOUT_S, token=token)
    import torch.distributed as dist

    dist.all_gather_object([None, None], "theirs")
    os._exit(0)


@pytest.mark.parametrize(
    ("has_port", "is_stranger"),
    [
        pytest.param(False, False, marks=pytest.mark.full, id="file"),
        pytest.param(True, False, marks=pytest.mark.full, id="port"),
        pytest.param(True, True, id="stranger"),
    ],
)
def test_who_has_no_token_is_refused_and_nothing_listens_beyond_the_address(
    tmp_path: Path, has_port: bool, is_stranger: bool
) -> None:
    address, port = ("127.0.0.1", free_port()) if has_port else (str(tmp_path / "meeting"), 0)
    mark, token = tmp_path / "his code ran", "t" * 64
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    rank = spawn.Process(target=run_rank, args=(address, port, token, told), daemon=True)
    other = (
        spawn.Process(target=join_as_stranger, args=(address, port, mark), daemon=True)
        if is_stranger
        else spawn.Process(target=join_as_rank, args=(address, port, token), daemon=True)
    )
    rank.start()
    other.start()
    try:
        outcome, listening = told.get(timeout=2 * TIMEOUT_S)
    finally:
        for process in (rank, other):
            process.kill()
            process.join()
    if is_stranger:
        assert outcome == "StrangerError: who joined as rank 1 of 2 does not know the token of this run"
    else:
        assert outcome == "['mine', 'theirs']"
    assert listening == {"127.0.0.1"}
    assert not mark.exists()


def broadcast_as_engine(meeting: Path, mark: Path, rank: int, told: Any) -> None:
    """Ranks of an engine: rank 0 sends what it should, then what somebody would who has got into the connection."""
    import torch
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d

    from hybridflow.rollout.engine.signed_broadcast import broadcast_signed
    from megatron_ext.parallel.meeting import require_token

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", store=dist.FileStore(str(meeting), 2), rank=rank, world_size=2)
    plain = c10d._object_to_tensor([Payload(mark)], torch.device("cpu"), None)
    require_token("the engine's")
    got: list[Any] = [broadcast_signed(data if rank == 0 else None, rank) for data in ([{"rid": "a"}], [], None)]
    for content, size in (plain, (plain[0][:5], torch.tensor([5]))):
        if rank == 0:
            dist.broadcast(size, src=0)
            dist.broadcast(content, src=0)
            continue
        try:
            got.append(broadcast_signed(None, rank))
        except Exception as error:
            got.append(f"{type(error).__name__}: {error}")
    if rank == 1:
        told.put(got)
        told.close()
        told.join_thread()
    dist.barrier()
    os._exit(0)


def test_ranks_of_an_engine_unpickle_what_their_engine_signed_and_nothing_else(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    told, mark = spawn.Queue(), tmp_path / "his code ran"
    ranks = [
        spawn.Process(target=broadcast_as_engine, args=(tmp_path / "meeting", mark, rank, told), daemon=True)
        for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    try:
        good, *refused = told.get(timeout=2 * TIMEOUT_S)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    assert good == [{"rid": "a"}] and refused[:2] == [[], []]
    unsigned = "StrangerError: an object came over a process group without the signature of this run; it was not read"
    assert refused[2:] == [unsigned, unsigned]
    assert not mark.exists()


def test_an_object_without_the_signature_of_the_run_is_not_unpickled(tmp_path: Path) -> None:
    """As it comes over a process group whose member sends what torch would send."""
    import torch
    from torch.distributed import distributed_c10d as c10d

    from megatron_ext.parallel.meeting import StrangerError, forget_token, require_token

    mark = tmp_path / "his code ran"
    device = torch.device("cpu")
    plain, plain_size = c10d._object_to_tensor(Payload(mark), device, None)
    require_token("another run's")
    signed, signed_size = c10d._object_to_tensor(Payload(mark), device, None)
    require_token("ours")
    try:
        for content, size in ((plain, plain_size), (signed, signed_size), (plain[:10], torch.tensor([10]))):
            with pytest.raises(StrangerError, match="without the signature of this run"):
                c10d._tensor_to_object(content, size, None)
        mine, size = c10d._object_to_tensor({"a": [1]}, device, None)
        assert c10d._tensor_to_object(torch.cat((mine, torch.zeros(9, dtype=torch.uint8))), size, None) == {"a": [1]}
    finally:
        forget_token()
    assert not mark.exists()
