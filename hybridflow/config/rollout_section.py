"""`[rollout]`: sampling, the engines, and how weights reach them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hybridflow.config.section import Section


class RolloutSection(Section):
    """Sampling and the engines."""

    num_engines: int = Field(default=1, ge=1)
    """Engines, each in slots of its own; a group is decoded by one of them."""
    tp_size: int = Field(default=1, ge=1)
    """Tensor parallel: ranks of each engine."""
    own_devices: bool = False
    """Engines are on devices of their own, beyond those of train.layout, and share none with the trainer."""

    temperature: float = Field(default=1.0, ge=1e-3)
    """Logits are divided by it. Engines take one below 1e-6 for 0."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Below 1, engines say which tokens they left in at each place, and the trainer's probabilities are over these."""
    max_new_tokens: int = Field(default=16, ge=1)
    """Longest completion."""
    context_tokens: int = Field(default=32_768, ge=2)
    """Window of the engine: prompt and completion together."""
    kv_cache_tokens: int | None = Field(default=None, ge=1)
    """Size of the KV pool in tokens; empty: the engine decides from free memory."""
    max_running_requests: int = Field(default=64, ge=1)
    """Completions that an engine decodes at a time."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Texts that end a completion."""
    over_sampling: float = Field(default=1.0, ge=1, le=8)
    """Groups under way in a step, as a multiple of train.prompts_per_step. Once as many as that are complete the rest
    is stopped and carried over to the next step. Where completions are resumed it counts as at most 1 +
    rollout.max_staleness: more groups would be too old before a step could train on them."""
    dynamic_sampling: bool = False
    """Only groups that a filter lets through count for a step, those whose rewards differ; each other one is replaced
    at once by a new group, until train.prompts_per_step count. What is complete beyond that is kept for the next step.
    """
    max_generation_batches: int = Field(default=10, ge=1)
    """With dynamic sampling: most groups of a step, carried ones included, as a multiple of those under way."""
    when_too_few: Literal["train", "skip"] = "train"
    """Outcome of a step that has too few groups that count after max_generation_batches: it trains on these, or is
    skipped and leaves them to the next step."""
    partial: Literal["resume", "discard"] = "resume"
    """Carried groups in the next step: their completions are continued, or start again."""
    max_staleness: int = Field(default=2, ge=1)
    """Most policy versions between the one that decoded a token and the one that its step began with. A step does not
    end before the groups are complete that the next one could not train on."""
    start_timeout_s: float = Field(default=1800.0, gt=0)
    """Longest time until an engine answers after its start: 65 GB of weights are read, kernels compiled."""
    heartbeat_s: float = Field(default=1.0, gt=0)
    """Time between two looks at an engine."""
    hang_timeout_s: float = Field(default=600.0, gt=0)
    """An engine that does not answer, or has work and does not move, for so long is killed and started again."""
    max_restarts: int = Field(default=3, ge=0)
    """Starts in a row of one engine without a completion in between, before the run ends with an error."""
    num_threads: int = Field(default=2, ge=1)
    """CPU threads of each rank of an engine."""
    weight_transport: Literal["auto", "exact", "hf_buckets", "broadcast"] = "auto"
    """How weights reach the engines: "exact" moves each byte from the shard that has it to the shard that needs it;
    "hf_buckets" gathers whole tensors under Hugging Face names, for models and layouts that "exact" cannot serve.
    "auto" takes the first where it can serve the run, and says why where it cannot; `summary.json` has the choice.
    "broadcast" sends whole tensors from device to
    device over a process group of trainer and engines, and is what "auto" takes with rollout.own_devices."""
    weight_bucket_mib: float = Field(default=256, gt=0)
    """Size of a bucket of weights; a train worker holds two."""
    release_memory: Literal["auto", "on", "off"] = "auto"
    """Engines give KV pool, weights and CUDA graphs back while the trainer works, and get their weights again;
    "auto": where there is CUDA. On a CPU the pages go back to the system."""
    verify_weights: Literal["all", "sample", "none"] = "sample"
    """Which parameters are read back from the engines after an update and compared: every one (to debug), or in turn
    one of sixteen. With "hf_buckets" only those that SGLang keeps as they came. A difference names tensor and ranks,
    and ends the run."""
    sglang: dict[str, Any] = Field(default_factory=dict)
    """Passed to SGLang's ServerArgs as it is, checked against the installed version."""

    @model_validator(mode="after")
    def _check(self) -> RolloutSection:
        for key in ("tp_size", "base_gpu_id", "gpu_id_step", "nnodes"):
            if key in self.sglang:
                raise ValueError(
                    f"rollout.sglang.{key} ({self.sglang[key]}) would not be known to the placement of engines. "
                    f"Remedy: {'set rollout.tp_size' if key == 'tp_size' else 'remove it'}"
                )
        if {"exact": False, "broadcast": True}.get(self.weight_transport, self.own_devices) != self.own_devices:
            raise ValueError(
                f"rollout.weight_transport = {self.weight_transport!r} with rollout.own_devices = "
                f"{str(self.own_devices).lower()}: exact shards are handed over on the device of a train worker, and a "
                f"broadcast goes to other devices. Remedy: set rollout.weight_transport = 'auto'"
            )
        if self.hang_timeout_s <= self.heartbeat_s:
            raise ValueError(
                f"rollout.hang_timeout_s ({self.hang_timeout_s:g}) is not above rollout.heartbeat_s "
                f"({self.heartbeat_s:g}): every engine would be taken for hung. Remedy: raise the first"
            )
        if not self.dynamic_sampling and (self.max_generation_batches != 10 or self.when_too_few != "train"):
            raise ValueError(
                f"rollout.max_generation_batches ({self.max_generation_batches}) and rollout.when_too_few "
                f"({self.when_too_few!r}) say when dynamic sampling gives up, and rollout.dynamic_sampling is false. "
                f"Remedy: set rollout.dynamic_sampling = true, or leave both out"
            )
        if self.dynamic_sampling and self.max_generation_batches == 1 and self.over_sampling == 1:
            raise ValueError(
                "rollout.dynamic_sampling = true with rollout.max_generation_batches (1) and rollout.over_sampling "
                "(1): a step would begin no group beyond those that it needs, so none could be replaced. Remedy: "
                "raise one of the two"
            )
        if self.over_sampling > 1 and self.partial == "resume" and self.stop:
            raise ValueError(
                f"rollout.stop ({self.stop}) with rollout.over_sampling ({self.over_sampling:g}) above 1: a stop text "
                f"that begins before the place where a completion is resumed would be missed. Remedy: set "
                f"rollout.partial = 'discard', or end completions by a token"
            )
        return self

    @property
    def carries_groups(self) -> bool:
        """Whether a step may leave groups to the next one."""
        return self.over_sampling > 1 or self.dynamic_sampling

    @property
    def kept_versions(self) -> int:
        """Versions over which a group is kept; 0: what was begun under another one starts again."""
        return self.max_staleness if self.partial == "resume" else 0

    def count_under_way(self, prompts_per_step: int) -> int:
        """Groups under way in a step that trains on so many."""
        wanted = math.ceil(round(prompts_per_step * self.over_sampling, 6))
        return min(wanted, prompts_per_step * (1 + self.kept_versions)) if self.kept_versions else wanted
