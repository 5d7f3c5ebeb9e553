"""Parts of the algorithm that a configuration names, with the keys that each takes; what does not go together.

`algorithms/registry.py` says where each is; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridflow.config.algorithm_section import AlgorithmSection

PARAMETERS: dict[str, dict[str, tuple[str, ...]]] = {
    "loss": {
        "clip": ("clip_low", "clip_high"),
        "dual_clip": ("clip_low", "clip_high", "clip_dual"),
        "gspo": ("clip_low", "clip_high"),
        "cispo": ("clip_low", "clip_high"),
        "sapo": ("tau_pos", "tau_neg"),
    },
    "advantage": {
        "group_relative": ("normalise_std",),
        "dr_grpo": (),
        "rloo": (),
        "reinforce_pp": (),
        "task_std": (),
    },
    "aggregation": {
        "token_mean": (),
        "sequence_mean": (),
        "constant": ("normaliser_tokens",),
    },
}
"""By key of the section and name of the part: the keys of the section that it takes."""
OWN_DEFAULTS: dict[str, dict[str, float]] = {
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"clip_low": 1.0, "clip_high": 4.0},
}
"""By loss, values of keys that nobody set, where its scale is not that of the section's defaults."""
OF_SEQUENCES = frozenset({"gspo"})
"""Losses of whole sequences."""
AVERAGES_SEQUENCES = frozenset({"sequence_mean"})
"""Aggregations that weigh every sequence alike, which such a loss needs."""


def with_own_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """The keys that were set, and those for which the loss has values of its own."""
    loss = values.get("loss")
    return {**OWN_DEFAULTS.get(loss, {}), **values} if isinstance(loss, str) else values


def find_part_conflicts(section: AlgorithmSection) -> Iterator[str]:
    """Gives "<what is wrong, with the values>. Remedy: <what to do>" of each rule that the parts break.

    A key counts as set where its value is not the default: a resolved configuration lists every key.
    """
    for kind, parts in PARAMETERS.items():
        chosen = getattr(section, kind)
        for key in sorted({key for keys in parts.values() for key in keys}):
            value, default = getattr(section, key), type(section).model_fields[key].default
            takers = [name for name, keys in parts.items() if key in keys]
            if value != default and chosen in parts and chosen not in takers:
                yield (
                    f"algorithm.{key} ({value}) is a parameter of algorithm.{kind} = {' or '.join(takers)}, and "
                    f"algorithm.{kind} ({chosen}) does not take it. Remedy: leave algorithm.{key} out, or choose "
                    f"{'that' if len(takers) == 1 else 'one of those'} {kind}"
                )
    if section.loss in OF_SEQUENCES and section.aggregation not in AVERAGES_SEQUENCES:
        yield (
            f"algorithm.loss ({section.loss}) is of whole sequences, and algorithm.aggregation "
            f"({section.aggregation}) would weigh them by their length. Remedy: set algorithm.aggregation = "
            f'"{" or ".join(sorted(AVERAGES_SEQUENCES))}", or choose a loss of tokens'
        )
