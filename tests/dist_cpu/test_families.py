"""Every family comes back from Megatron bit by bit, slice by slice; what does not fit is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ext.checkpoint import hf_weights
from megatron_ext.checkpoint.hf_weights import load_hf_weights, save_hf
from megatron_ext.hf.config import Experts, HFConfig, UnsupportedModelError, read_hf_config
from megatron_ext.hf.files import WeightsError
from megatron_ext.hf.mapping import expected_shapes, rule_for, stacked_source, with_expert
from megatron_ext.model.policy_model import build_model
from megatron_ext.model.transformer_config import transformer_config
from megatron_ext.parallel.layout import Layout, LayoutError, check_layout
from megatron_ext.parallel.topology import Topology, init_distributed
from megatron_ext.platform.device import CPU
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import CLASSES, load_model

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

MIXTURES = [name for name in CLASSES if "moe" in name]
DENSE = [name for name in CLASSES if name not in MIXTURES]
MAX_FILE_BYTES = 200_000
"""Between the largest tensor and a stage, so that each stage writes several files."""


def write_bf16(hf_dir: Path, out_dir: Path) -> Path:
    shutil.copytree(hf_dir, out_dir)
    tensors = load_file(hf_dir / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, out_dir / "model.safetensors")
    config = json.loads((hf_dir / "config.json").read_text())
    (out_dir / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return out_dir


def stack_experts(tensors: dict[str, torch.Tensor], hf_config: HFConfig) -> dict[str, torch.Tensor]:
    """The tensors with those of experts stacked as transformers 5 holds them in memory, written independently."""
    assert hf_config.moe is not None
    stacked: dict[str, torch.Tensor] = {name: value for name, value in tensors.items() if ".experts." not in name}
    for layer, has_experts in enumerate(hf_config.moe.layers):
        prefix = f"model.layers.{layer}.mlp.experts."
        if has_experts:
            each = range(hf_config.moe.num_experts)
            gate, up, down = (
                torch.stack([tensors[f"{prefix}{expert}.{kind}_proj.weight"] for expert in each])
                for kind in ("gate", "up", "down")
            )
            stacked[prefix + "gate_up_proj"] = torch.cat([gate, up], dim=1)
            stacked[prefix + "down_proj"] = down
    return stacked


def round_trip(
    topology: Topology, layout: Layout, models: dict[str, tuple[Path, torch.dtype]], out_dir: Path
) -> dict[str, dict[str, int]]:
    """Loads and saves each model. Bytes read from disk and bytes of this rank's weights, by model."""
    counts = {}
    read = hf_weights.HFCheckpoint.read
    for name, (hf_dir, dtype) in models.items():
        num_read = 0

        def counting_read(*args: Any) -> torch.Tensor:
            nonlocal num_read
            part = read(*args)
            num_read += part.nbytes
            return part

        hf_weights.HFCheckpoint.read = counting_read  # type: ignore[method-assign]
        chunks = build_model(read_hf_config(hf_dir), layout, topology, dtype)
        for chunk in chunks:
            load_hf_weights(chunk, hf_dir, topology)
        hf_weights.HFCheckpoint.read = read  # type: ignore[method-assign]
        held = sum(parameter.nbytes for chunk in chunks for parameter in chunk.parameters())
        save_hf(chunks, topology, hf_dir, out_dir / name, max_file_bytes=MAX_FILE_BYTES)
        counts[name] = {"read": num_read, "held": held}
    return counts


