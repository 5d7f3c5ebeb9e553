"""Rules of positions: what only one of trainer and engines would compute of them is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridflow.config.sections import Config

OVERRIDE = "json_model_override_args"
ENGINE_ROPE = frozenset({OVERRIDE, "context_length", "model_path"})
"""Arguments of SGLang that change what engines make of positions, and that the trainer does not know."""
ROPE_KEYS = ("rope_scaling", "rope_parameters")
"""Keys of a config.json; the older one hides the other where both are there."""


def find_rope_conflicts(config: Config) -> Iterator[str]:
    """Gives "<what is wrong, with the values>. Remedy: <what to do>": positions that one side alone stretches."""
    given = config.rollout.sglang
    phases = [(number, one) for number, one in enumerate(config.curriculum.phases) if one.yarn_factor is not None]
    for number, phase in phases:
        if own := sorted(ENGINE_ROPE & given.keys()):
            yield (
                f"curriculum.phases.{number}.yarn_factor = {phase.yarn_factor:g} of phase {phase.name!r} with "
                f"rollout.sglang.{own[0]} = {given[own[0]]!r}: the latter changes the model of the engines alone, and "
                f"the trainer would compute another one. Remedy: remove rollout.sglang.{own[0]}"
            )
    if not phases and (kind := _stretching(given.get(OVERRIDE))) is not None:
        yield (
            f"rollout.sglang.{OVERRIDE} = {given[OVERRIDE]!r} stretches positions (rope_type = {kind!r}) in the "
            f"engines alone, and the trainer would compute another model. Remedy: remove it; curriculum.phases with "
            f"yarn_factor, or rope_scaling in the config.json of model.path, are read by both"
        )


def _stretching(override: Any) -> str | None:
    """The kind of scaling that an override of the model's config sets; None where it sets none."""
    try:
        content = json.loads(override) if isinstance(override, str) else override
    except ValueError:
        return None  # SGLang refuses it
    for key in ROPE_KEYS if isinstance(content, dict) else ():
        rope = content.get(key)
        kind = (rope.get("rope_type") or rope.get("type")) if isinstance(rope, dict) else None
        if kind not in (None, "default"):
            return str(kind)
    return None
