"""Attention back ends for CUDA, and the choice among all of them.

    sdpa                 torch's scaled dot product attention over blocks of segments (`packed`); runs everywhere
    varlen               torch's variable length flash attention: one call for all segments, bfloat16 or float16; by
                         FlashAttention 3 or 4 where they are installed
    cudnn                as sdpa, by cuDNN's kernel wherever it takes the shapes
    transformer_engine   Transformer Engine's fused attention, with its own context parallel exchange

The indexing of `varlen` is tested on a CPU against a plain implementation of torch's function, Transformer Engine
through a stand-in. Neither the flash kernels, cuDNN nor Transformer Engine has been run on a GPU yet.

FlashAttention 3 or 4 computes torch's flash attention where it is installed, else torch's own, 2. At 65,536 tokens
version 2 stays near 25% of an H100's peak, 3 and cuDNN reach about 41%. The choice holds for the process. Tested on a
CPU against a stand-in for torch's registry; not run on a GPU yet.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_ext import platform
from megatron_ext.attention.context_attention import ContextPlan, gather_whole, scatter_whole
from megatron_ext.attention.context_split import chunk_numbers
from megatron_ext.attention.packed import PackedAttention, PackedSegments, SegmentAttention
from megatron_ext.kernels.choice import AttentionBackend, Library, installed_flash

platform.install()

from megatron.core.packed_seq_params import PackedSeqParams  # noqa: E402
from megatron.core.transformer.enums import AttnMaskType  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

logger = logging.getLogger(__name__)

VERSIONS = {9: ("FA3", "FA4"), 10: ("FA4",)}
"""By major compute capability, the better first: 3 was written for Hopper, 4 for Blackwell, and runs on Hopper too."""


def active_flash() -> str | None:
    """The library that computes torch's flash attention; None for torch's own."""
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
    return None if current is None else current()


def activate_flash(capability_major: int) -> str | None:
    """Has torch use "FA3" or "FA4" from here on, and says which; None where neither can be had: torch keeps its own.

    What is installed and does not load is a warning with the reason: the run goes on, slower.
    """
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate is None:
        return None  # an older torch
    current = active_flash()
    if current is not None:
        return current
    installed = installed_flash()
    for version in VERSIONS.get(capability_major, ()):
        if version not in installed:
            continue
        try:
            activate(version)
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            logger.warning("%s is installed and torch cannot use it: %s", version, error)
        else:
            return version
    return None


CUDNN_CAPABILITY_MAJOR = 9
"""From Hopper on cuDNN's attention is far ahead of FlashAttention 2; before, it is not."""


class AttentionBackendError(ValueError):
    """The back end asked for cannot run here. The message says why, and what can."""


def choose_attention(
    backend: AttentionBackend, device: torch.device, dtype: torch.dtype, library: Library = "torch"
) -> type[PackedAttention]:
    """The core attention module.

    `auto` is Transformer Engine's where that `library` computes all else. Otherwise it is the first that runs here of
    `varlen` by FlashAttention 3 or 4, `cudnn`, `varlen` by FlashAttention 2, and `sdpa`.

    Raises AttentionBackendError for a back end that is unknown or cannot run on this device, in this dtype or with this
    torch.
    """
    if backend not in get_args(AttentionBackend):
        raise AttentionBackendError(
            f"attention = {backend!r}: it must be one of {', '.join(get_args(AttentionBackend))}"
        )
    obstacle = _obstacle(device, dtype)
    if obstacle and backend not in ("sdpa", "auto"):
        raise AttentionBackendError(f'attention = "{backend}": {obstacle}; use "sdpa" or "auto"')
    if backend == "auto":
        backend = "sdpa" if obstacle else _best(library, torch.cuda.get_device_capability(device)[0])
    elif backend == "varlen":
        activate_flash(torch.cuda.get_device_capability(device)[0])
    return MODULES[backend]


def _best(library: Library, capability_major: int) -> AttentionBackend:
    """The fastest on a GPU of this compute capability, in half precision."""
    if library == "transformer_engine":
        return "transformer_engine"
    if activate_flash(capability_major) is None and capability_major >= CUDNN_CAPABILITY_MAJOR:
        return "cudnn"
    return "varlen"


