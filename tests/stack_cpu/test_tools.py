"""`hybridflow sft`, `export` and `logprobs` as a user runs them, on real train workers, against transformers.

One chain: sft on TP2 (stopped, resumed) -> export of its checkpoint -> logprobs of the exported model on TP2 PP2.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridflow.data.demonstrations import DemonstrationSet
from hybridflow.data.rows import write_rows
from hybridflow.data.synth.spec import SynthSpec, generate_rows
from tests.stack_cpu.command import ROOT, read_lines, without_times

pytestmark = [pytest.mark.stack_cpu, pytest.mark.timeout(400)]

STEPS, PER_STEP, RATE = 6, 4, 1e-3


def run(*arguments: object, code: int = 0) -> str:
    """Output of `hybridflow <arguments>`, which must end with this exit code."""
    command = [sys.executable, "-m", "hybridflow.cli", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=170, check=False
    )
    assert done.returncode == code, done.stdout[-3000:]
    assert "Traceback" not in done.stdout
    return done.stdout


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


def sft_arguments(model: Path, data: Path, directory: Path, **changes: Any) -> list[str]:
    values = {
        "run.directory": str(directory),
        "model.path": str(model),
        "model.init": "weights",
        "data.path": str(data),
        "train.num_steps": STEPS,
        "train.sequences_per_step": PER_STEP,
        "train.learning_rate": RATE,
        "train.lr_schedule": "linear",
        "train.lr_warmup_steps": 2,
        "train.lr_min_ratio": 0.5,
        "train.max_tokens_per_micro_batch": 4096,
        "train.layout.tp": 2,
        "checkpoint.every_steps": 2,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    return ["sft", "--config", "configs/sft.toml", "--set", *(f"{k}={json.dumps(v)}" for k, v in values.items())]


@pytest.fixture(scope="module")
def trained(warm_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of six steps: four, and two more after a resume."""
    folder = tmp_path_factory.mktemp("sft")
    run(*sft_arguments(warm_model, data, folder, train__lr_schedule="constant", train__num_steps=4))
    run(*sft_arguments(warm_model, data, folder, train__lr_schedule="constant"), "--resume")
    return folder / "sft"


