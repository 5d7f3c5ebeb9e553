"""Has Megatron take Adam, and the sums of weight gradients, from the library that was chosen.

Upstream takes what it finds when it is imported: Transformer Engine, else Apex, else torch; for sums of weight
gradients Apex or nothing. The choice holds for the process. Apex and Transformer Engine are tested through stand-ins on
a CPU; not run on a GPU yet.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from megatron_ext import platform
from megatron_ext.kernels.choice import Library
from megatron_ext.platform.patch import PlatformError

platform.install()

import megatron.core.optimizer as upstream_optimizer  # noqa: E402
from megatron.core.optimizer import distrib_optimizer  # noqa: E402
from megatron.core.tensor_parallel import layers  # noqa: E402

ADAM_MODULES: dict[Library, str] = {
    "transformer_engine": "transformer_engine.pytorch.optimizers",
    "apex": "apex.optimizers",
}


def take_adam(library: Library) -> None:
    """Optimizers that Megatron builds from here on are this library's, and are saved in its manner.

    AdamW of torch counts steps per parameter, the fused ones per group; upstream's `state_dict` asks these names which.
    """
    fused = library in ADAM_MODULES
    adam = importlib.import_module(ADAM_MODULES[library]).FusedAdam if fused else torch.optim.AdamW
    _set(upstream_optimizer, Adam=adam, USING_PYTORCH_OPTIMIZER=not fused)
    _set(
        distrib_optimizer,
        Adam=adam,
        HAVE_APEX_OR_TE=fused,
        USING_TE_OPTIMIZER=library == "transformer_engine",
        USING_APEX_OPTIMIZER=library == "apex",
    )


def take_weight_gradients(library: Library) -> None:
    """Linear layers with `gradient_accumulation_fusion` add their products to `main_grad` by this library."""
    if library == "torch":
        return  # such layers are not built
    product: Any = _TransformerEngineProduct()
    if library == "apex":
        product = importlib.import_module("fused_weight_gradient_mlp_cuda")
    _set(layers, _grad_accum_fusion_available=True)
    layers.__dict__["fused_weight_gradient_mlp_cuda"] = product  # upstream has the name only where Apex is


class _TransformerEngineProduct:
    """Transformer Engine's matrix product under the names of Apex's extension."""

    def __init__(self) -> None:
        from transformer_engine.pytorch.cpp_extensions import general_gemm

        self._multiply = general_gemm
        self._options: dict[str, Any] = {"layout": "NT", "accumulate": True, "grad": True}
        if "workspace" in inspect.signature(general_gemm).parameters:  # until 2.9
            from transformer_engine.pytorch.module.base import get_workspace

            self._options["workspace"] = get_workspace()

    def wgrad_gemm_accum_fp32(self, input_TI: Tensor, grad_TO: Tensor, main_grad_OI: Tensor) -> None:
        """Adds grad^T input."""
        self._multiply(input_TI, grad_TO, out=main_grad_OI, out_dtype=main_grad_OI.dtype, **self._options)

    wgrad_gemm_accum_fp16 = wgrad_gemm_accum_fp32


def _set(module: ModuleType, **values: Any) -> None:
    """Raises PlatformError, before anything is changed, for a name that this Megatron does not have."""
    for name in values:
        if name not in vars(module):
            raise PlatformError(
                f"{module.__name__}.{name} does not exist in the installed megatron, but megatron_ext chooses kernels "
                "by it. Install a supported version."
            )
    vars(module).update(values)
