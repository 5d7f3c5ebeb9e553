"""`hybridflow sft`, `export` and `logprobs` as a user runs them, on real train workers, against transformers.

One chain: sft on TP2 -> export of a checkpoint -> logprobs of the exported model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridflow.data.demonstrations import DemonstrationSet
from hybridflow.tools.logprobs import LogprobsJob, plan_job
from tests.architecture import outside
from tests.stack_cpu.command import read_lines
from tests.stack_cpu.sft_command import PER_STEP, RATE, run, saved_steps, sft_arguments

pytestmark = [pytest.mark.stack_cpu, pytest.mark.timeout(600)]

NUM_STEPS, COMPARED_STEPS = 8, 6


@dataclass(frozen=True)
class Finished:
    """A run of `hybridflow sft`."""

    folder: Path
    said: str
    """Its output."""


@pytest.fixture(scope="module")
def finished(sft_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    directory = tmp_path_factory.mktemp("sft")
    said = run(*sft_arguments(directory, sft_data, NUM_STEPS), log=directory / "output.txt")
    return Finished(directory / "sft", said)


def test_run_folder_is_complete(finished: Finished) -> None:
    files = {"resolved.json", "metrics.jsonl", "summary.json", "checkpoints", "hf", "initial_model", "logs"}
    assert {path.name for path in finished.folder.iterdir()} == files
    summary, steps = (
        json.loads((finished.folder / "summary.json").read_text()),
        read_lines(finished.folder / "metrics.jsonl"),
    )
    frozen = outside.read_frozen()["files"]
    assert outside.dotted(summary) == frozen["sft: summary.json"]["line"]
    assert outside.keys_of(steps) == frozen["sft: metrics.jsonl"]["line"]
    total = len(steps)
    assert [summary[key] for key in ("status", "num_steps", "total_steps")] == ["finished", total, total]
    assert (summary["num_demonstrations"], summary["num_dropped"], summary["num_skipped_updates"]) == (12, 0, 0)
    assert [summary["first_loss"], summary["final_loss"]] == [steps[0]["policy/loss"], steps[-1]["policy/loss"]]
    assert saved_steps(finished.folder)[-1] == total and len(saved_steps(finished.folder)) == 2
    assert f"SFT step {total}/{total} | loss" in finished.said and "tokens/s train" in finished.said


def test_sft_equals_transformers_step_by_step(finished: Finished, sft_data: Path) -> None:
    """Mean over sequences of the mean over response tokens; AdamW of torch."""
    lines = read_lines(finished.folder / "metrics.jsonl")[:COMPARED_STEPS]
    rates = [line["train/learning_rate"] for line in lines]
    assert rates == pytest.approx([RATE / 2] + [RATE] * (COMPARED_STEPS - 1))
    losses, norms = train_with_transformers(finished.folder / "initial_model", sft_data, rates)
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


def test_export_gives_the_bits_of_the_run(finished: Finished, tmp_path: Path) -> None:
    """On one worker, from a checkpoint of two; refused from a checkpoint of which one byte has changed."""
    checkpoint = finished.folder / "checkpoints" / f"step-{saved_steps(finished.folder)[-1]:06d}"
    out = tmp_path / "new" / "hf"
    run("export", "--checkpoint", checkpoint, "--output", out, log=tmp_path / "output.txt")
    exported, final = (load_file(folder / "model.safetensors") for folder in (out, finished.folder / "hf"))
    assert exported.keys() == final.keys()
    assert all(torch.equal(exported[name], final[name]) for name in final)
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert [path.name for path in out.parent.iterdir()] == ["hf"]


def test_a_checkpoint_with_a_changed_byte_is_refused(finished: Finished, tmp_path: Path) -> None:
    """Its size is right, so that only a worker finds out, before anything is written."""
    checkpoint = finished.folder / "checkpoints" / f"step-{saved_steps(finished.folder)[0]:06d}"
    broken = max((checkpoint / "megatron").glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    out = tmp_path / "hf"
    said = run("export", "--checkpoint", checkpoint, "--output", out, log=tmp_path / "output.txt", code=1)
    assert f"error: CheckpointError\n{broken} has CRC-32" in said and "use an earlier one" in said
    assert not out.exists()


def test_texts_go_on_where_the_output_was_cut_off(finished: Finished, tmp_path: Path) -> None:
    """On two copies of the model, at a temperature. What is there is kept, what is half there is done again."""
    model_dir, source, output = finished.folder / "hf", tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
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
