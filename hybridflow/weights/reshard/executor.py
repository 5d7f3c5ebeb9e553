"""Carries a plan out: one train worker cuts, sends, receives and assembles, round after round.

Every rank calls `assemble(number, ...)` for the same rounds in the same order. In a round it

    copies what stays on its device, or goes to a rank whose memory it sees (a CPU's, of the same machine), straight
    from its parameters into the parameters being assembled (no message, no packing);
    posts all other pieces at once as point-to-point operations of the train group (gloo, NCCL): a contiguous piece is
    sent from and received in place, one with gaps is packed and unpacked;
    meets the others, and describes what lies in its buffer with a checksum per parameter.

**Two buffers** per rank, used in turn. Round k + 2 writes where round k lay: it may start when engines have loaded
round k. Round k + 1 is assembled while they load it. Whoever drives the rounds keeps that rule.

No whole tensor of the model is ever gathered: a rank holds its parameters, its two buckets, and what is packed.

On CUDA (not run yet) buckets lie on the GPU that trainer and engine share, other GPUs are reached over NCCL, and SGLang
opens the bucket, one flat tensor, by CUDA IPC (buffers.py). Checksums are computed there too (digest.py), of
every parameter in every update; SGLang's own only of those that will be read back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from hybridflow.errors import WeightSyncError
from hybridflow.weights.reshard.buffers import (
    BufferHandle,
    DeviceBuffer,
    SharedBuffer,
    ipc_payload,
    map_buffer,
    sglang_checksums,
)
from hybridflow.weights.reshard.placement import Link
from hybridflow.weights.reshard.plan import Copy
from hybridflow.weights.reshard.regions import Region
from hybridflow.weights.reshard.schedule import ROUNDS_UNDER_WAY, Message, Schedule
from hybridflow.weights.reshard.shard_bucket import ShardBucket, Verify, cut_buffer, describe_shards, is_read_back

Parameters = Mapping[tuple[int, str], Tensor]
"""Parameters of a train rank, by (chunk of its virtual pipeline, Megatron name)."""

CPU = torch.device("cpu")


class ReshardExecutor:
    """Rank `rank` of the train group. Collective: all ranks make one, with the same schedule."""

    def __init__(
        self, schedule: Schedule, rank: int, dtype: torch.dtype, device: torch.device = CPU, verify: Verify = "sample"
    ) -> None:
        """Allocates the buffers and learns where those of the others are."""
        assert dtype.itemsize == schedule.element_bytes, (dtype, schedule.element_bytes)
        self._schedule, self._rank, self._dtype, self._device = schedule, rank, dtype, device
        self._verify: Verify = verify
        self._engine_of = {
            gpu: (engine, tp_rank)
            for engine, gpus in enumerate(schedule.plan.engines)
            for tp_rank, gpu in enumerate(gpus)
        }
        self._messages: dict[int, tuple[list[Message], list[Message]]] = {}
        self._buffers = [self._make_buffer(size) for size in self._buffer_sizes()]
        self._handles: list[list[BufferHandle]] = [[] for _ in range(schedule.plan.world_size)]
        dist.all_gather_object(self._handles, [buffer.handle for buffer in self._buffers if buffer.handle])
        self._opened: dict[BufferHandle, Tensor] = {}
        self._num_updates = 0
        self._num_named = 0
        """Parameters of the earlier rounds of this update."""
        self.sent_bytes: Counter[Link] = Counter()
        """By way, of all rounds so far; on Link.DEVICE what this rank copied for itself."""

    @property
    def num_rounds(self) -> int:
        return len(self._schedule.rounds)

    @torch.no_grad()
    def assemble(self, number: int, version: int, parameters: Parameters) -> ShardBucket | None:
        """Takes part in a round; the bucket for this GPU's engine rank, None where no engine is.

        Raises WeightSyncError for a parameter that the plan does not know as it is.
        """
        outgoing, incoming = self._messages_of(number)
        if self._rank in self._engine_of:
            own = self._targets(number, self._rank)
            for name, region in self._schedule.padding(number, self._rank):
                as_matrix(own[name], region).zero_()
        for message in outgoing:
            if self._writes(message):
                targets = self._targets(number, message.destination)
                for copy in message.copies:
                    as_matrix(targets[copy.parameter], copy.region).copy_(self._cut(copy, parameters))
            self.sent_bytes[message.link] += message.num_elements * self._dtype.itemsize
        self._exchange(number, outgoing, incoming, parameters)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        # Nobody's bucket is whole before all have written into it.
        dist.barrier()
        return self._describe(number, version)

    def close(self) -> None:
        self._opened.clear()
        for buffer in self._buffers:
            buffer.close()

    # ------------------------------------------------------------------------------------------------- messages

    def _exchange(self, number: int, outgoing: list[Message], incoming: list[Message], parameters: Parameters) -> None:
        """All point-to-point operations of a round at once, so that no order of ranks can block them."""
        operations: list[dist.P2POp] = []
        unpack: list[tuple[Tensor, Tensor]] = []
        packed: dict[tuple[int, str, Region], Tensor] = {}
        for message in outgoing:
            if not self._writes(message):
                for tag, copy in enumerate(message.copies):
                    key = (copy.chunk, copy.tensor, copy.origin)  # the same piece may go to several engines
                    if key not in packed:
                        packed[key] = self._cut(copy, parameters).contiguous()
                    operations.append(dist.P2POp(dist.isend, packed[key], message.destination, tag=tag))
        for message in incoming:
            if not self._writes(message):
                targets = self._targets(number, self._rank)
                for tag, copy in enumerate(message.copies):
                    place = as_matrix(targets[copy.parameter], copy.region)
                    in_place = place.is_contiguous() and self._device.type == "cpu"
                    landing = place if in_place else torch.empty(place.shape, dtype=place.dtype, device=self._device)
                    operations.append(dist.P2POp(dist.irecv, landing, message.source, tag=tag))
                    if landing is not place:
                        unpack.append((place, landing))
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()
        for place, landing in unpack:
            place.copy_(landing)

    def _writes(self, message: Message) -> bool:
        """Whether the source writes into the destination's memory by itself."""
        return message.link is Link.DEVICE or (message.link is Link.NVLINK and self._device.type == "cpu")

    def _messages_of(self, number: int) -> tuple[list[Message], list[Message]]:
        """Outgoing and incoming; the same in every update."""
        if number not in self._messages:
            incoming = self._schedule.incoming(number, self._rank) if self._rank in self._engine_of else []
            self._messages[number] = (self._schedule.outgoing(number, self._rank), incoming)
        return self._messages[number]

    def _cut(self, copy: Copy, parameters: Parameters) -> Tensor:
        tensor = parameters.get((copy.chunk, copy.tensor))
        if tensor is None or tensor.dtype != self._dtype:
            found = "not there" if tensor is None else f"{tensor.dtype}"
            raise WeightSyncError(
                f"train worker {self._rank}: parameter {copy.tensor} is {found}, the plan takes it as {self._dtype}; "
                "set rollout.weight_transport = 'hf_buckets' for this model"
            )
        return as_matrix(tensor.detach(), copy.origin)

    # -------------------------------------------------------------------------------------------------- buffers

    def _make_buffer(self, num_bytes: int) -> SharedBuffer | DeviceBuffer:
        return SharedBuffer(num_bytes) if self._device.type == "cpu" else DeviceBuffer(num_bytes, self._device)

    def _buffer_sizes(self) -> list[int]:
        """Bytes of each buffer: the largest of the rounds that use it."""
        if self._rank not in self._engine_of:
            return []
        sizes = [0] * ROUNDS_UNDER_WAY
        for number in range(self.num_rounds):
            elements = sum(torch.Size(shape).numel() for _, shape in self._schedule.parameters(number, self._rank))
            turn = number % ROUNDS_UNDER_WAY
            sizes[turn] = max(sizes[turn], elements * self._dtype.itemsize)
        return sizes

    def _targets(self, number: int, gpu: int) -> dict[str, Tensor]:
        """The parameters of a round in the buffer of a GPU's engine rank."""
        if gpu == self._rank:
            bytes_B = self._buffers[number % ROUNDS_UNDER_WAY].bytes_B
        else:
            handle = self._handles[gpu][number % ROUNDS_UNDER_WAY]
            if handle not in self._opened:
                self._opened[handle] = map_buffer(handle)
            bytes_B = self._opened[handle]
        return dict(cut_buffer(bytes_B, self._schedule.parameters(number, gpu), self._dtype))

    def _describe(self, number: int, version: int) -> ShardBucket | None:
        if self._rank not in self._engine_of:
            return None
        engine, tp_rank = self._engine_of[self._rank]
        named = list(self._targets(number, self._rank).items())
        buffer = self._buffers[number % ROUNDS_UNDER_WAY]
        on_gpu = self._device.type == "cuda"
        if not number:
            self._num_named = 0
            self._num_updates += 1
        first, self._num_named = self._num_named, self._num_named + len(named)
        read_back = [
            one
            for place, one in enumerate(named, first)
            if on_gpu and is_read_back(self._verify, self._num_updates, place, version)
        ]
        return ShardBucket(
            version=version,
            number=number,
            rank=self._rank,
            engine=engine,
            tp_rank=tp_rank,
            entries=describe_shards(named, on_host=not on_gpu),
            handle=buffer.handle,
            payload=ipc_payload(buffer.bytes_B[: sum(tensor.nbytes for _, tensor in named)]) if on_gpu else None,
            read_back=sglang_checksums(read_back) if read_back else {},
        )


def as_matrix(tensor: Tensor, region: Region) -> Tensor:
    """The rectangle of a tensor seen as the plan sees it: the last dimension is the columns, a vector is a column."""
    matrix = tensor.view(-1, tensor.shape[-1]) if tensor.dim() > 1 else tensor.view(-1, 1)
    return matrix[region.row : region.row + region.rows, region.col : region.col + region.cols]
