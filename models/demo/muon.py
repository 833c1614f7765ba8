"""Muon: momentum whose update is made orthogonal, for weight matrices; it learns more per token than AdamW does.

After Jordan et al. 2024, scaled to AdamW's step size as in Liu et al. 2025 (arXiv 2502.16982), so that one learning
rate and weight decay serve both. Unlike `torch.optim.Muon` it takes stacked experts `[experts, out, in]`, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def orthogonalise(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """Moves every singular value of `matrices` [..., out, in] to about 1, by a quintic Newton-Schulz iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """One step per matrix of every parameter [..., out, in]; decoupled weight decay."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                average = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalise(parameter.grad.lerp(average, group["momentum"]))  # Nesterov's look ahead.
                scale = 0.2 * max(parameter.shape[-2:]) ** 0.5  # The root mean square of AdamW's updates.
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)
