"""Ray shell of a rollout engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hybridflow.cluster.session import this_device
from hybridflow.observability.log import configure
from hybridflow.observability.process_log import redirect_output
from hybridflow.rollout.engine import SGLangEngine
from hybridflow.types import Completion, GroupRequest, RolloutReport, SamplingParams
from hybridflow.weights.manifest import Bucket, TensorEntry
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.endpoint import Endpoint


class RolloutWorker:
    """One engine. Created with max_concurrency above 1, so that `abort` and `ping` answer while `generate` runs."""

    def __init__(
        self,
        engine_id: str,
        model_path: str,
        arguments: dict[str, Any],
        run_seed: int,
        endpoint: Endpoint,
        log_path: str,
    ) -> None:
        redirect_output(Path(log_path))
        configure("rollout")
        device = this_device()
        placed = {} if device is None else {"base_gpu_id": device}
        self._engine = SGLangEngine(model_path, placed | arguments, run_seed=run_seed)
        self._sender = CompletionSender(endpoint, engine_id)

    def ping(self) -> int:
        """Process id."""
        return os.getpid()

    def child_pids(self) -> list[int]:
        """Process ids of the engine's own processes."""
        return self._engine.child_pids()

    def generate(self, requests: list[GroupRequest], sampling: SamplingParams) -> RolloutReport:
        """Decodes the groups; each completion goes to the reward stream as soon as it ends."""
        finished: list[tuple[int, int, int]] = []

        def deliver(completion: Completion) -> None:
            self._sender.send(completion)
            finished.append((completion.prompt_tokens, completion.cached_tokens, len(completion.token_ids)))

        number = self._engine.generate(requests, sampling, deliver)
        prompt, cached, response = (sum(column) for column in zip(*finished, strict=True)) if finished else (0, 0, 0)
        return RolloutReport(
            num_completions=number, prompt_tokens=prompt, cached_tokens=cached, response_tokens=response
        )

    def abort(self) -> None:
        self._engine.abort()

    def begin_weights(self, version: int) -> None:
        self._engine.begin_weights(version)

    def load_bucket(self, bucket: Bucket) -> None:
        self._engine.load_bucket(bucket)

    def end_weights(self) -> tuple[int, list[TensorEntry]]:
        return self._engine.end_weights()

    def close(self) -> None:
        self._sender.close()
        self._engine.shutdown()
