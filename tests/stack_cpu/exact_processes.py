"""Train ranks and an engine in processes of their own, driven step by step over pipes; nothing here needs Ray."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.rollout.engine.arguments import build_arguments, engine_environment
from hybridflow.weights.broadcast import BroadcastGroup
from hybridflow.weights.manifest import TensorEntry, describe_tensor
from hybridflow.weights.reshard.buffers import map_buffer
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from hybridflow.weights.reshard.settings import ReshardSettings, engine_slots
from hybridflow.weights.reshard.shard_bucket import ShardRound, cut_buffer, describe_shards
from megatron_ext.parallel.layout import Layout
from tests.dist_cpu.launch import start_rank
from tests.ports import free_port

if TYPE_CHECKING:
    import torch

    from hybridflow.types import Completion, Lease, SamplingParams, TrainBatch

REPLY_TIMEOUT_S = 500.0


class Served:
    """A process that owns an object and calls its methods one after the other."""

    def __init__(
        self, target: Any, *args: Any, environment: dict[str, str] | None = None, method: str = "spawn"
    ) -> None:
        before = dict(os.environ)
        os.environ.update(environment or {"OMP_NUM_THREADS": "1"})  # inherited by the process that is started here
        try:
            context: Any = multiprocessing.get_context(method)
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, target, args))
            self._process.start()
            theirs.close()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def ask(self, method: str, *args: Any) -> None:
        self._pipe.send((method, args))

    def answer(self) -> Any:
        """The result of the oldest call. Raises what it raised."""
        assert self._pipe.poll(REPLY_TIMEOUT_S), "no answer"
        result = self._pipe.recv()
        if isinstance(result, BaseException):
            raise result
        return result

    def call(self, method: str, *args: Any) -> Any:
        self.ask(method, *args)
        return self.answer()

    def begin_closing(self) -> None:
        """It ends by itself when nobody calls any more."""
        self._pipe.close()

    def close(self) -> None:
        self.begin_closing()
        self._process.join(timeout=60)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, target: Any, args: tuple[Any, ...]) -> None:
    # A spawned process takes over the search path of its parent, without what the environment adds.
    sys.path[:0] = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    served = target(*args)
    try:
        while True:
            method, arguments = pipe.recv()
            try:
                pipe.send(getattr(served, method)(*arguments))
            except Exception as error:
                traceback.print_exc()
                pipe.send(error)
    except EOFError:
        served.close()


class TrainRank:
    """A Megatron rank with its end of one or more reshards."""

    def __init__(self, rank: int, layout: Layout, port: int, hf_dir: Path) -> None:
        import torch

        start_rank()
        from megatron_ext.parallel.topology import init_distributed
        from megatron_ext.policy import MegatronPolicy

        self.topology = init_distributed(rank, layout.world_size, "127.0.0.1", port, layout, seed=7, timeout_s=400)
        self.policy = MegatronPolicy(str(hf_dir), layout, self.topology, dtype=torch.float32, optimizer=None)
        self.executors: dict[int, Any] = {}

    def change(self, scale: float, out_dir: Path) -> None:
        """Perturbs the weights, the same on all replicas, and exports them."""
        import torch

        with torch.no_grad():
            for parameter in self.policy.local_parameters().values():
                wave = torch.sin(torch.arange(parameter.numel()) * 0.7).view_as(parameter)
                parameter.mul_(1 + scale * wave)
        self.policy.save_hf(out_dir)

    def open(self, settings: ReshardSettings) -> int:
        from hybridflow.weights.reshard.executor import ReshardExecutor

        schedule = settings.schedule(self.policy.hf_config, self.policy.layout, 4)
        executor = ReshardExecutor(schedule, self.topology.rank, self.policy.dtype)
        self.executors[settings.rollout.tp] = executor
        return executor.num_rounds

    def assemble(self, tp: int, number: int, version: int) -> Any:
        return self.executors[tp].assemble(number, version, self.policy.local_parameters())

    def broadcast(self, group: BroadcastGroup, version: int) -> None:
        """Rank 0 sends every tensor whole; to be called once the engine has been told to receive."""
        from hybridflow.weights.broadcast import Broadcaster

        tensors = [tensor for _, tensor in self.policy.export_tensors()]
        if self.topology.rank == 0:
            sender = Broadcaster(group)
            sender.send(tensors)
            sender.close()

    def entries(self) -> list[TensorEntry]:
        """Entries of all tensors of this rank's stage."""
        return [describe_tensor(name, tensor) for name, tensor in self.policy.export_tensors()]

    def replay(self, hf_dir: Path, batch: TrainBatch) -> dict[str, Any]:
        """The experts that Megatron's routers took, by row and layer, where another policy replays those of the rows;
        log-probabilities of the last stage, by row. One row to a micro-batch, on one rank of each."""
        import torch

        from hybridflow.trainer.batch import pack_rank
        from megatron_ext.policy import MegatronPolicy

        replayed = any(len(row.response.experts) for row in batch.sequences)
        policy = MegatronPolicy(
            str(hf_dir),
            self.policy.layout,
            self.topology,
            dtype=torch.float32,
            optimizer=None,
            routing_replay=replayed,
        )
        maps: list[torch.Tensor] = []
        for layer in policy.model.decoder.layers:
            layer.mlp.router.register_forward_hook(lambda router, args, output: maps.append(output[1]))
        outputs = policy.logprobs(pack_rank(batch, self.topology.dp_rank), temperature=batch.temperature)
        numbers = [number for (number,) in batch.plan[0][self.topology.dp_rank]]
        num_layers = len(policy.model.decoder.layers)
        return {
            "experts": {
                number: torch.stack(maps[place * num_layers : (place + 1) * num_layers], dim=1)
                for place, number in enumerate(numbers)
            },
            "logprobs": dict(zip(numbers, [output.logprobs_N for output in outputs or []], strict=True)),
        }

    def close(self) -> None:
        from megatron_ext.parallel.topology import shutdown_distributed

        for executor in self.executors.values():
            executor.close()
        shutdown_distributed()


