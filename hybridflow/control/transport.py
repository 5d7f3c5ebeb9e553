"""Chooses how weights travel, and refuses what the choice cannot serve before anything is started."""

from __future__ import annotations

from pathlib import Path

import torch

from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError
from hybridflow.trainer.layout import read_model, to_layout
from hybridflow.weights.reshard.rollout_layout import RolloutLayout, check_cpu_layout
from hybridflow.weights.reshard.settings import ReshardSettings, engines_in_order

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
FOREIGN_LAYOUTS = (
    "quantization",
    "enable_dp_attention",
    "pp_size",
    "dp_size",
    "dtype",
    "lora_paths",
    "json_model_override_args",
)
"""Arguments of SGLang under which its ranks hold other parameters than the planner knows."""


def exact_settings(config: Config, hf_dir: str | Path) -> ReshardSettings | None:
    """What exact resharding needs, None where the configuration chooses buckets of whole tensors.

    Raises ConfigError, naming the key, if exact resharding cannot serve the model or the layouts.
    """
    rollout = config.rollout
    if rollout.weight_transport != "exact":
        return None
    remedy = "; or set rollout.weight_transport = 'hf_buckets'"
    for key in FOREIGN_LAYOUTS:
        if key in rollout.sglang:
            raise ConfigError(
                f"rollout.sglang.{key} = {rollout.sglang[key]!r}: exact resharding does not know how SGLang then lays "
                f"its parameters out. Remove it{remedy}"
            )
    train = to_layout(config.train.layout)
    layout = RolloutLayout(rollout.tp_size, int(rollout.sglang.get("ep_size", 1)))
    if train.world_size < layout.tp:
        raise ConfigError(
            f"rollout.tp_size = {layout.tp}: exact resharding puts each rank of an engine beside a train worker, and "
            f"train.layout has {train.world_size}. Choose a smaller tp_size{remedy}"
        )
    settings = ReshardSettings(
        layout,
        engines_in_order(rollout.num_engines, layout.tp, train.world_size),
        int(rollout.weight_bucket_mib * 2**20),
    )
    hf_config = read_model(hf_dir)
    try:
        settings.schedule(hf_config, train, ELEMENT_BYTES[config.model.dtype])
        if not torch.cuda.is_available():
            check_cpu_layout(hf_config, layout)
    except ConfigError as error:
        raise ConfigError(f"rollout.weight_transport = 'exact' cannot serve this: {error}{remedy}") from error
    return settings
