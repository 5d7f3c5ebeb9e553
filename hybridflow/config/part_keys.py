"""Keys set for another part of the algorithm than the chosen one, by who set them: values alone do not tell that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hybridflow.config.algorithm_parts import PARAMETERS
from hybridflow.config.presets import is_resolved, name_source, read_preset, value_in
from hybridflow.config.rollout_correction_section import WEIGHTS
from hybridflow.config.toml_tree import TomlTree, format_value

_CORRECTION = "algorithm.rollout_correction"
KEYS_OF: dict[str, dict[str, list[str]]] = {
    **{
        f"algorithm.{kind}": {part: [f"algorithm.{name}" for name in names] for part, names in parts.items()}
        for kind, parts in PARAMETERS.items()
    },
    f"{_CORRECTION}.token_weight": {
        part: [f"{_CORRECTION}.{name}" for name in names] for part, names in WEIGHTS.items()
    },
}
"""By key that chooses a part, and name of the part: the keys that it takes."""
BOUND = "algorithm.loss"
"""A choice that keys of a preset stand and fall with: what clips ratios of sequences is nothing for those of tokens."""


def find_idle_keys(config: Any, tree: TomlTree) -> Iterator[str]:
    """Gives "<what is wrong, with keys, values and who set them>. Remedy: <what to do>" of each key that was set for
    another part than the chosen one, and would do nothing or something else.

    `config` is what `tree` came to. The resolved.json of a run sets every key, which chooses none; keys of a preset
    whose part lies beneath another choice are left idle, but for those of a loss.
    """
    preset = config.algorithm.preset
    for choice, keys_of in KEYS_OF.items():
        part = value_in(config, choice)
        for key in dict.fromkeys(key for keys in keys_of.values() for key in keys):
            source = _setter(key, tree)
            if source is None or is_resolved(source):
                continue
            takers = [taker for taker, keys in keys_of.items() if key in keys]
            if preset is not None and source == name_source(preset):
                meant = next((value.value for value in read_preset(preset).values if value.key == choice), part)
                if choice == BOUND and meant != part and part in keys_of:
                    yield _tell_bound(choice, key, meant, preset, config, tree)
            elif part not in takers:
                yield _tell_idle(choice, key, takers, config, tree)
    key, needed = f"{_CORRECTION}.off_policy_against", f"{_CORRECTION}.off_policy_delta"
    source = _setter(key, tree)
    if source is not None and not is_resolved(source) and value_in(config, needed) is None:
        yield (
            f"{_told(key, config, tree)} is for {needed}, which is not set. Remedy: leave the first out, or set the "
            "second, such as 1e-4"
        )


def _setter(key: str, tree: TomlTree) -> str | None:
    """Who set a key; None where it has its default, though a table above it was written in one piece."""
    path = tuple(key.split("."))
    return None if tree.value_at(path) is None else tree.source_of(path)


def _tell_idle(choice: str, key: str, takers: list[str], config: Any, tree: TomlTree) -> str:
    others = " or ".join(map(format_value, takers))
    return (
        f"{_told(key, config, tree)} is a parameter of {choice} = {others}, and {_told(choice, config, tree)} does not "
        f"take it. Remedy: leave {key} out, or set {choice} = {others}"
    )


def _tell_bound(choice: str, key: str, meant: str, preset: str, config: Any, tree: TomlTree) -> str:
    return (
        f"{_told(key, config, tree)} was chosen for {choice} = {format_value(meant)}, and "
        f"{_told(choice, config, tree)} lies over that. Remedy: keep {format_value(meant)}, set {key} as well, or "
        f"leave algorithm.preset out (hybridflow config --preset {preset} prints its values to begin with)"
    )


def _told(key: str, config: Any, tree: TomlTree) -> str:
    source = tree.source_of(tuple(key.split("."))) or "default"
    return f"{key} = {format_value(value_in(config, key))} [{source}]"
