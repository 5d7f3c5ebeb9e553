"""Models, rows and policies that the checks share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tests.gpu.sizes import Shape

if TYPE_CHECKING:
    from megatron_ext.packing.micro_batch import MicroBatch, PackInput
    from megatron_ext.policy import MegatronPolicy

GIB = 2**30


def write_model(shape: Shape, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A Qwen3 model with drawn weights; the large one is drawn in `dtype` on the device, where that is fast."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=131_072,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(device()):
        model = Qwen3ForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    return folder


def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def draw_rows(lengths: Sequence[int], vocab: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]


def pack(rows: Sequence[Sequence[int]]) -> MicroBatch:
    """One pack in which every token after the first of a row is predicted."""
    from megatron_ext.packing.micro_batch import PackInput, pack_sequences

    inputs: list[PackInput] = [PackInput(list(row), 1, [1] * (len(row) - 1)) for row in rows]
    return pack_sequences(inputs)


def nll(logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> Any:
    """Mean negative log-likelihood per token, as the policy's callbacks give it."""
    from megatron_ext.packing.sums import LossSums

    return LossSums(loss=-logprobs_N.sum(), num_tokens=logprobs_N.numel(), metrics={})


@contextmanager
def one_rank() -> Iterator[Any]:
    """Topology of a group of this process alone: NCCL on a GPU, gloo on a CPU."""
    from megatron_ext.parallel.layout import Layout
    from megatron_ext.parallel.topology import init_distributed, shutdown_distributed

    with tempfile.TemporaryDirectory() as folder:
        topology = init_distributed(0, 1, f"{folder}/meeting", 0, Layout(), seed=0, timeout_s=120)
        try:
            yield topology
        finally:
            shutdown_distributed()


def open_policy(hf_dir: Path, topology: Any, dtype: torch.dtype, **options: Any) -> MegatronPolicy:
    """With an optimizer whose epsilon, unless another is given, does not turn rounding noise into steps."""
    from megatron_ext.optimizer.optimizer import OptimizerOptions
    from megatron_ext.parallel.layout import Layout
    from megatron_ext.policy import MegatronPolicy

    layout = options.pop("layout", Layout())
    eps = options.pop("eps", 1e-4)
    optimizer = OptimizerOptions(lr=1e-3, betas=(0.9, 0.95), eps=eps, weight_decay=0.01, clip_grad=1.0)
    return MegatronPolicy(str(hf_dir), layout, topology, dtype=dtype, optimizer=optimizer, **options)


def train(policy: MegatronPolicy, micro_batches: Sequence[MicroBatch]) -> Any:
    return policy.train_step(micro_batches, nll, lr=1e-3, temperature=1.0)


def allocated() -> int:
    """Bytes that tensors take on the GPU; 0 on a CPU, where the host's memory is all there is."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()
