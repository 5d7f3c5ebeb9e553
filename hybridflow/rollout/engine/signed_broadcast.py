"""Signed broadcast of objects between SGLang's ranks of one engine: unpickled only with the engine's signature.

SGLang 0.5.23 has a broadcast of its own beside torch's (`broadcast_pyobj`): each request that its first scheduler
takes goes to the others as a pickle over gloo. Whoever gets into such a connection would have his pickle run there.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hybridflow.errors import RolloutError
from hybridflow.rollout.engine.private_ranks import KEY_FILE
from megatron_ext.parallel.meeting import require_token, seal, unseal
from megatron_ext.platform.device import find_device

TARGET = "sglang.srt.utils.common.broadcast_pyobj"


def sign_objects() -> None:
    """In each process of SGLang, before its ranks meet; does nothing where nobody made a key for them."""
    path = os.environ.get(KEY_FILE)
    if path is None:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    require_token(Path(path).read_text(encoding="ascii"))
    HookRegistry.register(TARGET, broadcast_signed, HookType.REPLACE)


def check_signed() -> None:
    """Raises RolloutError where a key was made and SGLang has not taken the hook: it logs that and goes on."""
    from sglang.srt.utils import common

    if KEY_FILE in os.environ and getattr(common.broadcast_pyobj, "__wrapped__", None) is None:
        chosen = os.environ.get("SGLANG_PLUGINS", "")
        raise RolloutError(
            "the ranks of this engine would unpickle unsigned objects: SGLang did not load hybridflow's plugin, or "
            f"lacks {TARGET} (SGLANG_PLUGINS={chosen!r}). Remedy: unset SGLANG_PLUGINS, and install the version of "
            "SGLang that is in the lock file"
        )


def broadcast_signed(
    data: list[Any] | None,
    rank: int,
    dist_group: dist.ProcessGroup | None = None,
    src: int = 0,
    force_cpu_device: bool = True,
) -> list[Any]:
    """`data` of rank `src`, on every rank. Raises StrangerError, and unpickles nothing, without the signature."""
    device = torch.device("cuda" if find_device().has_cuda and not force_cpu_device else "cpu")
    sealed = seal(pickle.dumps(data)) if rank == src and data else b""
    size = torch.tensor([len(sealed)], dtype=torch.long, device=device)
    dist.broadcast(size, src=src, group=dist_group)
    if not size.item():  # an idle scheduler says so at each of its rounds
        return data if rank == src and data is not None else []
    if rank == src:
        content = torch.frombuffer(bytearray(sealed), dtype=torch.uint8).to(device)
    else:
        content = torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(content, src=src, group=dist_group)
    return data or [] if rank == src else pickle.loads(unseal(content.cpu().numpy().tobytes()))
