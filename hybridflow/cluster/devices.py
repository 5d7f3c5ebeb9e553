"""The GPU that an actor has: its name for Ray, its index for CUDA in this process, its free memory.

Ray counts the GPUs of a node, or, where its node was started with CUDA_VISIBLE_DEVICES ("4,5", UUIDs, names of MIG
instances), names those. CUDA counts from 0 what is visible to the process. Not run on a GPU yet, neither this nor the
reading of free memory.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import psutil
import ray

from hybridflow.errors import PlacementError

if TYPE_CHECKING:
    import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"
DEVICE_ENVIRONMENT = {
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""In the environment of every actor: Ray leaves what is visible alone, and actors choose their devices themselves, as
engine and trainer of a slot open each other's memory. On a cluster that runs already the driver's own is not theirs."""
MIG = "MIG-"


def this_device() -> str | None:
    """Inside an actor: name of the GPU of its slot, as CUDA_VISIBLE_DEVICES has it; None on a CPU.

    Raises PlacementError where Ray names several: it was told of more GPUs than are visible on the node.
    """
    names = [str(name).strip() for name in ray.get_gpu_ids()]
    if len(names) > 1:
        raise PlacementError(
            f"Ray gives this actor the GPUs {', '.join(sorted(names))} and not one: its node was started with more "
            f"GPUs (--num-gpus) than {VISIBLE} = {os.environ.get(VISIBLE)} shows. Start it with as many"
        )
    return names[0] if names else None


def device_index(name: str, environment: Mapping[str, str] = os.environ) -> int:
    """Index of the GPU `name` for CUDA in a process with this environment.

    Raises PlacementError where it is not visible there.
    """
    visible = environment.get(VISIBLE)
    if visible is None:
        if name.isdigit():
            return int(name)
        names: list[str] = []
    else:
        names = [one.strip() for one in visible.split(",")]
        if name in names:
            return names.index(name)
    raise PlacementError(
        f"GPU {name} of this actor's slot is not among {VISIBLE} = {','.join(names) or 'nothing'}. "
        f"Start Ray on this node with the {VISIBLE} that its workers have"
    )


def show_own_instance() -> None:
    """Before CUDA is used: of several MIG instances it shows a process the first alone, so only its own is left."""
    name = this_device()
    if name is not None and name.startswith(MIG):
        os.environ[VISIBLE] = name


def use_own_device() -> str | None:
    """Makes the GPU of this actor's slot that of the calling thread, and returns its UUID; None on a CPU.

    CUDA's device belongs to a thread, and Ray runs `__init__` in another one than methods: to be called in a method.
    """
    name = this_device()
    if name is None:
        return None
    import torch  # here: what only asks for names starts without it

    index = device_index(name)
    torch.cuda.set_device(index)
    # All instances of a GPU may report its UUID.
    return name if name.startswith(MIG) else str(torch.cuda.get_device_properties(index).uuid)


def device_name(device: torch.device) -> str:
    """A GPU of this process with its machine; of a CPU the machine."""
    return f"{socket.gethostname()} GPU {device.index}" if device.type == "cuda" else socket.gethostname()


def free_bytes(device: torch.device) -> int:
    """Bytes that a process of this machine can still take of the GPU, or of the machine's memory without swapping."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    import torch

    return torch.cuda.mem_get_info(device)[0]


def refuse_doubles(workers: Sequence[str], devices: Sequence[str | None]) -> None:
    """Raises PlacementError, naming the workers, where two of them compute on one GPU; [worker] -> UUID."""
    users: dict[str, list[str]] = {}
    for worker, device in zip(workers, devices, strict=True):
        if device is not None:
            users.setdefault(device, []).append(worker)
    for device, names in users.items():
        if len(names) > 1:
            raise PlacementError(
                f"{' and '.join(names)} are on the same GPU, {device}: each needs one of its own. See that every node "
                f"tells Ray its number of GPUs, and that {VISIBLE} names none twice"
            )


def check_engine_devices(engine: str, names: Sequence[str]) -> None:
    """Raises PlacementError for ranks of an engine that could not reach each other."""
    if len(set(names)) < len(names):
        raise PlacementError(f"{engine}: two of its ranks are on one GPU: {', '.join(names)}")
    if len(names) > 1 and any(name.startswith(MIG) for name in names):
        raise PlacementError(
            f"{engine}: its ranks are on MIG instances ({', '.join(names)}), which do not reach each other. Remedy: "
            f"set rollout.tp_size = 1, or switch MIG off"
        )
