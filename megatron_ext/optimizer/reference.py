"""The weights of a reference policy: at rest on the host, and in the place of the policy's for a forward pass.

A second model on the device would cost its memory all the time for one forward pass a step. Here a rank keeps a second
copy of its own parameters on the host, pinned where there is CUDA, and exchanges the two, tensor by tensor: while the
reference is on the device the policy's bits lie in the reference's room on the host, and go back afterwards. The
optimizer is not touched: master weights of bfloat16 parameters are tensors of their own, and float32 parameters, which
are their own masters, have their bits again before anyone reads them. Every tensor stays the view that it was, so
Megatron's buffers notice nothing, and a stay of the policy on the host (`residency`) comes between two passes freely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from megatron_ext.platform.device import Device


class ReferenceWeights:
    """A copy of parameters, to be exchanged with them. Nothing here is collective."""

    def __init__(self, parameters: Sequence[Tensor], device: Device) -> None:
        """Takes the values that the parameters have now."""
        self._parameters = list(parameters)
        self._device = device
        self._num_there = 0
        """So many parameters, from the first on, are the reference's now."""
        self._host = [
            torch.empty(parameter.shape, dtype=parameter.dtype, pin_memory=device.has_cuda) for parameter in parameters
        ]
        for room, parameter in zip(self._host, self._parameters, strict=True):
            room.copy_(parameter.detach(), non_blocking=True)
        device.synchronize()

    @property
    def num_bytes(self) -> int:
        """Memory of the host that it takes."""
        return sum(room.nbytes for room in self._host)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters have the reference's values; afterwards, however it ends, their own, bit for bit."""
        try:
            while self._num_there < len(self._host):
                self._exchange(self._num_there)
                self._num_there += 1
            self._device.synchronize()
            yield
        finally:
            while self._num_there:
                self._exchange(self._num_there - 1)
                self._num_there -= 1
            self._device.synchronize()

    @torch.no_grad()
    def _exchange(self, index: int) -> None:
        """Copies of one stream come one after the other, so that the room is read before it is written."""
        parameter, room = self._parameters[index], self._host[index]
        leaving = parameter.detach().clone()
        parameter.copy_(room, non_blocking=True)
        room.copy_(leaving, non_blocking=True)
