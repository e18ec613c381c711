"""What moves the weights: AdamW, lazy where gradients are sparse, and a bound on gradients."""

from __future__ import annotations

import torch

from model import Recommender
from training.config import TrainingConfig


def optimizers_of(model: Recommender, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    betas = (config.beta1, config.beta2)
    table = model.item_embedding
    sparse = list(table.parameters()) if table.sparse else []
    dense = [p for p in model.parameters() if not any(p is other for other in sparse)]
    matrices = [p for p in dense if p.ndim >= 2]
    vectors = [p for p in dense if p.ndim < 2]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},  # norms, biases, decay rates
            ],
            lr=config.lr,
            betas=betas,
            fused=True,
        )
    ]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(sparse, lr=config.lr, betas=betas))
    return optimizers


def clip(model: Recommender, largest: float) -> None:
    """`torch.nn.utils.clip_grad_norm_` for gradients of which some are sparse."""
    gradients = []
    for parameter in model.parameters():
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
            sparse = parameter.grad.is_sparse
            gradients.append(parameter.grad.values() if sparse else parameter.grad)
    factor = (largest / (torch.nn.utils.get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
