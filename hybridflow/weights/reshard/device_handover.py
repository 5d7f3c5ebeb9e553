"""Hand-over on one GPU: a train worker's bucket as SGLang's rank on the same GPU opens it. Not run yet: needs CUDA.

The payload holds CUDA IPC handles, not bytes; it passes through driver and tokenizer manager as it is. It is made again
for each round, as torch counts who has opened it. SGLang's own serialiser is used, so that the reader is met as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

Named = list[tuple[str, Tensor]]


class DeviceBuffer:
    """`num_bytes` on this process's GPU."""

    handle = None
    """No other process opens the whole of it."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.bytes_B = torch.empty(max(num_bytes, 1), dtype=torch.uint8, device=device)

    def close(self) -> None:
        """The memory goes back once SGLang has let go of it too."""
        del self.bytes_B
        torch.cuda.ipc_collect()


def ipc_payload(bytes_B: Tensor) -> bytes:
    """The bytes of a round, as SGLang's rank on this GPU opens them."""
    from sglang.srt.utils import MultiprocessingSerializer
    from sglang.srt.utils.patch_torch import monkey_patch_torch_reductions

    monkey_patch_torch_reductions()  # names the GPU by its UUID: the engine's processes number GPUs otherwise
    return MultiprocessingSerializer.serialize(bytes_B)


def sglang_checksums(named: Named) -> dict[str, str]:
    """As SGLang's `check_weights` computes them on this kind of device."""
    from sglang.srt.managers.mm_utils import tensor_hash

    return {name: f"{tensor_hash(tensor):016x}" for name, tensor in named}