class Trainer:
    """All ranks of a layout."""

    def __init__(self, layout: Layout, hf_dir: Path) -> None:
        self.layout = layout
        port = free_port()
        self.ranks = [
            Served(TrainRank, rank, layout, port, hf_dir, method="forkserver")  # Megatron is imported once for all
            for rank in range(layout.world_size)
        ]

    def call(self, method: str, *args: Any) -> list[Any]:
        for rank in self.ranks:
            rank.ask(method, *args)
        return [rank.answer() for rank in self.ranks]

    def open(self, tp: int, bucket_bytes: int) -> int:
        """For one engine of `tp` ranks; returns the number of rounds."""
        engines = engine_slots(1, tp)
        settings = ReshardSettings(RolloutLayout(tp), engines, bucket_bytes, gpus_per_node=self.layout.world_size)
        return self.call("open", settings)[0]

    def assemble(self, tp: int, number: int, version: int) -> ShardRound:
        buckets = [bucket for bucket in self.call("assemble", tp, number, version) if bucket is not None]
        return ShardRound(version=version, engines=[sorted(buckets, key=lambda bucket: bucket.tp_rank)])

    def begin_closing(self) -> None:
        for rank in self.ranks:
            rank.begin_closing()

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()


class EngineProcess:
    """SGLang as the rollout actor drives it."""

    def __init__(
        self, hf_dir: Path, section: RolloutSection, tells_experts: bool, dtype: str, initial_version: int | None
    ) -> None:
        from hybridflow.rollout.cpu.process_server import start_server
        from hybridflow.rollout.engine.sglang_engine import SGLangEngine
        from megatron_ext.platform.device import CPU

        start_server()

        arguments = build_arguments(section, dtype=dtype, seed=0, tells_experts=tells_experts)
        verify = section.verify_weights
        self.engine = SGLangEngine(
            str(hf_dir), arguments, run_seed=0, index=0, verify=verify, device=CPU, initial_version=initial_version
        )
        self.begin_weights = self.engine.begin_weights
        self.load_bucket = self.engine.load_bucket
        self.end_weights = self.engine.end_weights
        self.join_group = self.engine.join_group

    def load_as_on_a_gpu(self, round_: ShardRound, damaged: bool) -> None:
        """With payloads of train workers that are passed on as they are, and digests; only what lies where differs."""
        import msgspec
        import torch
        from sglang.srt.utils import MultiprocessingSerializer

        buckets = []
        for bucket in round_.engines[0]:
            assert bucket.handle is not None
            bytes_B = map_buffer(bucket.handle)
            named = list(cut_buffer(bytes_B, [(entry.name, entry.shape) for entry in bucket.entries], torch.float32))
            entries = describe_shards(named, on_host=False)
            if damaged:
                entries[-1] = msgspec.structs.replace(entries[-1], checksum=entries[-1].checksum ^ 1)
            payload = MultiprocessingSerializer.serialize(bytes_B[: sum(tensor.nbytes for _, tensor in named)])
            buckets.append(msgspec.structs.replace(bucket, handle=None, entries=entries, payload=payload))
        self.engine.load_bucket(ShardRound(version=round_.version, engines=[buckets]))

    def overwrite(self, name: str, tensor: torch.Tensor) -> None:
        """Behind the back of all that checks."""
        from sglang.srt.utils import MultiprocessingSerializer

        payload = MultiprocessingSerializer.serialize([(name, tensor)])
        self.engine.weights.api.update([payload], "direct")

    def greedy(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        from hybridflow.types import Lease, SamplingParams
        from tests.builders import build_prompt, build_request

        leases = []
        for number, tokens in enumerate(prompts):
            request = build_request(build_prompt(f"p{number}", token_ids=tokens), group_id=f"g{number:04d}")
            leases.append(Lease(request=request, attempt=1, indices=[0]))
        completions = self.draw(leases, SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens))
        return [c.token_ids for c in sorted(completions, key=lambda completion: completion.group_id)]

    def draw(self, leases: list[Lease], sampling: SamplingParams) -> list[Completion]:
        """Completions that the leases ask for, in the order in which they ended."""
        done: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self.engine.submit(leases, sampling, lambda attempt, completion: done.put(completion))
        return [done.get(timeout=REPLY_TIMEOUT_S) for lease in leases for _ in lease.indices]

    def close(self) -> None:
        for pid in self.engine.child_pids():  # an orderly end takes seconds, and nothing is left to be saved
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def start_engine(
    hf_dir: Path, tp: int, *, tells_experts: bool = False, dtype: str = "float32", initial_version: int | None = None
) -> Served:
    """`initial_version` confirms the weights of `hf_dir`; without it they have to be published."""
    section = RolloutSection(
        tp_size=tp,
        num_threads=1,
        context_tokens=512,
        kv_cache_tokens=4096,
        max_running_requests=8,
        verify_weights="all",
    )
    given = (hf_dir, section, tells_experts, dtype, initial_version)
    return Served(EngineProcess, *given, environment=engine_environment(section, 0))
