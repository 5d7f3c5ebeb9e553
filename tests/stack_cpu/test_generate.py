"""`hybridflow generate` on real engines: a job that was cut off goes on with the completions it would have had.

The model stretches its window by YaRN, with an attention factor of its own, and the longest row fills that window.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hybridflow.policy.init import write_policy
from hybridflow.tools.generate import GenerateJob, write_completions
from hybridflow.tools.progress import RowProgress
from hybridflow.types import SamplingParams
from tests.stack_cpu.command import ROOT

pytestmark = [pytest.mark.full, pytest.mark.stack_cpu, pytest.mark.timeout(400)]

NUM_ROWS, NUM_COMPLETIONS, MAX_NEW_TOKENS = 5, 2, 12
NATIVE_WINDOW, FACTOR = 9, 4.0
YARN = {"rope_type": "yarn", "factor": FACTOR, "rope_theta": 10000.0, "attention_factor": 1.3}
"""Without the window before, which is that of the model then."""


def test_a_job_that_was_cut_off_goes_on_with_the_same_completions(tmp_path: Path) -> None:
    """The second half is decoded by other engines, alone: seeds follow from rows."""
    write_policy(ROOT / "configs/models/tiny", tmp_path / "hf", seed=0)
    stretch_window(tmp_path / "hf")
    prompts, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"input_ids": [5 + (7 * n + 3 * i) % 200 for i in range(20 + n)]} for n in range(NUM_ROWS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = GenerateJob(
        model=tmp_path / "hf",
        prompts=prompts,
        output=output,
        num_completions=NUM_COMPLETIONS,
        sampling=SamplingParams(temperature=1.0, max_new_tokens=MAX_NEW_TOKENS),
        kv_cache_tokens=4096,
    )
    with RowProgress() as progress:
        assert write_completions(job, progress) == NUM_ROWS
        whole = [json.loads(line) for line in output.read_text().splitlines()]
        lines = output.read_text().splitlines(keepends=True)
        output.write_text("".join(lines[:2]) + lines[2][:10])  # killed while it wrote line 2
        assert write_completions(job, progress) == NUM_ROWS - 2
        assert write_completions(job, progress) == 0
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["row"] for line in whole] == [line["row"] for line in again] == list(range(NUM_ROWS))
    for before, after in zip(whole, again, strict=True):
        assert [one["token_ids"] for one in before["completions"]] == [one["token_ids"] for one in after["completions"]]
        assert len(before["completions"]) == NUM_COMPLETIONS
        for one in before["completions"]:
            assert len(one["token_ids"]) == len(one["logprobs"])
            assert one["finish_reason"] == ("length" if len(one["token_ids"]) == MAX_NEW_TOKENS else "stop")
    longest = whole[-1]["completions"]
    assert len(rows[-1]["input_ids"]) + MAX_NEW_TOKENS == NATIVE_WINDOW * FACTOR
    assert any(one["finish_reason"] == "length" for one in longest)
    for one in longest:
        expected = reference_logprobs(tmp_path / "hf", rows[-1]["input_ids"], one["token_ids"])
        assert one["logprobs"] == pytest.approx(expected, abs=1e-4)


def stretch_window(hf_dir: Path) -> None:
    config = json.loads((hf_dir / "config.json").read_text())
    changed = config | {"max_position_embeddings": NATIVE_WINDOW, "rope_parameters": YARN}
    (hf_dir / "config.json").write_text(json.dumps(changed))


def reference_logprobs(hf_dir: Path, prompt: list[int], response: list[int]) -> list[float]:
    """Log-probabilities of each token of the response, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0].tolist()