def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why flash attention cannot run, or None."""
    if device.type != "cuda":
        return f"it needs CUDA, this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes bfloat16 or float16, not {dtype}"
    return None


class VarlenAttention(SegmentAttention):
    """Torch's variable length flash attention, which aligns a causal mask with the last key of each segment."""

    def attend_whole(self, query_Whd: Tensor, key_Wgd: Tensor, value_Wgd: Tensor, segments: PackedSegments) -> Tensor:
        starts, longest = segments.cu_seqlens_q, segments.max_seqlen_q
        return self._call(query_Whd, key_Wgd, value_Wgd, (starts, starts), (longest, longest))

    def attend_part(self, query_Thd: Tensor, key_Tgd: Tensor, value_Tgd: Tensor, context: ContextPlan) -> Tensor:
        """One call for all chunks: each has as keys its segment up to its own end, copied next to one another."""
        keys = _plan_chunk_keys(context)
        whole_W2gd = _GatherWhole.apply(torch.cat([key_Tgd, value_Tgd], dim=1), context)
        key_Kgd, value_Kgd = whole_W2gd.index_select(0, keys.whole_K).chunk(2, dim=1)  # type: ignore[union-attr]
        return self._call(query_Thd, key_Kgd, value_Kgd, (keys.query_starts, keys.key_starts), keys.longest)

    def _call(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        starts: tuple[Tensor, Tensor],
        longest: tuple[int, int],
    ) -> Tensor:
        from torch.nn.attention import varlen  # only where it is used: older versions of torch lack it

        grouped = {}
        if query.size(1) != key.size(1) and "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:
            grouped["enable_gqa"] = True  # torch 2.11 takes grouped queries without a word
        output = varlen.varlen_attn(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            *starts,
            *longest,
            scale=self.softmax_scale,
            window_size=(-1, 0),
            **grouped,
        )
        assert isinstance(output, Tensor)
        return output


class CudnnAttention(SegmentAttention):
    """By cuDNN; what it does not take (a head dim, grouped queries of an older version) goes to the next kernel."""

    def attend_block(self, query_BhLd: Tensor, key_BgLd: Tensor, value_BgLd: Tensor) -> Tensor:
        with sdpa_kernel(CUDNN_FIRST, set_priority=True):
            return super().attend_block(query_BhLd, key_BgLd, value_BgLd)


CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class ChunkKeys:
    """The keys of every chunk of a rank. K is their number in all, at most W + T."""

    whole_K: Tensor
    """int64 [K], place in whole order."""
    query_starts: Tensor
    """int32 [chunks + 1]."""
    key_starts: Tensor
    longest: tuple[int, int]
    """The longest of the queries and of the keys of a chunk."""


def _plan_chunk_keys(context: ContextPlan) -> ChunkKeys:
    """Once per micro-batch; later layers find it with the plan."""
    if "chunk_keys" in context.cache:
        return context.cache["chunk_keys"]
    device = context.whole_of_gathered_W.device
    keys, lengths = [], []
    for run in context.runs:
        for segment in range(run.count):
            start = run.whole_start + segment * 2 * context.size * run.chunk
            for number in chunk_numbers(context.size, context.rank):
                keys.append(start + torch.arange((number + 1) * run.chunk))
                lengths.append((run.chunk, (number + 1) * run.chunk))
    lengths_C2 = torch.tensor(lengths)
    starts_C2 = torch.cat([torch.zeros(1, 2, dtype=torch.int64), lengths_C2.cumsum(0)]).to(device, torch.int32)
    most_queries, most_keys = lengths_C2.amax(0).tolist()
    plan = ChunkKeys(
        whole_K=torch.cat(keys).to(device),
        query_starts=starts_C2[:, 0].contiguous(),
        key_starts=starts_C2[:, 1].contiguous(),
        longest=(most_queries, most_keys),
    )
    context.cache["chunk_keys"] = plan
    return plan


class _GatherWhole(torch.autograd.Function):
    """`gather_whole` with its gradient."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, plan: ContextPlan) -> Tensor:
        ctx.plan = plan
        return gather_whole(tokens, plan)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        return scatter_whole(grad_outputs[0], ctx.plan), None


class TransformerEngineAttention(PackedAttention):
    """Transformer Engine's attention through Megatron's wrapper, which also does context parallel. Untested.

    Its packed layout over ranks is the zig-zag of context_split, so tokens need no reordering.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, **options: Any) -> None:
        super().__init__(config=config)
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        # With context parallel every segment is padded to whole chunks, which Transformer Engine wants to know.
        options["attn_mask_type"] = AttnMaskType.padding_causal
        try:
            self.attention = TEDotProductAttention(config=config, layer_number=layer_number, **options)
        except ImportError as error:
            raise AttentionBackendError(
                'attention = "transformer_engine": Transformer Engine is not installed; use "auto" or "cudnn"'
            ) from error

    def attend(self, query_Thd: Tensor, key_Tgd: Tensor, value_Tgd: Tensor, segments: PackedSegments) -> Tensor:
        starts, longest = segments.cu_seqlens_q, segments.max_seqlen_q
        packed = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=starts,
            cu_seqlens_kv=starts,
            cu_seqlens_q_padded=starts,
            cu_seqlens_kv_padded=starts,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )
        output = self.attention(
            query_Thd, key_Tgd, value_Tgd, None, AttnMaskType.padding_causal, packed_seq_params=packed
        )
        return output.view(query_Thd.shape)


MODULES: dict[AttentionBackend, type[PackedAttention]] = {
    "sdpa": SegmentAttention,
    "varlen": VarlenAttention,
    "cudnn": CudnnAttention,
    "transformer_engine": TransformerEngineAttention,
}
