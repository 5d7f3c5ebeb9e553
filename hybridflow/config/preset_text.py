"""Presets and sources as text: what a preset sets, whose each value of a configuration is, a line for a run's start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hybridflow.config.presets import NAMES, Preset, PresetValue, name_source, read_preset, value_in
from hybridflow.config.section import hide_secrets
from hybridflow.config.toml_tree import TomlTree, format_key_path, format_value


def print_preset(preset: Preset) -> Iterator[str]:
    """Lines of a .toml file with all values of a preset, each with its source beside it."""
    yield f"# Preset {preset.name}: {preset.title}"
    yield f'# algorithm.preset = "{preset.name}" sets these beneath what your files and --set say.'
    yield "# [P] stated in a paper, [C] read in released code, [ours] chosen here."
    section = ""
    width = max(len(_assign(value)) for value in preset.values)
    for value in sorted(preset.values, key=lambda value: value.key.rpartition(".")[0]):
        table = value.key.rpartition(".")[0]
        if table != section:
            yield f"\n[{table}]"
            section = table
        yield f"{_assign(value):{width}}  # {value.source}"
    for key, meaning in preset.left_open.items():
        yield f"\n# Left to you: {key}: {meaning}"


def compare_presets() -> Iterator[str]:
    """Lines of a Markdown table: each key that a preset sets, its value in each of them, and the kind of source."""
    presets = [read_preset(name) for name in NAMES]
    cells = {preset.name: {value.key: _cell(value) for value in preset.values} for preset in presets}
    yield f"| key | {' | '.join(NAMES)} |"
    yield "|---" * (len(NAMES) + 1) + "|"
    for key in sorted({key for of_preset in cells.values() for key in of_preset}):
        yield f"| `{key}` | {' | '.join(cells[name].get(key, '') for name in NAMES)} |"


def _cell(value: PresetValue) -> str:
    shown = value.value if isinstance(value.value, str) else format_value(value.value)
    return f"{shown} {value.origin}"


def tell_preset(config: Any) -> str | None:
    """One line about the preset of a run, for its start: how many values it has and which are set otherwise; None
    where there is none."""
    if config.algorithm.preset is None:
        return None
    preset = read_preset(config.algorithm.preset)
    changed = [
        f"{value.key} = {format_value(now)} instead of {format_value(value.value)}"
        for value in preset.values
        if (now := value_in(config, value.key)) != value.value
    ]
    told = f"preset {preset.name}: {len(preset.values)} values (hybridflow config --preset {preset.name})"
    left_open = [f"{key}: {meaning}" for key, meaning in preset.left_open.items() if not value_in(config, key)]
    return "; ".join([told, *(["set otherwise: " + ", ".join(changed)] if changed else []), *left_open])


def list_sources(config: Any, tree: TomlTree) -> Iterator[str]:
    """One line for each value that somebody set: key, value, and which file, `--set` or preset it is of. Of a preset's
    value also where it is from, or what it would have been."""
    name = config.algorithm.preset if "algorithm" in type(config).model_fields else None
    of_preset = {value.key: value for value in (read_preset(name).values if name else ())}
    by_preset = name_source(name or "")
    for key_path, source in sorted(tree.sources.items(), key=lambda item: tuple(map(str, item[0]))):
        key = format_key_path(key_path)
        told = hide_secrets(source)
        value, there = of_preset.get(key), tree.value_at(key_path)
        if value is not None and source == by_preset:
            told += f" {value.source}"
        elif value is not None and value.value != there:
            told += f"; {by_preset} has {format_value(value.value)}"
        yield f"{key} = {hide_secrets(format_value(there))}    [{told}]"


def _assign(value: PresetValue) -> str:
    return f"{value.key.rpartition('.')[2]} = {format_value(value.value)}"
