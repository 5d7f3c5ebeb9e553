"""Plans of models that people train, by their bytes, and cases worked by hand."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from hybridflow.errors import ConfigError
from hybridflow.weights.reshard.plan import Copy, Padding, ReshardPlan
from hybridflow.weights.reshard.planner import plan_reshard
from hybridflow.weights.reshard.regions import Region
from hybridflow.weights.reshard.report import RankTraffic, compute_gather_traffic, compute_traffic
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from hybridflow.weights.reshard.schedule import build_schedule
from megatron_ext.hf.config import Experts, HFConfig, read_hf_config
from megatron_ext.parallel.layout import Layout

MODELS = Path(__file__).parents[4] / "configs/models"
PARAMETERS_32B = 32_763_876_352
"""Parameters of R1-Distill-Qwen-32B, as the shapes in its safetensors index add up."""

TINY = HFConfig(
    model_type="qwen2",
    num_layers=2,
    hidden_size=3,
    ffn_hidden_size=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=1,
    vocab_size=70,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    tied_embeddings=False,
    qk_norm=False,
    qkv_bias=True,
)
TINY_MOE = dataclasses.replace(
    TINY, model_type="qwen3_moe", qkv_bias=False, qk_norm=True, moe=Experts(4, 2, 2, True, (True, True))
)


@pytest.fixture(scope="module")
def model_32b() -> HFConfig:
    return read_hf_config(MODELS / "r1-distill-qwen-32b")


def traffic_of(config: HFConfig, train: Layout, rollout: RolloutLayout) -> list[RankTraffic]:
    plan = plan_reshard(config, train, rollout, gpus_per_node=8)
    return compute_traffic(plan, build_schedule(plan, element_bytes=2, bucket_bytes=512 * 2**20))


@pytest.mark.parametrize(
    ("tp", "pp", "engine_tp", "most_gb"),
    [(4, 2, 4, 8.3), (8, 2, 8, 4.2), (8, 4, 4, 14.5), (4, 4, 8, 6.3), (4, 1, 4, 0.0), (8, 1, 8, 0.0)],
)
def test_bytes_from_other_gpus_of_a_32b_model(
    model_32b: HFConfig, tp: int, pp: int, engine_tp: int, most_gb: float
) -> None:
    """In bfloat16. The rest of what a rank needs is on its GPU, and nothing comes twice."""
    ranks = traffic_of(model_32b, Layout(tp=tp, pp=pp), RolloutLayout(tp=engine_tp))
    assert max(rank.moved_bytes for rank in ranks) <= most_gb * 1e9
    shared = 129 * 5120 * 2  # the norms, which every rank has whole
    assert {rank.device_bytes + rank.moved_bytes for rank in ranks} == {
        (PARAMETERS_32B * 2 - shared) // engine_tp + shared
    }


def test_gathering_brings_every_gpu_the_model_less_what_it_has(model_32b: HFConfig) -> None:
    """TP 4 x PP 2 on one node: 57.3 GB over NVLink, against 8.2 GB exactly."""
    arguments = {"gpus_per_node": 8, "element_bytes": 2, "bucket_bytes": 512 * 2**20}
    ranks = compute_gather_traffic(model_32b, Layout(tp=4, pp=2), **arguments)
    assert {rank.device_bytes + rank.nvlink_bytes for rank in ranks} == {PARAMETERS_32B * 2}
    assert {rank.network_bytes for rank in ranks} == {0}
    assert 57.2e9 < min(rank.moved_bytes for rank in ranks) <= max(rank.moved_bytes for rank in ranks) < 57.4e9


def test_gathering_broadcasts_over_the_network_and_joins_within_the_node(model_32b: HFConfig) -> None:
    """TP 8 x PP 2 on two nodes: an eighth of the other stage comes over the network, seven eighths of all by NVLink."""
    arguments = {"gpus_per_node": 8, "element_bytes": 2, "bucket_bytes": 512 * 2**20}
    ranks = compute_gather_traffic(model_32b, Layout(tp=8, pp=2), **arguments)
    norms = 129 * 5120 * 2
    cut = PARAMETERS_32B * 2 - norms
    assert {rank.nvlink_bytes for rank in ranks} == {cut * 7 // 8}
    for rank in ranks:
        assert rank.device_bytes + rank.network_bytes == cut // 8 + norms


def copies_of(plan: ReshardPlan, gpu: int, parameter: str) -> list[Copy]:
    return [copy for copy in plan.copies_to(gpu) if copy.parameter == parameter]


def test_query_key_value_of_two_trainer_ranks_on_one_engine_rank() -> None:
    """4 heads and 2 key-value heads of one row each. Megatron rank t has [q 2t, q 2t+1, k t, v t]; SGLang wants
    [q 0..3, k 0..1, v 0..1]. Both GPUs run an engine of their own."""
    plan = plan_reshard(TINY, Layout(tp=2), RolloutLayout(tp=1), gpus_per_node=2)
    name, tensor = "model.layers.1.self_attn.qkv_proj.weight", "decoder.layers.1.self_attention.linear_qkv.weight"

    def copy(source: int, from_row: int, to_row: int, rows: int) -> Copy:
        return Copy(source, 0, tensor, Region(from_row, 0, rows, 3), 0, name, Region(to_row, 0, rows, 3))

    assert copies_of(plan, 0, name) == [
        copy(0, 0, 0, 2),
        copy(1, 0, 2, 2),
        copy(0, 2, 4, 1),
        copy(1, 2, 5, 1),
        copy(0, 3, 6, 1),
        copy(1, 3, 7, 1),
    ]


def test_a_key_value_head_that_two_engine_ranks_share_comes_to_both() -> None:
    plan = plan_reshard(TINY, Layout(tp=2, dp=2), RolloutLayout(tp=4), gpus_per_node=4)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    keys = {
        plan.tp_rank_of[gpu]: (copies_of(plan, gpu, name)[1].source % 2, copies_of(plan, gpu, name)[1].origin)
        for gpu in range(4)
    }
    key = Region(2, 0, 1, 3)
    assert keys == {0: (0, key), 1: (0, key), 2: (1, key), 3: (1, key)}


def test_vocabulary_is_padded_with_zeros_by_the_engine_rank_and_not_by_the_trainer() -> None:
    """70 words in 128 rows: engine rank 0 has rows 0..63, rank 1 rows 64..69 and 58 rows of zeros."""
    plan = plan_reshard(TINY, Layout(tp=2), RolloutLayout(tp=2), gpus_per_node=2)
    name = "model.embed_tokens.weight"
    embedding = "embedding.word_embeddings.weight"
    assert copies_of(plan, 0, name) == [
        Copy(0, 0, embedding, Region(0, 0, 35, 3), 0, name, Region(0, 0, 35, 3)),
        Copy(1, 0, embedding, Region(0, 0, 29, 3), 0, name, Region(35, 0, 29, 3)),
    ]
    assert copies_of(plan, 1, name) == [
        Copy(1, 0, embedding, Region(29, 0, 6, 3), 1, name, Region(0, 0, 6, 3)),
    ]
    assert list(plan.padding_of(0)) == []
    assert list(plan.padding_of(1)) == [Padding(n, Region(6, 0, 58, 3)) for n in (name, "lm_head.weight")]


def test_tied_embeddings_come_from_the_stage_that_is_nearer() -> None:
    """The last stage keeps a copy as its output layer. Dense models have one parameter, Qwen3-MoE in SGLang two."""
    for config, names in (
        (TINY, {"model.embed_tokens.weight"}),
        (TINY_MOE, {"model.embed_tokens.weight", "lm_head.weight"}),
    ):
        tied = dataclasses.replace(config, tied_embeddings=True)
        plan = plan_reshard(tied, Layout(pp=2), RolloutLayout(), gpus_per_node=2)
        tensors = {0: "embedding.word_embeddings.weight", 1: "output_layer.weight"}
        for gpu in range(2):
            vocab = {copy for copy in plan.copies_to(gpu) if copy.tensor in tensors.values()}
            assert {copy.parameter for copy in vocab} == names
            assert {(copy.source, copy.tensor) for copy in vocab} == {(gpu, tensors[gpu])}


@pytest.mark.parametrize("train", [Layout(dp=4, pp=2), Layout(cp=4, pp=2), Layout(dp=2, cp=2, pp=2)])
def test_replicas_share_the_sending(train: Layout) -> None:
    """4 replicas of 2 stages on 4 nodes of 2 GPUs: each GPU of one stage pairs with one of the other."""
    plan = plan_reshard(TINY, train, RolloutLayout(tp=1), gpus_per_node=2)
    remote = {(copy.source, copy.destination) for gpu in range(8) for copy in plan.copies_to(gpu) if copy.source != gpu}
    assert sorted(source for source, _ in remote) == list(range(8))
    assert sorted(destination for _, destination in remote) == list(range(8))


@pytest.mark.parametrize(
    ("config", "train", "rollout", "message"),
    [
        (TINY, Layout(tp=4), RolloutLayout(), "train tp = 4: it must divide the model's 2 key-value heads"),
        (TINY, Layout(), RolloutLayout(tp=2), "rollout tp = 2: it must divide the 1 GPUs"),
        (TINY, Layout(dp=8), RolloutLayout(tp=8), "rollout tp = 8: it must divide the model's 4 attention heads"),
        (TINY, Layout(), RolloutLayout(ep=2), "rollout ep = 2: model_type = 'qwen2' has no experts; set ep = 1"),
        (TINY, Layout(), RolloutLayout(tp=0), "rollout tp = 0: a parallel size must be at least 1"),
        (TINY_MOE, Layout(dp=2), RolloutLayout(tp=1, ep=2), "rollout ep = 2: it must divide tp = 1"),
        (
            dataclasses.replace(TINY_MOE, moe=Experts(4, 2, 3, True, (True, True))),
            Layout(dp=2),
            RolloutLayout(tp=2),
            "rollout tp / ep = 2: it must divide the model's 3 rows of an expert's feed-forward width",
        ),
        (
            dataclasses.replace(TINY_MOE, moe=Experts(4, 2, 2, True, (True, False))),
            Layout(),
            RolloutLayout(),
            r"layers \[1\] without experts: SGLang builds experts in every layer",
        ),
        (
            dataclasses.replace(TINY, num_heads=12, num_kv_heads=6, ffn_hidden_size=8),
            Layout(dp=4),
            RolloutLayout(tp=4),
            "rollout tp = 4: it must divide the model's 6 key-value heads, or be a multiple",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(
    config: HFConfig, train: Layout, rollout: RolloutLayout, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_reshard(config, train, rollout)


def test_planning_imports_neither_megatron_nor_sglang_nor_ray() -> None:
    """In a process of its own, where nothing else can have imported them before."""
    code = (
        "import sys; import hybridflow.weights.reshard.report\n"
        "print(sorted({'megatron', 'sglang', 'ray', 'zmq'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[4]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
