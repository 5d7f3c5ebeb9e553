"""`hybridflow sft`, `export` and `logprobs` as a user runs them, on real train workers, against transformers.

One chain: sft on TP2 is interrupted, resumed, loses a worker, is resumed again and finishes; the same run is done
without interruption, which renames the first -> export of a checkpoint -> logprobs of the exported model.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridflow.cluster.watchdog import END_AFTER_S
from hybridflow.data.demonstrations import DemonstrationSet
from hybridflow.data.rows import write_rows
from hybridflow.data.synth.spec import SynthSpec, generate_rows
from hybridflow.tools.logprobs import LogprobsJob, plan_job
from tests.architecture import outside
from tests.stack_cpu.command import ROOT, descendants, read_lines, still_alive, wait_until, without_times

pytestmark = [pytest.mark.stack_cpu, pytest.mark.timeout(600)]

MANY_STEPS, COMPARED_STEPS, PER_STEP, RATE = 100_000, 6, 4, 1e-3


def start(*arguments: object, log: Path) -> subprocess.Popen[bytes]:
    """`hybridflow <arguments>` in a session of its own, output to `log`."""
    command = [sys.executable, "-m", "hybridflow.cli", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True)


def run(*arguments: object, log: Path, code: int = 0) -> str:
    """Output of `hybridflow <arguments>`, which must end with this exit code."""
    process = start(*arguments, log=log)
    try:
        assert process.wait(timeout=170) == code, log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in log.read_text()
    return log.read_text()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DocQA rows of unequal length; some with a response to imitate, the rest with the gold answer only."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        row
        for tokens, seed in ((40, 1), (120, 2))
        for row in generate_rows(SynthSpec(tier="easy", doc_tokens=tokens, num_train=6, num_test=1), "train", seed)
    ]
    write_rows(path, rows)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[::3]:
        line["response"] = f"I read the text twice. {line['reward_model']['ground_truth']}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# ------------------------------------------------------------------------------------------------------------- sft


@dataclass(frozen=True)
class Ended:
    """How a command that something was done to came to its end."""

    code: int
    output: str
    victim: int
    """Process id of a train worker."""
    left_behind: list[str]
    """Processes that are alive 10 s later."""
    status: str
    """The status that summary.json gives."""


@dataclass(frozen=True)
class Story:
    """The runs that the chain has left."""

    interrupted: Ended
    killed: Ended
    resumed: Path
    """Folder of the run that was stopped twice."""
    straight: Path
    """Folder of the same run, never stopped."""
    said: str
    """Output of the straight run."""


def end_with(
    act: Callable[[subprocess.Popen[bytes], int], None], arguments: list[str], folder: Path, within_s: float = 30
) -> Ended:
    """Starts a run, lets it do some steps and one checkpoint, acts on it, and waits for its end."""
    log, before = folder.parent / "output.txt", num_lines(folder)
    process = start(*arguments, log=log)
    try:
        wait_until(lambda: num_lines(folder) > before + 4 and bool(saved_steps(folder)), process)
        children = descendants(process)
        victim = next(child.pid for child in children if "TrainWorker" in " ".join(child.cmdline()))
        acted = time.monotonic()
        act(process, victim)
        code = process.wait(timeout=within_s)
        left_behind = still_alive(children, within_s=max(0.1, 10 - (time.monotonic() - acted)))
    except AssertionError as error:
        error.add_note(log.read_text()[-3000:])
        raise
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    status = json.loads((folder / "summary.json").read_text())["status"]
    return Ended(code, log.read_text(), victim, left_behind, status)


def num_lines(folder: Path) -> int:
    return len(read_lines(folder / "metrics.jsonl"))


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoints/step-??????/state.json"))


def sft_arguments(directory: Path, data: Path, num_steps: int, **changes: Any) -> list[str]:
    """A run on two tensor parallel ranks, with a checkpoint at each second step."""
    values = {
        "run.directory": str(directory),
        "data.path": str(data),
        "train.num_steps": num_steps,
        "train.sequences_per_step": PER_STEP,
        "train.learning_rate": RATE,
        "train.lr_schedule": "constant",
        "train.lr_warmup_steps": 2,
        "train.max_tokens_per_micro_batch": 4096,
        "train.layout.tp": 2,
        "checkpoint.every_steps": 2,
        "tracking.wandb": "disabled",
    } | changes
    return ["sft", "--config", "configs/sft.toml", "--set", *(f"{k}={json.dumps(v)}" for k, v in values.items())]


@pytest.fixture(scope="module")
def story(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    directory = tmp_path_factory.mktemp("sft")
    folder = directory / "sft"

    def arguments(num_steps: int, wandb: str = "disabled") -> list[str]:
        return sft_arguments(directory, data, num_steps, **{"tracking.wandb": wandb})

    interrupted = end_with(
        lambda process, _: os.killpg(process.pid, signal.SIGINT), arguments(MANY_STEPS, "offline"), folder
    )
    killed = end_with(lambda _, victim: os.kill(victim, signal.SIGKILL), [*arguments(MANY_STEPS), "--resume"], folder)
    num_steps = saved_steps(folder)[-1] + 3
    run(*arguments(num_steps), "--resume", log=directory / "output.txt")
    said = run(*arguments(num_steps), log=directory / "output.txt")
    return Story(interrupted, killed, directory / "sft.1", folder, said)


def test_interrupt_ends_everything_within_ten_seconds(story: Story) -> None:
    ended = story.interrupted
    assert (ended.code, ended.left_behind, ended.status) == (130, [], "interrupted")
    assert "interrupted; --resume continues from the last checkpoint" in ended.output
    assert "Traceback" not in ended.output


def test_a_killed_worker_is_named(story: Story) -> None:
    ended = story.killed
    assert (ended.code, ended.left_behind, ended.status) == (1, [], "failed")
    assert "error: TrainerError\ntrain worker" in ended.output and f"(process {ended.victim}) died" in ended.output
    assert "sft/logs/train-" in ended.output and "--resume continues from the last checkpoint" in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.full
@pytest.mark.faults
def test_a_stopped_worker_is_named_and_ends_the_run(data: Path, tmp_path: Path) -> None:
    limits = {f"cluster.stall.{phase}_s": 5 for phase in ("warmup", "checkpoint")}
    ended = end_with(
        lambda _, victim: os.kill(victim, signal.SIGSTOP),
        sft_arguments(tmp_path, data, MANY_STEPS, **limits),
        tmp_path / "sft",
        within_s=5 + END_AFTER_S + 30,
    )
    assert (ended.code, ended.left_behind, ended.status) == (1, [], "failed")
    assert "error: StalledError\nno sign of life in" in ended.output and "--resume continues" in ended.output
    assert f"(process {ended.victim})" in ended.output and "it is stopped (kill -CONT lets it go on)" in ended.output
    assert "Traceback" not in ended.output
    assert "train worker" in (tmp_path / "sft/logs/stacks.log").read_text()


def test_a_resumed_run_equals_one_that_was_never_stopped(story: Story) -> None:
    """Bit by bit, with no step skipped or done twice."""
    stopped, straight = (read_lines(folder / "metrics.jsonl") for folder in (story.resumed, story.straight))
    assert [line["step"] for line in stopped] == list(range(1, len(stopped) + 1))
    assert without_times(stopped) == without_times(straight)
    resumed, whole = (load_file(folder / "hf" / "model.safetensors") for folder in (story.resumed, story.straight))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_run_folder_is_complete(story: Story) -> None:
    """And the earlier run was renamed, not overwritten."""
    assert f"an earlier run of this name is kept as {story.resumed}" in story.said
    files = {"resolved.json", "metrics.jsonl", "summary.json", "checkpoints", "hf", "initial_model", "logs"}
    assert {path.name for path in story.straight.iterdir()} == files
    assert list((story.resumed / "wandb").glob("offline-run-*/*.wandb"))
    summary, steps = (
        json.loads((story.straight / "summary.json").read_text()),
        read_lines(story.straight / "metrics.jsonl"),
    )
    frozen = outside.read_frozen()["files"]
    assert outside.dotted(summary) == frozen["sft: summary.json"]["line"]
    assert outside.keys_of(steps) == frozen["sft: metrics.jsonl"]["line"]
    total = len(steps)
    assert [summary[key] for key in ("status", "num_steps", "total_steps")] == ["finished", total, total]
    assert (summary["num_demonstrations"], summary["num_dropped"], summary["num_skipped_updates"]) == (12, 0, 0)
    assert [summary["first_loss"], summary["final_loss"]] == [steps[0]["policy/loss"], steps[-1]["policy/loss"]]
    assert saved_steps(story.straight)[-1] == total and len(saved_steps(story.straight)) == 2
    assert f"SFT step {total}/{total} | loss" in story.said and "tokens/s train" in story.said


def test_sft_equals_transformers_step_by_step(story: Story, data: Path) -> None:
    """Mean over sequences of the mean over response tokens; AdamW of torch."""
    lines = read_lines(story.straight / "metrics.jsonl")[:COMPARED_STEPS]
    rates = [line["train/learning_rate"] for line in lines]
    assert rates == pytest.approx([RATE / 2] + [RATE] * (COMPARED_STEPS - 1))
    losses, norms = train_with_transformers(story.straight / "initial_model", data, rates)
    assert [line["policy/loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert [line["policy/grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-3)


def train_with_transformers(model_dir: Path, data: Path, rates: list[float]) -> tuple[list[float], list[float]]:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    demonstrations = DemonstrationSet(data, AutoTokenizer.from_pretrained(model_dir), max_tokens=4096, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    losses, norms = [], []
    for step, rate in enumerate(rates):
        optimizer.zero_grad()
        total = torch.zeros(())
        for row in demonstrations.sequences_for_step(step, PER_STEP):
            tokens = torch.tensor(row.prompt_token_ids + row.response_token_ids)
            nll = torch.nn.functional.cross_entropy(model(tokens[None]).logits[0, :-1], tokens[1:], reduction="none")
            mask = torch.tensor(row.loss_mask, dtype=torch.float32)
            total = total + (nll[len(row.prompt_token_ids) - 1 :] * mask).sum() / mask.sum() / PER_STEP
        total.backward()
        losses.append(total.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return losses, norms


# ---------------------------------------------------------------------------------------------- export and logprobs


def test_export_gives_the_bits_of_the_run(story: Story, tmp_path: Path) -> None:
    """On one worker, from a checkpoint of two; refused from a checkpoint of which one byte has changed."""
    checkpoint = story.straight / "checkpoints" / f"step-{saved_steps(story.straight)[-1]:06d}"
    out = tmp_path / "new" / "hf"
    run("export", "--checkpoint", checkpoint, "--output", out, log=tmp_path / "output.txt")
    exported, final = (load_file(folder / "model.safetensors") for folder in (out, story.straight / "hf"))
    assert exported.keys() == final.keys()
    assert all(torch.equal(exported[name], final[name]) for name in final)
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert [path.name for path in out.parent.iterdir()] == ["hf"]


def test_a_checkpoint_with_a_changed_byte_is_refused(story: Story, tmp_path: Path) -> None:
    """Its size is right, so that only a worker finds out, before anything is written."""
    checkpoint = story.resumed / "checkpoints" / f"step-{saved_steps(story.resumed)[0]:06d}"
    broken = max((checkpoint / "megatron").glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    out = tmp_path / "hf"
    said = run("export", "--checkpoint", checkpoint, "--output", out, log=tmp_path / "output.txt", code=1)
    assert f"error: CheckpointError\n{broken} has CRC-32" in said and "use an earlier one" in said
    assert not out.exists()


def test_texts_go_on_where_the_output_was_cut_off(story: Story, tmp_path: Path) -> None:
    """On two copies of the model, at a temperature. What is there is kept, what is half there is done again."""
    model_dir, source, output = story.straight / "hf", tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    text = "The rate is rate_7 . What is the rate ?"
    rows: list[dict[str, Any]] = [{"input_ids": [7]}, *({"text": text[:length]} for length in (39, 11, 30))]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = '{"logprobs": []}\n'
    job = plan_job(LogprobsJob(model_dir, source, output, temperature=0.7))
    job.output.resume(job.describe(), overwrite=False)
    output.write_text(kept + '{"logprobs": [-0.')
    arguments = ["--model", model_dir, "--input", source, "--output", output, "--temperature", 0.7, "--dp", 2]
    assert "3 rows written" in run("logprobs", *arguments, log=tmp_path / "output.txt")
    assert output.read_text().startswith(kept)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    for row, line in zip(rows, read_lines(output), strict=True):
        token_ids = torch.tensor(row.get("input_ids") or tokenizer(row["text"])["input_ids"])
        with torch.no_grad():
            log_softmax = (model(token_ids[None]).logits[0, :-1] / 0.7).log_softmax(-1)
        expected = log_softmax.gather(1, token_ids[1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(line["logprobs"]), expected, rtol=0, atol=1e-4)
