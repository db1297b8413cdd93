"""How far a step of a training may move each weight, and which it may not move at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sartor.techniques._weights_onnx import Stored

_WARM = 0.1  # share of the steps in which the rate rises
_LEAST_SCALE = 1e-3  # of a weight's rate: a bias of zeros would never move


def optimizer(weights: Sequence[nn.Parameter], rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW that moves each weight by a share of its own root mean square, as it is now."""
    groups = [
        {"params": [weight], "lr": rate * max(_scale(weight), _LEAST_SCALE)} for weight in weights
    ]
    for group in groups:
        group["initial"] = group["lr"]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=decay, fused=True)


def schedule(at: int, steps: int) -> float:
    """The share of its rate that is left at this step: up linearly, then down along half a
    cosine."""
    warm = max(round(_WARM * steps), 1)
    if at < warm:
        return (at + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (at - warm) / max(steps - warm, 1)))


def zeros_kept(weight: nn.Parameter, stored: Stored | None) -> Tensor | None:
    """1 where a pruned weight is not zero; None for weights that were not pruned, such as a bias
    that begins as zeros. Rounding to few bits makes zeros too, but fewer than stand a step to both
    sides of zero."""
    zeros = weight.detach() == 0
    least = max(1 / 8, stored.beside_zero(weight) if stored is not None else 0.0)
    return None if weight.ndim < 2 or float(zeros.float().mean()) < least else (~zeros).float()


def _scale(weight: Tensor) -> float:
    return float(weight.detach().square().mean().sqrt())
