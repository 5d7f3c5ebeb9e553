"""Adam in the manner of the fused optimizers of apex and Transformer Engine, computed by torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch


class StandInAdam(torch.optim.Optimizer):
    """Steps are counted per group, and moments made in the first step."""

    calls: Counter[str]

    def __init__(self, params: Any, lr: float, betas: Any, eps: float, weight_decay: float, adam_w_mode: bool) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        assert adam_w_mode

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        self.calls["adam"] += 1
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (beta1, beta2), step = group["betas"], group["step"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"]
                p.addcdiv_(state["exp_avg"] / (1 - beta1**step), root, value=-group["lr"])
