"""Layout of a model over the ranks of an SGLang engine, and whether a model fits."""

from __future__ import annotations

from dataclasses import dataclass

from hybridflow.errors import ConfigError
from megatron_ext.hf.config import HFConfig


@dataclass(frozen=True)
class RolloutLayout:
    """Sizes of one engine. Without attention data parallelism, attention is cut over all `tp` ranks."""

    tp: int = 1
    """Ranks of an engine."""
    ep: int = 1
    """Groups of ranks that share the experts; within a group, each expert is cut over tp / ep ranks."""

    @property
    def expert_tp(self) -> int:
        return self.tp // self.ep

    def expert_coordinates(self, tp_rank: int) -> tuple[int, int]:
        """(expert parallel, expert tensor parallel) rank; the second is the fastest (SGLang's moe_ep and moe_tp)."""
        return divmod(tp_rank, self.expert_tp)


def check_rollout_layout(hf_config: HFConfig, rollout: RolloutLayout, world_size: int) -> None:
    """Raises ConfigError unless SGLang can cut the model so, and engines of this size fill the GPUs."""
    tp, ep = rollout.tp, rollout.ep
    for key, size in (("tp", tp), ("ep", ep)):
        if size < 1:
            raise ConfigError(f"rollout {key} = {size}: a parallel size must be at least 1; use 1 for none")
    if world_size % tp:
        raise ConfigError(
            f"rollout tp = {tp}: it must divide the {world_size} GPUs that training uses, as engines share them; "
            f"choose one of {_divisors(world_size)}"
        )
    _check_divides("tp", tp, "attention heads", hf_config.num_heads)
    if hf_config.moe is None:
        _check_divides("tp", tp, "rows of the feed-forward width", hf_config.ffn_hidden_size)
    if hf_config.num_kv_heads % tp and tp % hf_config.num_kv_heads:
        raise ConfigError(
            f"rollout tp = {tp}: it must divide the model's {hf_config.num_kv_heads} key-value heads, or be a multiple "
            "of them, where each head is held by several ranks"
        )
    _check_experts(hf_config, rollout)


SGLANG_CPU_PADDING = 32
"""SGLang's CPU engine pads widths to a multiple of it on each rank (0.5.23, configs/update_config.py)."""


def check_cpu_layout(hf_config: HFConfig, rollout: RolloutLayout) -> None:
    """Raises ConfigError for what SGLang lays out differently on a CPU: widths that it pads, key-value heads too."""
    width, key = hf_config.ffn_hidden_size, "intermediate_size"
    if hf_config.moe is not None:
        width, key = hf_config.moe.ffn_hidden_size, "moe_intermediate_size"
    multiple = SGLANG_CPU_PADDING * rollout.tp
    if width % multiple:
        raise ConfigError(
            f"{key} = {width}: on a CPU SGLang pads it to a multiple of 32 x rollout tp = {multiple}; choose another tp"
        )
    if hf_config.num_kv_heads % rollout.tp:
        raise ConfigError(
            f"rollout tp = {rollout.tp}: on a CPU SGLang pads the model's {hf_config.num_kv_heads} key-value heads to "
            f"a multiple of it; choose one of {_divisors(hf_config.num_kv_heads)}"
        )


def _check_experts(hf_config: HFConfig, rollout: RolloutLayout) -> None:
    moe = hf_config.moe
    if moe is None:
        if rollout.ep > 1:
            raise ConfigError(
                f"rollout ep = {rollout.ep}: model_type = {hf_config.model_type!r} has no experts; set ep = 1"
            )
        return
    if not all(moe.layers):
        without = [layer for layer, has_experts in enumerate(moe.layers) if not has_experts]
        raise ConfigError(
            f"model_type = {hf_config.model_type!r} with layers {without[:5]} "
            "without experts: SGLang builds experts in every layer of this model (0.5.23, models/qwen3_moe.py), so it "
            "cannot serve it; use a model with experts in all layers"
        )
    if rollout.tp % rollout.ep:
        raise ConfigError(
            f"rollout ep = {rollout.ep}: it must divide tp = {rollout.tp}; choose one of {_divisors(rollout.tp)}"
        )
    _check_divides("ep", rollout.ep, "experts", moe.num_experts)
    _check_divides("tp / ep", rollout.expert_tp, "rows of an expert's feed-forward width", moe.ffn_hidden_size)
    if rollout.expert_tp > moe.num_experts:
        raise ConfigError(
            f"rollout tp / ep = {rollout.expert_tp}: SGLang refuses more than the model's {moe.num_experts} experts; "
            "raise ep or lower tp"
        )


def _check_divides(key: str, size: int, what: str, count: int) -> None:
    if count % size:
        raise ConfigError(
            f"rollout {key} = {size}: it must divide the model's {count} {what}; choose one of {_divisors(count)}"
        )


def _divisors(count: int) -> str:
    return ", ".join(str(n) for n in range(1, min(count, 64) + 1) if count % n == 0)