def test_sft_equals_transformers_step_by_step(trained: Path, warm_model: Path, data: Path) -> None:
    """Mean over sequences of the mean over response tokens; AdamW of torch; across a resume."""
    lines = read_lines(trained / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["train/learning_rate"] for line in lines] == pytest.approx([RATE / 2] + [RATE] * (STEPS - 1))
    losses, norms, weights = train_with_transformers(warm_model, data, [line["train/learning_rate"] for line in lines])
    assert [line["policy/loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    assert [line["policy/grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-3)
    found = load_file(trained / "hf" / "model.safetensors")
    for name, tensor in found.items():
        assert (tensor - weights[name]).abs().max() < 2e-4, name


def train_with_transformers(
    model_dir: Path, data: Path, rates: list[float]
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
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
    return losses, norms, {name: tensor.detach() for name, tensor in model.state_dict().items()}


def test_resume_is_bit_exact_and_keeps_the_last_checkpoints(
    trained: Path, warm_model: Path, data: Path, tmp_path: Path
) -> None:
    run(*sft_arguments(warm_model, data, tmp_path, train__lr_schedule="constant"))
    straight = tmp_path / "sft"
    assert without_times(read_lines(straight / "metrics.jsonl")) == without_times(read_lines(trained / "metrics.jsonl"))
    resumed, whole = (load_file(folder / "hf" / "model.safetensors") for folder in (trained, straight))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    names = sorted(path.name for path in (trained / "checkpoints").iterdir())
    assert names == ["step-000004", "step-000006"]


def test_export_gives_the_bits_of_the_run_and_refuses_what_is_damaged(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "step-000006"
    run("export", "--checkpoint", checkpoint, "--output", tmp_path / "hf")
    exported, final = (load_file(folder / "model.safetensors") for folder in (tmp_path / "hf", trained / "hf"))
    assert exported.keys() == final.keys()
    assert all(torch.equal(exported[name], final[name]) for name in final)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").chat_template

    said = run("export", "--checkpoint", checkpoint, "--output", tmp_path / "hf", code=1)
    assert "is not empty" in said and "--overwrite" in said
    said = run("export", "--checkpoint", trained, "--output", tmp_path / "other", code=1)
    assert "is no checkpoint" in said and "step-000006" in said
    broken = next((trained / "checkpoints" / "step-000004" / "megatron").glob("*.distcp"))
    broken.write_bytes(broken.read_bytes()[:-1])
    said = run("export", "--checkpoint", broken.parents[1], "--output", tmp_path / "other", code=1)
    assert broken.name in said and "were written" in said and "earlier one" in said


def test_logprobs_equal_transformers_and_resume(trained: Path, tmp_path: Path) -> None:
    model_dir, source, output = trained / "hf", tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = [
        {"input_ids": torch.randint(0, 1024, (length,), generator=generator).tolist()} for length in (70, 33, 1, 2, 200)
    ]
    rows.append({"text": "The rate is rate_7 . What is the rate ?"})
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["logprobs", "--model", model_dir, "--input", source, "--output", output, "--temperature", 0.7]
    run(*arguments, "--tp", 2, "--pp", 2)
    lines = read_lines(output)
    assert len(lines) == len(rows)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    for row, line in zip(rows, lines, strict=True):
        token_ids = torch.tensor(row.get("input_ids") or tokenizer(row["text"])["input_ids"])
        assert len(line["logprobs"]) == len(token_ids) - 1
        with torch.no_grad():
            log_softmax = (model(token_ids[None]).logits[0, :-1] / 0.7).log_softmax(-1)
        expected = log_softmax.gather(1, token_ids[1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(line["logprobs"]), expected, rtol=0, atol=1e-4)

    whole = output.read_bytes()
    assert "nothing to do" in run(*arguments)
    output.write_bytes(whole[: whole.index(b"\n") + 20])  # as if killed in the second line
    assert "5 rows written" in run(*arguments, "--dp", 2)
    for line, expected in zip(read_lines(output), lines, strict=True):
        assert line["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-4)
    assert "another job (temperature: was 0.7, is 1.0)" in run(*arguments[:-2], code=1)


@pytest.mark.parametrize(
    ("line", "options", "said"),
    [
        (
            '{"input_ids": [' + "5, " * 40000 + "5]}",
            [],
            "row 1: the row has 40001 tokens, the window of the model is 32768",
        ),
        ('{"input_ids": [5, 1024]}', [], "row 1: token id 1024 is not in the vocabulary, 0 .. 1023"),
        ('{"input_ids": []}', [], "row 1: the row has no tokens"),
        ('{"tokens": [5]}', [], 'Remedy: use {"input_ids": [...]} or {"text": "..."}'),
        ('{"input_ids": [5]', [], "row 1: broken JSON"),
        ('{"input_ids": [5, 6, 7]}', ["--tp", 3], "tp = 3: it must divide the model's 4 attention heads"),
        ('{"input_ids": [5, 6, 7]}', ["--pp", 0], "--pp 0: a parallel size must be at least 1"),
        ('{"input_ids": [5, 6, 7]}', ["--max-tokens", 2], "longest row can have 3 tokens"),
    ],
)
def test_bad_input_is_refused_before_work_starts(
    warm_model: Path, tmp_path: Path, line: str, options: list[object], said: str
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"input_ids": [5, 6]}\n' + line + "\n")
    output = tmp_path / "out.jsonl"
    message = run("logprobs", "--model", warm_model, "--input", source, "--output", output, *options, code=1)
    assert said in " ".join(message.split())
    assert not output.exists()


def test_sft_refuses_long_rows_used_folders_and_changed_settings(trained: Path, warm_model: Path, data: Path) -> None:
    directory = trained.parent
    long_row = run(*sft_arguments(warm_model, data, directory, data__max_tokens=60, run__name="b"), code=1)
    assert "tokens, the window data.max_tokens is 60" in long_row and "row " in long_row and "data.overlong" in long_row
    assert "holds a run already" in run(*sft_arguments(warm_model, data, directory), code=1)
    changed = run(*sft_arguments(warm_model, data, directory, train__learning_rate=0.5), "--resume", code=1)
    assert "train.learning_rate: was 0.001, is 0.5" in changed
    window = run(*sft_arguments(warm_model, data, directory, data__max_tokens=40000, run__name="c"), code=1)
    assert "train.max_tokens_per_micro_batch (4096)" in window
