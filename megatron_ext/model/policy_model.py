"""A GPT model that yields log-probabilities of chosen positions instead of logits of all.

Shape legend: T packed tokens, N predicted positions, H hidden size.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from megatron_ext import platform
from megatron_ext.attention.cuda import choose_attention
from megatron_ext.attention.packed import PackedSegments
from megatron_ext.attention.rotary import build_rotary_table
from megatron_ext.hf.config import HFConfig, padded_vocab_size
from megatron_ext.hf.mapping import rule_for
from megatron_ext.hf.rope import rotary_frequencies
from megatron_ext.kernels.choice import Kernels
from megatron_ext.kernels.upstream import take_weight_gradients
from megatron_ext.model.layer_specs import LayerKernels, build_block_spec
from megatron_ext.model.logprob import vocab_parallel_logprobs
from megatron_ext.model.norms import NORMS
from megatron_ext.model.transformer_config import transformer_config
from megatron_ext.packing.sampling_mask import RaggedInput
from megatron_ext.parallel.topology import Layout, Topology, check_layout

platform.install()

from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes  # noqa: E402
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

TORCH = Kernels("torch", "auto")


class PolicyModel(GPTModel):
    """One pipeline stage of a policy, or one of its chunks in a virtual pipeline."""

    hf_config: HFConfig
    topology: Topology
    fp32_head: bool = False
    """Whether logits are computed in float32 from hidden states and weights of lower precision."""

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        position_ids: Tensor,
        packed_seq_params: PackedSegments,
        predict_index_N: Tensor,
        targets_N: Tensor,
        temperature: float,
        with_entropy: bool,
        sampling_mask: RaggedInput | None = None,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Runs this stage on one packed micro-batch; `tokens` and `position_ids` are int64 [T].

        The last stage gives float32 [N] log-probabilities of `targets_N` at the temperature and, if asked, entropies
        (else None). The others give hidden states [T, 1, H] for the next ([T / tp, 1, H] under sequence parallel).
        Only the hidden states at `predict_index_N` meet the output layer. `sampling_mask`: tokens that could be drawn.
        """
        embedded = self.embedding(tokens[None], position_ids[None]) if self.pre_process else None
        hidden = self.decoder(
            hidden_states=embedded,
            attention_mask=None,
            packed_seq_params=self._with_positions(packed_seq_params, position_ids),
        )
        if not self.post_process:
            return hidden
        tied = self.share_embeddings_and_output_weights
        weight_VH = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        return vocab_parallel_logprobs(
            self._select_positions(hidden[:, 0], predict_index_N),
            weight_VH,
            targets_N,
            temperature=temperature,
            tp_group=self.topology.tp_group,
            vocab_size=self.hf_config.vocab_size,
            with_entropy=with_entropy,
            fp32_head=self.fp32_head,
            sampling_mask=sampling_mask,
        )

    def _with_positions(self, segments: PackedSegments, position_ids_T: Tensor) -> PackedSegments:
        """The segments with the rotation of each token by its own position, not by its place in the pack."""
        rotary = self.rotary_pos_emb
        if rotary.inv_freq.device != position_ids_T.device:  # made on the CPU, moved at the first micro-batch
            rotary.inv_freq = rotary.inv_freq.to(position_ids_T.device)
        table = build_rotary_table(position_ids_T, rotary.inv_freq, self.config.params_dtype)
        return dataclasses.replace(segments, rotary=table)

    def _select_positions(self, hidden: Tensor, predict_index_N: Tensor) -> Tensor:
        """[N, H], equal on every tensor parallel rank, from [T, H] or from this rank's [T / tp, H]."""
        if not self.config.sequence_parallel:
            return hidden.index_select(0, predict_index_N)
        # Each rank puts in the rows it holds. Adding N rows up costs less than gathering T. What comes back is already
        # summed over ranks (see logprob.py), so backward only has to pick this rank's rows: no communication there.
        num_local = hidden.size(0)
        local_N = predict_index_N - self.topology.tp_rank * num_local
        is_local_N = (local_N >= 0) & (local_N < num_local)
        mine_NH = hidden.index_select(0, local_N.clamp(0, num_local - 1)) * is_local_N[:, None]
        return reduce_from_tensor_model_parallel_region(mine_NH, group=self.topology.tp_group)


