"""The model as each phase opens it: layout, YaRN, and the window that it then has."""

from __future__ import annotations

from pathlib import Path

from hybridflow.config.phases import name_phase, phase_config
from hybridflow.config.sections import Config
from hybridflow.policy.stretched import native_window, stretch_config
from hybridflow.preflight.inputs import check_window
from hybridflow.runtime.transport import choose_transport
from hybridflow.trainer.layout import check_model_layout, read_model
from megatron_ext.hf.config import read_json_config


def check_phase_models(config: Config) -> None:
    """Raises ConfigError, naming the phase, for a layout, YaRN or window of a phase that the model does not have."""
    path = Path(config.model.path)
    for number, phase in enumerate(config.curriculum.phases):
        key, at = f"curriculum.phases.{number}", phase_config(config, number)
        window, source = (
            read_model(path).window_tokens,
            f"max_position_embeddings and rope scaling in {path}/config.json",
        )
        if phase.layout is not None:
            check_model_layout(path, phase.layout, layout_named=f"{key}.layout")
            choose_transport(at, path, has_cuda=None)
        if phase.yarn_factor is not None:
            raw = read_json_config(path)
            stretch_config(raw, phase.yarn_factor, f"{name_phase(phase, number)}: model.path = {config.model.path!r}")
            window = int(phase.yarn_factor * native_window(raw))
            source = f"{key}.yarn_factor = {phase.yarn_factor:g} times the native {native_window(raw)}"
        own = f"{key}.context_tokens" if phase.context_tokens else "rollout.context_tokens"
        check_window(at, window, source, f"{name_phase(phase, number)}: {own}")
