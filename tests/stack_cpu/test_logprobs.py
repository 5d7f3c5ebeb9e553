"""`hybridflow logprobs` as a user runs it on a model directory of each family, against transformers.

Each directory is one that somebody else could have saved: in shards, in bfloat16, with a stretched window, a vocabulary
that two ranks must pad, tied or not, and without a tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.stack_cpu.command import read_lines
from tests.stack_cpu.test_tools import run

pytestmark = [pytest.mark.full, pytest.mark.stack_cpu, pytest.mark.timeout(400)]

WINDOW, VOCAB_SIZE = 128, 131
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": WINDOW // 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]}


def save(model: PreTrainedModel, path: Path, dtype: torch.dtype, max_shard_size: str) -> Path:
    """Weights are large enough that a wrong one shows."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() < 2 else 0.05))
    model.to(dtype).save_pretrained(path, max_shard_size=max_shard_size)
    return path


def write_rows(path: Path) -> list[list[int]]:
    """Rows of one token, of two, and up to the whole window."""
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 2, 33, WINDOW, 1, 7, 64)
    rows = [torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return rows


def check(model_dir: Path, folder: Path, *options: object) -> None:
    """The command's numbers are those of transformers, in an output folder that did not exist."""
    rows, output = write_rows(folder / "rows.jsonl"), folder / "not" / "yet" / "out.jsonl"
    arguments = ["--model", model_dir, "--input", folder / "rows.jsonl", "--output", output, *options]
    assert f"{len(rows)} rows written" in run("logprobs", *arguments, log=folder / "output.txt")
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.jsonl", "out.jsonl.meta.json"]
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()
    for row, line in zip(rows, read_lines(output), strict=True):
        token_ids = torch.tensor(row)
        with torch.no_grad():
            log_softmax = model(token_ids[None]).logits[0, :-1].log_softmax(-1)
        expected = log_softmax.gather(1, token_ids[1:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(line["logprobs"]), expected, rtol=0, atol=1e-4)


def test_a_llama_in_bfloat16_shards_on_tensor_and_pipeline_ranks(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))
    path = save(model, tmp_path / "model", torch.bfloat16, "20KB")
    assert len(list(path.glob("model-*.safetensors"))) > 2
    check(path, tmp_path, "--tp", 2, "--pp", 2, "--cp", 1)


def test_a_mixture_of_experts_on_expert_ranks(tmp_path: Path) -> None:
    """--ep alone: the ranks that it needs are added."""
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, **EXPERTS, head_dim=16, norm_topk_prob=True))
    check(save(model, tmp_path / "model", torch.float32, "50KB"), tmp_path, "--ep", 2)


def test_a_stretched_qwen2_on_context_ranks(tmp_path: Path) -> None:
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True, rope_parameters=YARN))
    check(save(model, tmp_path / "model", torch.float32, "5GB"), tmp_path, "--cp", 2, "--max-tokens", WINDOW)
