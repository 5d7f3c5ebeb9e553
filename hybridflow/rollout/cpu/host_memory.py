"""Host memory for buffers that SGLang 0.5.23 registers with CUDA, where there is none.

It notes the experts of each token in such a buffer (`state_capturer/routed_experts.py`), on a CPU too.
"""

from __future__ import annotations

from typing import Any


def allocate(
    dims: tuple[int, ...], dtype: Any, device: str, pin_memory: bool, allocator: Any, *_: Any, **__: Any
) -> Any:
    """A tensor of SGLang's own allocator, as `alloc_with_host_register` gives it, not registered."""
    return allocator.allocate(dims, dtype=dtype, device=device)
