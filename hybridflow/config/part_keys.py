"""Keys set for another part of the algorithm than the chosen one, by who set them: values alone do not tell that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hybridflow.config.algorithm_parts import PARAMETERS
from hybridflow.config.presets import is_resolved, name_source, read_preset, value_in
from hybridflow.config.toml_tree import TomlTree, format_value

BOUND = "algorithm.loss"
"""A choice that keys of a preset stand and fall with: what clips ratios of sequences is nothing for those of tokens."""


def find_idle_keys(config: Any, tree: TomlTree) -> Iterator[str]:
    """Gives "<what is wrong, with keys, values and who set them>. Remedy: <what to do>" of each key that was set for
    another part than the chosen one, and would do nothing or something else.

    `config` is what `tree` came to. The resolved.json of a run sets every key, which chooses none; keys of a preset
    whose part lies beneath another choice are left idle, but for those of a loss.
    """
    preset = config.algorithm.preset
    for kind, keys_of in PARAMETERS.items():
        choice = f"algorithm.{kind}"
        part = value_in(config, choice)
        for name in dict.fromkeys(name for names in keys_of.values() for name in names):
            key = f"algorithm.{name}"
            source = tree.source_of(tuple(key.split(".")))
            if source is None or is_resolved(source):
                continue
            takers = [taker for taker, names in keys_of.items() if name in names]
            if preset is not None and source == name_source(preset):
                meant = next((value.value for value in read_preset(preset).values if value.key == choice), part)
                if choice == BOUND and meant != part and part in keys_of:
                    yield _tell_bound(choice, key, meant, preset, config, tree)
            elif part not in takers:
                yield _tell_idle(choice, key, takers, config, tree)


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