def read_files(hf_dir: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory; each in one file, and that the one of the index."""
    tensors: dict[str, torch.Tensor] = {}
    file_of: dict[str, str] = {}
    for path in hf_dir.glob("*.safetensors"):
        content = load_file(path)
        assert not content.keys() & tensors.keys()
        assert len(content) == 1 or sum(tensor.nbytes for tensor in content.values()) <= MAX_FILE_BYTES
        tensors.update(content)
        file_of.update(dict.fromkeys(content, path.name))
    index = json.loads((hf_dir / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == file_of
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    return tensors


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (Layout(tp=2, pp=2), DENSE),
        (Layout(tp=2, sequence_parallel=True, pp=2, ep=2), MIXTURES),
        (Layout(tp=2, sequence_parallel=True, dp=2, ep=2, etp=2), MIXTURES),
    ],
    ids=["tp2_pp2", "tp2_sp_pp2_ep2", "tp2_sp_dp2_ep2_etp2"],
)
def test_the_way_to_megatron_and_back_keeps_every_bit(
    hf_dirs: dict[str, Path], tmp_path: Path, layout: Layout, names: list[str]
) -> None:
    """In float32 and bfloat16, tied and not, with a vocabulary of 259 that two ranks have to pad."""
    models = {name: (hf_dirs[name], torch.float32) for name in names}
    models |= {f"{name}_bf16": (write_bf16(hf_dirs[name], tmp_path / f"{name}_bf16"), torch.bfloat16) for name in names}
    ranks = run_ranks(layout, round_trip, models, tmp_path / "out")
    for name, (hf_dir, _) in models.items():
        expected, found = load_file(hf_dir / "model.safetensors"), read_files(tmp_path / "out" / name)
        assert found.keys() == expected.keys()
        for tensor_name, tensor in expected.items():
            assert found[tensor_name].dtype == tensor.dtype
            assert torch.equal(found[tensor_name].view(torch.int8), tensor.view(torch.int8)), tensor_name
        for rank in ranks:  # a rank reads what it keeps and no more; padding rows are not read
            assert 0.95 * rank[name]["held"] < rank[name]["read"] <= rank[name]["held"]
    assert load_model(tmp_path / "out" / names[0])(torch.arange(5)[None]).logits.isfinite().all()


def load_only(topology: Topology, layout: Layout, hf_dirs: list[Path]) -> list[str | dict[str, torch.Tensor]]:
    """This rank's parameters of each model, or what its refusal says."""
    results: list[str | dict[str, torch.Tensor]] = []
    for hf_dir in hf_dirs:
        (model,) = build_model(read_hf_config(hf_dir), layout, topology, torch.float32)
        try:
            load_hf_weights(model, hf_dir, topology)
        except (WeightsError, FileNotFoundError) as error:
            results.append(f"{type(error).__name__}: {error}")
        else:
            results.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    return results


@pytest.mark.parametrize("name", MIXTURES)
def test_stacked_experts_load_as_single_ones_do(hf_dirs: dict[str, Path], tmp_path: Path, name: str) -> None:
    stacked = tmp_path / "stacked"
    shutil.copytree(hf_dirs[name], stacked)
    tensors = stack_experts(load_file(hf_dirs[name] / "model.safetensors"), read_hf_config(hf_dirs[name]))
    save_file(tensors, stacked / "model.safetensors")
    layout = Layout(tp=2, sequence_parallel=True, dp=2, ep=2, etp=2)
    for single, from_stack in run_ranks(layout, load_only, [hf_dirs[name], stacked]):
        assert single.keys() == from_stack.keys()
        assert all(torch.equal(single[key], from_stack[key]) for key in single)


Tensors = dict[str, torch.Tensor]


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def replaced(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.zeros(shape)}


EXPERT = "model.layers.2.mlp.experts.5."
BROKEN: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing_expert": (without(EXPERT + "up_proj.weight"), rf"WeightsError: {EXPERT}up_proj.weight is not in .*needs"),
    "misshapen_expert": (
        replaced(EXPERT + "down_proj.weight", 64, 39),
        rf"{EXPERT}down_proj.weight .*\[64, 39\].*40\]",
    ),
    "misshapen_router": (replaced("model.layers.0.mlp.gate.weight", 7, 64), r"mlp.gate.weight .*\[7, 64\].*\[8, 64\]"),
    "bias": (
        replaced("model.layers.0.self_attn.q_proj.bias", 128),
        "model.layers.0.self_attn.q_proj.bias in .*a qwen3_moe with this config.json has no such tensor",
    ),
    "ninth_expert": (
        replaced("model.layers.1.mlp.experts.8.up_proj.weight", 40, 64),
        "model.layers.1.mlp.experts.8.up_proj.weight in .*no such tensor",
    ),
}


