"""Each way to write a config gives the log-probabilities of transformers, and reaches engines as the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hybridflow.rollout.engine.model_folder import write_engine_model
from megatron_ext.hf.files import read_model_config
from megatron_ext.packing.micro_batch import PackInput, pack_sequences
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology
from megatron_ext.policy import MegatronPolicy
from tests.dist_cpu.config_dialects import write_dialects
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import VOCAB_SIZE, load_model

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

LENGTH = 150
"""Beyond the window of 64 that the stretched models were trained on."""


@pytest.fixture(scope="module")
def dialects(hf_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_dialects(hf_dirs, tmp_path_factory.mktemp("dialects"))


def tokens_T() -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (LENGTH,), generator=torch.Generator().manual_seed(5))


def all_logprobs(topology: Topology, layout: Layout, folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    row = PackInput(tokens_T().tolist(), 1, [1] * (LENGTH - 1))
    found = {}
    for name, folder in folders.items():
        policy = MegatronPolicy(str(folder), layout, topology, dtype=torch.float32, optimizer=None)
        outputs = policy.logprobs([pack_sequences([row], layout.pad_to_multiple)], temperature=1.0)
        assert outputs is not None
        found[name] = outputs[0][0]
    return found


def test_each_is_computed_as_transformers_computes_it(dialects: dict[str, Path]) -> None:
    found = run_ranks(Layout(), all_logprobs, dialects)[0]
    assert len(found) > 60
    for name, folder in dialects.items():
        with torch.no_grad():
            logits = load_model(folder)(tokens_T()[None]).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(1, tokens_T()[1:, None])[:, 0]
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_engines_read_the_same_model_and_no_other_key(dialects: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in dialects.items():
        hf_config = read_model_config(folder)
        if hf_config.moe is not None and not all(hf_config.moe.layers):
            continue  # refused, see check_engine_model
        engine = write_engine_model(folder, tmp_path / name, window=128)
        read: Any = read_model_config(engine)
        window = max(hf_config.window_tokens, 128)
        assert read.window_tokens == window, name
        assert read == hf_config or read.max_position_embeddings != hf_config.max_position_embeddings, name
        for key in ("rope_scaling", "rope_theta", "head_dim", "tied_embeddings", "moe", "rms_norm_eps", "qkv_bias"):
            assert getattr(read, key) == getattr(hf_config, key), (name, key)
