"""Presets: their values against a table written from the sources, what lies over them, and what is refused."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hybridflow.cli import app, mount_commands
from hybridflow.config.keys import list_keys
from hybridflow.config.load import dump_resolved, load_config, load_partly
from hybridflow.config.preset_text import compare_presets, print_preset, tell_preset
from hybridflow.config.presets import NAMES, read_preset, value_in
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError
from hybridflow.preflight.load import load_run
from hybridflow.recording.run_folder.train_folder import TrainFolder

MODEL = "model.path=configs/models/tiny"
GROUP = {"algorithm.advantage": "group_relative"}
NO_KL = {"algorithm.kl.place": "off"}
TOKENS = {"algorithm.loss": "clip", "algorithm.aggregation": "token_mean"}
CLIP_02 = {"algorithm.clip_low": 0.2, "algorithm.clip_high": 0.2}
RELEASED_ADAM = {
    "train.optimizer.beta1": 0.9, "train.optimizer.beta2": 0.999, "train.optimizer.weight_decay": 0.01,
    "train.optimizer.clip_grad": 1.0, "train.learning_rate": 2e-6, "train.lr_schedule": "constant",
    "train.lr_warmup_steps": 0,
}  # fmt: skip
LONG = {
    "algorithm.num_completions": 8,
    "train.prompts_per_step": 128,
    "rollout.temperature": 0.7,
    "rollout.top_p": 0.95,
}
DYNAMIC = {"rollout.dynamic_sampling": True, "rollout.over_sampling": 3.0, "rollout.max_generation_batches": 10}
FACTS: dict[str, dict[str, Any]] = {
    "grpo": GROUP
    | {"algorithm.loss": "clip", "algorithm.aggregation": "sequence_mean", "algorithm.num_completions": 64}
    | {"train.learning_rate": 1e-6, "train.num_updates_per_step": 1}
    | {"algorithm.kl.place": "loss", "algorithm.kl.coefficient": 0.04, "algorithm.kl.estimator": "k3"},
    "dapo": GROUP
    | NO_KL
    | TOKENS
    | {"algorithm.clip_low": 0.2, "algorithm.clip_high": 0.28, "algorithm.num_completions": 16}
    | {"train.prompts_per_step": 512, "train.mini_batch_prompts": 32, "train.learning_rate": 1e-6}
    | {"train.lr_warmup_steps": 20, "train.optimizer.weight_decay": 0.1, "train.optimizer.clip_grad": 1.0}
    | DYNAMIC
    | {"rollout.max_new_tokens": 20480, "reward.overlong.buffer_tokens": 4096, "reward.overlong.penalty_factor": 1.0},
    "dr_grpo": CLIP_02
    | NO_KL
    | {"algorithm.loss": "clip", "algorithm.advantage": "dr_grpo", "algorithm.aggregation": "constant"}
    | {"algorithm.num_completions": 8},
    "gspo": GROUP
    | NO_KL
    | {"algorithm.loss": "gspo", "algorithm.aggregation": "sequence_mean"}
    | {"algorithm.clip_low": 3e-4, "algorithm.clip_high": 4e-4},
    "cispo": GROUP
    | NO_KL
    | {"algorithm.loss": "cispo", "algorithm.aggregation": "token_mean"}
    | {"algorithm.clip_low": 1.0, "algorithm.clip_high": 4.0},
    "qwenlong_l1": GROUP
    | NO_KL
    | {"algorithm.entropy_coefficient": 0.001, "curriculum.retrospection.mode": "zero_accuracy_only"}
    | TOKENS
    | CLIP_02
    | RELEASED_ADAM
    | LONG
    | DYNAMIC
    | {"train.mini_batch_prompts": 32, "train.num_updates_per_step": 1, "rollout.max_new_tokens": 10_000}
    | {"data.max_prompt_tokens": 60_000, "reward.overlong.buffer_tokens": 1000, "reward.overlong.penalty_factor": 1.0},
    "qwenlong_l1_5": TOKENS
    | NO_KL
    | {"curriculum.task_balance": "equal"}
    | LONG
    | {"algorithm.advantage": "task_std", "train.num_updates_per_step": 1, "train.learning_rate": 2e-6}
    | {"train.lr_schedule": "constant", "data.max_prompt_tokens": 60_000, "rollout.max_new_tokens": 20_000},
}
"""Values that papers and released code have, written down apart from presets.toml."""
PAPER_SILENT = [
    *CLIP_02, "algorithm.entropy_coefficient", "rollout.over_sampling", "rollout.max_generation_batches",
    "train.optimizer.beta1", "train.optimizer.beta2", "train.optimizer.weight_decay",
    "train.optimizer.clip_grad", "train.lr_schedule", "train.lr_warmup_steps", "reward.overlong.buffer_tokens",
    "reward.overlong.penalty_factor",
]  # fmt: skip
"""Keys of qwenlong_l1 that are from the released code, and marked so."""


def load(*overrides: str, files: tuple[Path, ...] = ()) -> Config:
    return load_config(list(files), [MODEL, *overrides], Config)


def refusal(*overrides: str, files: tuple[Path, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, files=files)
    return str(caught.value)


def test_every_preset_has_facts() -> None:
    assert set(FACTS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_a_valid_run_of_sourced_values(name: str) -> None:
    preset = read_preset(name)
    config = load(f"algorithm.preset={name}")
    keys = {key.path for key in list_keys(Config)}
    assert {value.key for value in preset.values} <= keys
    assert all(any(f"{key}.".startswith(f"{left}.") for key in keys) for left in preset.left_open)
    for value in preset.values:
        assert value_in(config, value.key) == value.value, value.key
        assert value.origin in ("P", "C", "ours") and len(value.citation) > 10, value.key
        assert value.origin == "ours" or any(mark.isdigit() for mark in value.citation) or "/" in value.citation
    assert {key: value_in(config, key) for key in FACTS[name]} == FACTS[name]
    assert tomllib.loads("\n".join(print_preset(preset)))  # can be saved as a file to begin with


def test_what_a_paper_does_not_say_is_marked_as_released_code() -> None:
    origins = {value.key: value.origin for value in read_preset("qwenlong_l1").values}
    assert {key: origins[key] for key in PAPER_SILENT} == dict.fromkeys(PAPER_SILENT, "C")


def test_file_and_set_lie_over_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[algorithm]\npreset = "dapo"\nclip_high = 0.3\n[train.optimizer]\nweight_decay = 0.0\n')
    config = load("train.learning_rate=5e-6", files=(file,))
    assert (config.algorithm.clip_high, config.train.optimizer.weight_decay) == (0.3, 0.0)
    assert (config.train.learning_rate, config.train.prompts_per_step) == (5e-6, 512)
    told = tell_preset(config) or ""
    assert "algorithm.clip_high = 0.3 instead of 0.28" in told and "train.prompts_per_step" not in told
    assert tell_preset(load()) is None
    assert "algorithm.aepo.high: AEPO is off until it is set" in (
        tell_preset(load("algorithm.preset=qwenlong_l1_5")) or ""
    )


def test_a_resolved_configuration_has_the_preset_in_it_already(tmp_path: Path) -> None:
    config = load("algorithm.preset=gspo", "algorithm.clip_high=0.001")
    resolved = tmp_path / "resolved.json"
    dump_resolved(config, resolved)
    assert json.loads(resolved.read_text())["algorithm"]["loss"] == "gspo"
    assert load_config([resolved], [], Config) == config
    told = refusal("algorithm.preset=cispo", files=(resolved,))
    assert 'algorithm.preset = "cispo" [--set algorithm.preset=cispo]' in told and "Remedy: begin from" in told
    assert f'algorithm.loss = "gspo" [{resolved}]' in told


def test_a_run_is_resumed_by_what_its_preset_came_to(tmp_path: Path) -> None:
    of_run = [f"run.directory={tmp_path}", "train.num_steps=3"]
    begun = load("algorithm.preset=gspo", *of_run)
    folder = TrainFolder(begun)
    dump_resolved(begun, folder.resolved)
    printed = tmp_path / "printed.toml"
    printed.write_text("\n".join(print_preset(read_preset("gspo"))))
    folder.check_same_run(load(*of_run, files=(printed,)))
    folder.check_same_run(load_config([folder.resolved], ["train.num_steps=5"], Config))
    with pytest.raises(ConfigError, match=r"algorithm\.loss: was 'gspo', is 'cispo'"):
        folder.check_same_run(load("algorithm.preset=cispo", *of_run))


@pytest.mark.parametrize(
    ("overlay", "parts"),
    [
        (
            ["algorithm.preset=gspo", "algorithm.aggregation=token_mean"],
            ["algorithm.loss: preset gspo", "algorithm.aggregation: --set algorithm.aggregation=token_mean", "remedy:"],
        ),
        (
            ["algorithm.preset=gspo", "algorithm.tau_pos=1.0"],  # the default, so that only who set it can tell
            ["algorithm.tau_pos = 1.0 [--set", 'algorithm.loss = "gspo" [preset gspo]', "leave algorithm.tau_pos out"],
        ),
        (
            ["algorithm.preset=gspo", "algorithm.loss=clip"],
            [
                "algorithm.clip_low = 0.0003 [preset gspo]",
                'algorithm.loss = "clip" [--set',
                "or leave algorithm.preset",
            ],
        ),
        (
            ["algorithm.preset=dapo", "algorithm.normaliser_tokens=100"],
            ["algorithm.normaliser_tokens (100)", "algorithm.aggregation (token_mean)", "remedy:"],
        ),
        (
            ["algorithm.preset=qwenlong_l1", "rollout.max_new_tokens=100"],
            ["reward.overlong.buffer_tokens: preset qwenlong_l1", "rollout.max_new_tokens: --set"],
        ),
        (["algorithm.preset=gsp"], ["algorithm.preset = 'gsp'", "did you mean 'gspo'"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_an_overlay_that_contradicts_is_refused(overlay: list[str], parts: list[str]) -> None:
    told = refusal(*overlay)
    assert [part for part in parts if part not in told] == [], told
    problems = "\n".join(load_partly([], [MODEL, *overlay], Config).problems)
    assert [part for part in parts if part not in problems] == [], problems


def test_a_contradiction_beside_another_mistake_is_told_with_who_set_it() -> None:
    overlay = [MODEL, "algorithm.preset=dapo", "rollout.max_new_tokens=8", "train.num_stepps=3"]
    told = "\n".join(load_run([], overlay)[1])
    assert "did you mean 'num_steps'" in told
    assert "reward.overlong.buffer_tokens (4096) is above rollout.max_new_tokens (8)" in told
    assert "(set by: reward.overlong.buffer_tokens: preset dapo; rollout.max_new_tokens: --set" in told


def test_a_table_that_is_wrong_is_told_as_its_users_and_not_as_the_presets() -> None:
    """The preset sets a key of [curriculum], beneath the phases."""
    phases = 'curriculum.phases=[{name="a", window=[0, 9], steps=1}, {name="b", window=[5, 20]}]'
    told = refusal("algorithm.preset=qwenlong_l1", phases)
    assert "overlap" in told and f"[--set {phases}]" in told and "[preset" not in told


def test_a_loss_may_be_changed_with_the_keys_that_it_takes() -> None:
    config = load("algorithm.preset=gspo", "algorithm.loss=clip", "algorithm.clip_low=0.2", "algorithm.clip_high=0.2")
    assert (config.algorithm.loss, config.algorithm.aggregation) == ("clip", "sequence_mean")


def run(*arguments: str) -> str:
    mount_commands()
    result = CliRunner().invoke(app, ["config", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_table_in_the_docs_is_that_of_the_values() -> None:
    assert "\n".join(compare_presets()) in Path("docs/presets.md").read_text(), "hybridflow config --preset table"


def test_command_prints_presets_and_sources(tmp_path: Path) -> None:
    assert [line.split()[0] for line in run("--preset", "list").splitlines()] == list(NAMES)
    printed = run("--preset", "qwenlong_l1")
    assert 'loss = "clip"' in printed and "# [P] arXiv 2505.17667 Eq. 6" in printed and "[train.optimizer]" in printed
    file = tmp_path / "mine.toml"
    file.write_text('[algorithm]\npreset = "gspo"\nclip_high = 5e-4\n')
    lines = run("--show", str(file), "--set", MODEL, "--set", "train.num_steps=2", "--sources").splitlines()
    assert "algorithm.clip_low = 0.0003    [preset gspo [P] arXiv 2507.18071 section 5.1]" in lines
    assert f"algorithm.clip_high = 0.0005    [{file}; preset gspo has 0.0004]" in lines
    assert "train.num_steps = 2    [--set train.num_steps=2]" in lines
    with pytest.raises(ConfigError, match=r"no preset 'grop'\. Remedy: take one of grpo"):
        CliRunner().invoke(app, ["config", "--preset", "grop"], catch_exceptions=False)