def test_a_tensor_that_does_not_fit_is_named(hf_dirs: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(hf_dirs["qwen3_moe"] / "model.safetensors")
    for name, (change, _) in BROKEN.items():
        shutil.copytree(hf_dirs["qwen3_moe"], tmp_path / name)
        save_file(change(tensors), tmp_path / name / "model.safetensors")
    found = run_ranks(Layout(), load_only, [tmp_path / name for name in BROKEN])[0]
    for (_, message), result in zip(BROKEN.values(), found, strict=True):
        assert isinstance(result, str) and re.search(message, result), result


def test_a_damaged_directory_is_named(hf_dirs: dict[str, Path], tmp_path: Path) -> None:
    cut, listed, lost, empty = (tmp_path / name for name in ("cut", "listed", "lost", "empty"))
    for out_dir in (cut, listed, lost, empty):
        shutil.copytree(hf_dirs["llama"], out_dir)
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    names = load_file(hf_dirs["llama"] / "model.safetensors")
    for out_dir, file_name in ((listed, "part.safetensors"), (lost, "model-00001-of-00002.safetensors")):
        index = {"weight_map": dict.fromkeys(names, file_name)}
        (out_dir / "model.safetensors.index.json").write_text(json.dumps(index))
        (out_dir / "model.safetensors").unlink()  # which would make the index void
    save_file(without("model.norm.weight")(names), listed / "part.safetensors")
    (empty / "model.safetensors").unlink()
    results = run_ranks(Layout(), load_only, [cut, listed, lost, empty])[0]
    messages = [
        r"WeightsError: .*cut/model.safetensors is damaged or cut short",
        r"WeightsError: model.norm.weight is not in part.safetensors of .*listed",
        r"WeightsError: .*model-00001-of-00002.safetensors does not exist, but model.safetensors.index.json names it",
        r"FileNotFoundError: .*empty has neither",
    ]
    for result, message in zip(results, messages, strict=True):
        assert isinstance(result, str) and re.match(message, result), result


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("llama", {"model_type": "gemma3"}, "model_type = 'gemma3': supported are llama, qwen2, qwen3, qwen3_moe"),
        ("llama", {"attention_bias": True}, r"attention_bias = True \(llama\): only False"),
        ("qwen3_tied", {"attention_bias": True}, "attention_bias = True"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen2", {"use_sliding_window": True, "layer_types": None}, "use_sliding_window = True"),
        (
            "qwen3_tied",
            {"layer_types": ["sliding_attention", *["full_attention"] * 3]},
            "layer_types has 'sliding_attention'",
        ),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config = "),
        ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9: it must be between 1 and num_experts = 8"),
        ("qwen3_moe", {"num_experts_per_tok": 1}, "norm_topk_prob = True with num_experts_per_tok = 1"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3]}, "no layer has experts"),
    ],
)
def test_an_unsupported_config_is_refused(
    hf_dirs: dict[str, Path], tmp_path: Path, source: str, changes: dict[str, Any], message: str
) -> None:
    config = json.loads((hf_dirs[source] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UnsupportedModelError, match=message):
        read_hf_config(tmp_path)


def test_a_mixture_is_read(hf_dirs: dict[str, Path], tmp_path: Path) -> None:
    hf_config = read_hf_config(hf_dirs["qwen3_moe_mixed"])
    assert hf_config.moe == Experts(8, 3, 40, norm_topk_prob=False, layers=(True, False, True, True))
    config = json.loads((hf_dirs["qwen3_moe"] / "config.json").read_text())
    config.pop("num_local_experts")  # transformers before 5 writes num_experts
    config = {**config, "num_experts": 8, "decoder_sparse_step": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_hf_config(tmp_path).moe == Experts(8, 3, 40, True, layers=(False, True, False, True))


@pytest.mark.parametrize("name", CLASSES)
def test_expected_names_are_those_that_transformers_writes(hf_dirs: dict[str, Path], name: str) -> None:
    assert set(expected_shapes(read_hf_config(hf_dirs[name]))) == set(load_file(hf_dirs[name] / "model.safetensors"))


def test_names_of_experts_by_hand(hf_dirs: dict[str, Path]) -> None:
    hf_config = read_hf_config(hf_dirs["qwen3_moe"])
    single = rule_for("decoder.layers.1.mlp.experts.local_experts.2.linear_fc1.weight", 4, hf_config, first_expert=6)
    grouped = rule_for("decoder.layers.1.mlp.experts.linear_fc1.weight2", 4, hf_config, first_expert=6)
    assert single.hf == grouped.hf
    assert single.hf == tuple(f"model.layers.5.mlp.experts.8.{kind}_proj.weight" for kind in ("gate", "up"))
    assert single.is_expert and single.fuse == "gate_up"
    assert with_expert(single.hf[1], 3) == "model.layers.5.mlp.experts.3.up_proj.weight"
    stacked = stacked_source("model.layers.5.mlp.experts.3.up_proj.weight", hf_config)
    assert stacked is not None
    assert (stacked.name, stacked.expert, stacked.first_row) == ("model.layers.5.mlp.experts.gate_up_proj", 3, 40)


@pytest.mark.parametrize(
    ("model", "layout", "message"),
    [
        ("qwen3_moe", Layout(dp=3, ep=3), "ep = 3: it must divide the model's 8 experts; choose one of 1, 2, 4, 8"),
        ("qwen3_moe", Layout(dp=3, etp=3), "etp = 3: it must divide the model's 40 rows of an expert"),
        ("qwen3_moe", Layout(dp=2, ep=4), "ep x etp = 4 x 1 = 4: it must divide the 2 ranks of a pipeline stage"),
        ("qwen3_moe", Layout(pp=2, dp=2, ep=2, etp=2), "ep x etp = 2 x 2 = 4: it must divide the 2 ranks"),
        ("qwen3_moe", Layout(tp=2, ep=2), "sequence_parallel = false: a mixture of experts with tp = 2 needs it"),
        ("qwen3_tied", Layout(dp=2, ep=2), "ep = 2: model_type = 'qwen3' has no experts; set ep = 1"),
        ("llama", Layout(dp=2, etp=2), "etp = 2: model_type = 'llama' has no experts; set etp = 1"),
        ("llama", Layout(grouped_experts=True), "model_type = 'llama' has no experts; set grouped_experts = false"),
    ],
)
def test_expert_ranks_that_do_not_fit_are_refused(
    hf_dirs: dict[str, Path], model: str, layout: Layout, message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        check_layout(layout, read_hf_config(hf_dirs[model]))


def test_grouped_experts_need_a_gpu(hf_dirs: dict[str, Path]) -> None:
    with pytest.raises(LayoutError, match="grouped_experts = true: it needs CUDA and Transformer Engine"):
        transformer_config(read_hf_config(hf_dirs["qwen3_moe"]), Layout(grouped_experts=True), torch.float32, CPU)


def test_expert_ranks_that_fit_no_model_are_refused_before_any_process_group() -> None:
    with pytest.raises(LayoutError, match="ep x etp = 2 x 2 = 4: it must divide the 2 ranks"):
        init_distributed(0, 2, "127.0.0.1", 1, Layout(dp=2, ep=2, etp=2), seed=1)
    assert not torch.distributed.is_initialized()
