"""The loop in phases: what each step is drawn as, the gate of each phase, and a run that is stopped in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hybridflow.config.sections import Config
from hybridflow.data.rows import write_rows
from hybridflow.data.synth.spec import SynthSpec, generate_rows
from hybridflow.errors import ConfigError, ModelMismatchError, TrainerError
from hybridflow.loop.train_loop import train
from hybridflow.recording.run_folder.finished import read_finished
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.types import Completion, Verdict
from tests.unit.loop.fakes import FakeSystem, all_right, build_config, half_right
from tests.unit.loop.test_over_sampling import SlowRollout
from tests.unit.loop.test_train_loop import fail_at

SHORT = {"name": "short", "window": [0, 110], "steps": 2, "prompts_per_step": 3, "num_completions": 4}
LONG = {"name": "long", "window": [110, 200], "temperature": 0.5, "top_p": 0.75, "max_new_tokens": 5}


def phased(directory: Path, *phases: dict[str, Any], **changes: Any) -> Config:
    """Two phases of 2 and 3 steps over generated documents of 64 to 128 tokens."""
    defaults: dict[str, Any] = {
        "data__synth__doc_tokens": 128,
        "data__synth__min_doc_tokens": 64,
        "data__synth__num_train": 24,
        "data__max_prompt_tokens": 200,
        "curriculum__phases": list(phases or (SHORT, LONG)),
        "train__num_steps": 5,
    }
    return build_config(directory, **(defaults | changes))


def lengths_of(system: FakeSystem) -> dict[int, set[int]]:
    """By step, the lengths of the prompts that were decoded."""
    found: dict[int, set[int]] = {}
    sizes = {prompt.prompt_id: len(prompt.token_ids) for prompt in system.inputs.prompts}
    for line in system.completions():
        found.setdefault(line["step"], set()).add(sizes[line["prompt_id"]])
    return found


def test_each_step_is_drawn_as_its_phase_says(tmp_path: Path) -> None:
    system = FakeSystem(phased(tmp_path))
    train(system.run)
    assert system.events == [
        *["publish 0", "decode p00000", "compare", "decode e00000"],
        *["decode t00001", "update", "publish 1", "decode t00002", "update", "publish 2"],
        *["decode p00002", "compare"],  # the gate of the second phase
        *["decode t00003", "update", "publish 3", "decode t00004", "update", "publish 4"],
        *["decode t00005", "update", "publish 5", "decode e00005", "save", "export"],
    ]
    lengths = lengths_of(system)
    assert all(max(lengths[step]) <= 110 for step in (1, 2))
    assert all(min(lengths[step]) > 110 for step in (3, 4, 5))
    drawn = [(s.temperature, s.top_p, s.max_new_tokens) for s in system.rollout.samplings if not s.ignores_end]
    short, long, greedy = (1.0, 1.0, 8), (0.5, 0.75, 5), (0.0, 1.0, 8)
    assert drawn == [greedy, short, short, long, long, long, greedy]
    sizes = [sum(line["step"] == step for line in system.completions()) for step in range(1, 6)]
    assert sizes == [12, 12, 8, 8, 8]  # prompts x completions: 3 x 4, then 4 x 2


def test_metrics_and_summary_tell_the_phase(tmp_path: Path) -> None:
    system = FakeSystem(phased(tmp_path))
    train(system.run)
    steps = [line for line in system.metrics() if "curriculum/phase" in line]
    assert [line["curriculum/phase"] for line in steps] == [1, 1, 2, 2, 2]
    assert [line["curriculum/phase_step"] for line in steps] == [1, 2, 1, 2, 3]
    told = system.run.phases.summary()
    assert told is not None
    rows = [len([p for p in system.inputs.prompts[:24] if (len(p.token_ids) > 110) is far]) for far in (False, True)]
    assert told == {
        "phase": "long",
        "is_over": False,
        "phases": [
            {"name": "short", "rows": rows[0], "steps": 2, "steps_at_most": 2, "ended_by": "steps"},
            {"name": "long", "rows": rows[1], "steps": 3, "steps_at_most": None, "ended_by": None},
        ],
    }
    assert system.run.phases.stage == "RL, phase 2 of 2: long"


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_run_stopped_in_any_phase_goes_on_in_it_with_the_same_prompts(tmp_path: Path, stop: int) -> None:
    """Stop 2 is at the border: the checkpoint is of the new phase."""
    changes = {"checkpoint__every_steps": 1, "curriculum__retrospection": {"mode": "weighted"}}
    phases = [SHORT, LONG | {"retrospective_share": 0.25}]
    straight = FakeSystem(phased(tmp_path / "a", *phases, **changes))
    train(straight.run)
    broken = FakeSystem(phased(tmp_path / "b", *phases, **changes))
    broken.trainer.update = fail_at(broken.trainer.update, stop + 1)
    with pytest.raises(TrainerError):
        train(broken.run)
    resumed = FakeSystem(phased(tmp_path / "b", *phases, **changes), is_resumed=True)
    assert resumed.run.phases.stage == f"RL, phase {1 if stop < 2 else 2} of 2: {'short' if stop < 2 else 'long'}"
    train(resumed.run)

    def trained(system: FakeSystem) -> list[tuple[int, str]]:
        return [(line["step"], line["prompt_id"]) for line in system.completions() if line["step"] > stop]

    assert trained(resumed) == trained(straight) != []
    assert resumed.run.phases.summary() == straight.run.phases.summary()
    tables = [system.folder.difficulty.read_text() for system in (straight, resumed)]
    assert tables[0] == tables[1] and tables[0].startswith(
        "prompt_id,num_completions,mean_reward,difficulty,num_times\n"
    )
    last = [line["curriculum/retrospective_share"] for line in straight.metrics() if line.get("curriculum/phase") == 2]
    assert last[-1] == 0.25


def test_the_run_ends_with_its_last_phase(tmp_path: Path) -> None:
    system = FakeSystem(phased(tmp_path, SHORT, LONG | {"steps": 1}, train__num_steps=9))
    assert system.run.phases.num_steps == 3, "what the display counts to"
    train(system.run)
    assert system.run.state.rl_step == 3 and system.run.is_over
    assert system.events[-4:] == ["publish 3", "decode e00003", "save", "export"]
    summary = {"status": "finished", "num_steps": 3, "curriculum": system.run.phases.summary()}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "hf" / name).write_text("")
    assert read_finished(tmp_path / "summary.json", tmp_path / "hf", 9) is not None


def test_a_plateau_of_the_accuracy_begins_the_next_phase(tmp_path: Path) -> None:
    """Evaluations after steps 1, 2 and 3 are alike: the second and third are not better than the first."""
    plateau = {"promotion": "plateau", "plateau_evaluations": 2, "steps": 5}
    system = FakeSystem(phased(tmp_path, SHORT | plateau, LONG, train__num_steps=6, eval__every_steps=1))
    train(system.run)
    told = system.run.phases.summary()
    assert told is not None
    assert [(phase["steps"], phase["ended_by"]) for phase in told["phases"]] == [(3, "plateau"), (3, None)]


def test_the_gate_of_a_phase_reads_a_text_as_long_as_its_longest_prompt(tmp_path: Path) -> None:
    system = FakeSystem(phased(tmp_path))
    lengths: list[int] = []
    start = system.rollout.start

    def keep(requests: Any, sampling: Any) -> None:
        if sampling.ignores_end:
            lengths.append(max(len(request.prompt.token_ids) for request in requests))
        start(requests, sampling)

    system.rollout.start = keep
    train(system.run)
    assert lengths == [110, 200]


def test_engines_that_differ_in_the_second_phase_end_the_run_there(tmp_path: Path) -> None:
    system = FakeSystem(phased(tmp_path))
    advance = system.run.phases.advance

    def differ() -> bool:
        moved = advance()
        system.trainer.gate_gap = 1.0 if moved else system.trainer.gate_gap
        return moved

    system.run.phases.advance = differ
    with pytest.raises(ModelMismatchError, match="before the first step of the phase"):
        train(system.run)
    assert system.run.state.rl_step == 2


def test_a_phase_of_another_layout_goes_on_from_a_checkpoint_with_workers_of_its_own(tmp_path: Path) -> None:
    phases = [SHORT, LONG | {"layout": {"pp": 2}}]
    first = FakeSystem(phased(tmp_path / "a", *phases))
    train(first.run)
    assert first.run.needs_other_workers and not first.run.is_over
    assert first.events[-3:] == ["update", "publish 2", "save"]
    second = FakeSystem(phased(tmp_path / "a", *phases), is_resumed=True)
    assert second.run.config.train.layout.pp == 2
    train(second.run)
    assert second.events[:3] == ["publish 2", "decode p00000", "compare"]
    assert not second.run.needs_other_workers and second.run.state.rl_step == 5
    straight = FakeSystem(phased(tmp_path / "b"))
    train(straight.run)
    trained = [[line["prompt_id"] for line in system.completions()] for system in (second, straight)]
    assert trained[0] == trained[1]


def right_for_even_prompts(completion: Completion) -> Verdict:
    """All right for rows of even numbers, half right for the others."""
    return half_right(completion) if int(completion.prompt_id[-1]) % 2 else all_right(completion)


def test_a_phase_measures_its_prompts_with_its_own_limits_before_its_first_step(tmp_path: Path) -> None:
    phases = [SHORT, LONG | {"difficulty_filter": [0.25, 0.75]}]
    system = FakeSystem(phased(tmp_path, *phases, checkpoint__every_steps=1), judge=right_for_even_prompts)
    train(system.run)
    at = system.events.index("decode m00002")
    assert system.events[at - 2 : at + 2] == ["decode p00002", "compare", "decode m00002", "decode t00003"]
    measured = [s for s in system.rollout.samplings if s.max_new_tokens == 5]
    assert len(measured) == 1 + 1 + 3  # the gate, the measuring, three steps
    late = {int(line["prompt_id"][-1]) % 2 for line in system.completions() if line["step"] > 2}
    assert late == {1}
    resumed = FakeSystem(phased(tmp_path, *phases, checkpoint__every_steps=1, train__num_steps=6), is_resumed=True)
    train(resumed.run)
    assert "decode m00005" not in resumed.events and resumed.run.state.rl_step == 6


def test_groups_that_the_phase_before_has_begun_are_given_up_and_counted(tmp_path: Path) -> None:
    config = phased(tmp_path, SHORT, LONG, rollout__over_sampling=1.5, eval__num_prompts=0)
    system = FakeSystem(config, engines=SlowRollout, judge=half_right)
    train(system.run)
    groups, carried = system.run.state.groups, len(system.run.groups.kept.groups)
    assert groups.discarded > 0
    assert groups.started == groups.trained + sum(groups.filtered.values()) + groups.discarded + carried


def test_a_curriculum_that_was_changed_is_not_resumed(tmp_path: Path) -> None:
    folder = TrainFolder(phased(tmp_path))
    folder.create(phased(tmp_path))
    folder.keep()
    folder.check_same_run(phased(tmp_path, train__num_steps=8))
    changed = phased(tmp_path, SHORT, LONG | {"temperature": 0.75, "steps": 2})
    with pytest.raises(ConfigError) as error:
        folder.check_same_run(changed)
    text = str(error.value)
    assert "curriculum.phases.1.temperature: was 0.5, is 0.75" in text
    assert "curriculum.phases.1.steps: was None, is 2" in text and "phases.0" not in text


def test_with_a_plateau_what_is_evaluated_is_part_of_the_run(tmp_path: Path) -> None:
    plateau = SHORT | {"promotion": "plateau", "plateau_evaluations": 1, "steps": 3}
    folder = TrainFolder(phased(tmp_path, plateau, LONG, eval__every_steps=1))
    folder.create(phased(tmp_path, plateau, LONG, eval__every_steps=1))
    folder.keep()
    with pytest.raises(ConfigError, match=r"curriculum.phases.0 reads eval.num_prompts: was 4, is 3"):
        folder.check_same_run(phased(tmp_path, plateau, LONG, eval__every_steps=1, eval__num_prompts=3))


def test_rows_of_files_that_phases_name(tmp_path: Path) -> None:
    """Each phase with a file of its own: prompts have ids by file, and nothing is generated to train on."""
    for name, tokens in (("short", 64), ("long", 128)):
        spec = SynthSpec(tier="easy", doc_tokens=tokens, num_train=8, num_test=4)
        write_rows(tmp_path / f"{name}.jsonl", generate_rows(spec, "train", 0))
        write_rows(tmp_path / "test.jsonl", generate_rows(spec, "test", 0))
    phases = [
        SHORT | {"train_path": str(tmp_path / "short.jsonl")},
        LONG | {"train_path": str(tmp_path / "long.jsonl")},
    ]
    system = FakeSystem(phased(tmp_path, *phases, data__test_path=str(tmp_path / "test.jsonl")))
    train(system.run)
    ids = {line["step"]: line["prompt_id"].partition("-")[0] for line in system.completions()}
    assert ids == {1: "train", 2: "train", 3: "train2", 4: "train2", 5: "train2"}
    assert system.inputs.counts["train_rows"] == 16 and not system.inputs.generated
