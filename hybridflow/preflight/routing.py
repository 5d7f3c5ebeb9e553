"""Routing replay: does the model have experts, and is there room for them in a message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from hybridflow.config.phases import phase_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError
from hybridflow.preflight.subject import Finding, Subject
from hybridflow.wire.codec import MAX_FRAME_BYTES

OTHER_BYTES = 2**20
"""Size of a message beside tokens and experts, rounded up."""
TOKEN_BYTES = 32
"""Size of a token of a completion beside its experts: id, log-probability, text."""


class ExpertSizes(Protocol):
    """Sizes of a mixture-of-experts layer, as each reader of a model has them."""

    @property
    def num_experts(self) -> int: ...

    @property
    def experts_per_token(self) -> int: ...


def check_routing(subject: Subject) -> Iterator[Finding]:
    """algorithm.routing_replay, from config.json alone."""
    if subject.config.algorithm.routing_replay == "off" or (shape := subject.shape) is None:
        return
    refuse_routing(subject.config, shape.model_type, shape.moe, shape.num_layers)
    assert shape.moe is not None
    width = expert_bytes(shape.moe, shape.num_layers)
    yield Finding("fact", f"experts are replayed: {width:,} bytes of each token travel with completions")


def refuse_routing(config: Config, model_type: str, experts: ExpertSizes | None, num_layers: int) -> None:
    """Raises ConfigError where `config` replays experts that the model has not, or that no message could hold."""
    if config.algorithm.routing_replay == "off":
        return
    if experts is None:
        raise ConfigError(
            f'algorithm.routing_replay = "engine": the model in model.path = {config.model.path!r} (model_type = '
            f'{model_type!r}) is dense, and has no router to replay. Remedy: set algorithm.routing_replay = "off", or '
            f"train a mixture of experts"
        )
    width = expert_bytes(experts, num_layers)
    for number in range(max(1, len(config.curriculum.phases))):
        at = phase_config(config, number) if config.curriculum.phases else config
        prompt, new = at.data.max_prompt_tokens, at.rollout.max_new_tokens
        needed = (prompt + new) * width + new * TOKEN_BYTES + OTHER_BYTES
        if needed > MAX_FRAME_BYTES:
            raise ConfigError(
                f'algorithm.routing_replay = "engine": {width} bytes of experts per token ({num_layers} layers x '
                f"{experts.experts_per_token}) make a completion of data.max_prompt_tokens ({prompt}) + "
                f"rollout.max_new_tokens ({new}) tokens {needed / 2**20:.0f} MiB, and a message has at most "
                f"{MAX_FRAME_BYTES // 2**20}. Remedy: lower one of the two to {_largest(width)} tokens together, or "
                f'set algorithm.routing_replay = "off"'
            )


def expert_bytes(experts: ExpertSizes, num_layers: int) -> int:
    """Bytes of the experts of one token on the way."""
    return num_layers * experts.experts_per_token * (1 if experts.num_experts <= 256 else 2)


def _largest(width: int) -> int:
    return (MAX_FRAME_BYTES - OTHER_BYTES) // (width + TOKEN_BYTES)