def build_model(
    hf_config: HFConfig,
    layout: Layout,
    topology: Topology,
    dtype: torch.dtype,
    kernels: Kernels = TORCH,
) -> list[PolicyModel]:
    """This rank's part of the model, on `topology.device`, with weights that still have to be loaded.

    One element, or as many as `layout.vpp`: the chunks of this stage in a virtual pipeline, first layers first.

    Raises LayoutError when the model cannot be cut so, AttentionBackendError when the attention of
    `kernels` cannot run here.
    """
    check_layout(layout, hf_config)
    layer = LayerKernels(
        core_attention=choose_attention(kernels.attention, topology.device, dtype, kernels.library),
        norm=NORMS[kernels.library],
    )
    take_weight_gradients(kernels.library)
    config = transformer_config(
        hf_config, layout, dtype, topology.computes_on, fuse_weight_gradients=kernels.fuses_weight_gradients
    )
    stages = [None] if layout.vpp == 1 else range(layout.vpp)
    return [_build_chunk(hf_config, config, layout, topology, layer, vp_stage) for vp_stage in stages]


def _build_chunk(
    hf_config: HFConfig,
    config: TransformerConfig,
    layout: Layout,
    topology: Topology,
    kernels: LayerKernels,
    vp_stage: int | None,
) -> PolicyModel:
    model = PolicyModel(
        config=config,
        transformer_layer_spec=build_block_spec(config, kernels, topology.pp_rank, vp_stage),
        vocab_size=padded_vocab_size(hf_config, layout.tp),
        max_sequence_length=hf_config.max_position_embeddings,
        pre_process=topology.is_first_stage and vp_stage in (None, 0),
        post_process=topology.is_last_stage and vp_stage in (None, layout.vpp - 1),
        parallel_output=True,
        share_embeddings_and_output_weights=hf_config.tied_embeddings,
        position_embedding_type="rope",
        rotary_base=hf_config.rope_theta,  # type: ignore[arg-type]
        vp_stage=vp_stage,
    )
    model.rotary_pos_emb.inv_freq = rotary_frequencies(hf_config.head_dim, hf_config.rope_theta, hf_config.rope_scaling)
    model.hf_config = hf_config
    model.topology = topology
    _mark_cut_parameters(model)
    return model.to(topology.device)


def first_layer_of(model: GPTModel) -> int:
    """Index in the whole model of this stage's first layer."""
    return model.decoder.layers[0].layer_number - 1


def first_expert_of(hf_config: HFConfig, topology: Topology) -> int:
    """Index in a layer of the first expert that this rank holds; 0 without experts."""
    return 0 if hf_config.moe is None else topology.ep_rank * (hf_config.moe.num_experts // topology.ep_size)


def _mark_cut_parameters(model: PolicyModel) -> None:
    """Says of each parameter whether ranks hold different parts of it, and over which ranks its gradient is summed.

    Upstream marks a weight while it initialises it, which we skip since all are loaded. Without the mark the gradient
    norm would count the part of rank 0 only. The weights of experts carry it even where `etp` = 1: what tensor parallel
    ranks hold are then other experts, or replicas that the distributed optimizer cuts.

    Upstream sums an expert's gradient over the expert data parallel ranks only if `ep` > 1. With `ep` = 1 and
    `etp` != `tp` it would miss tokens, so every expert is marked; where the groups are equal it changes nothing.
    """
    for name, parameter in model.named_parameters():
        rule = rule_for(name, first_layer_of(model), model.hf_config)
        if rule.cut_dim is not None and not hasattr(parameter, "tensor_model_parallel"):
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=rule.cut_dim, stride=1)
        if rule.is_expert:
            parameter.allreduce = False
