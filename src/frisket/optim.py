"""Optimizer and schedule: AdamW, decay on matrices only, warm-up then cosine or constant.

Total steps come from the config: `trainer.estimated_stepping_batches` silently drops the loader's state on resume.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass
class OptimConfig:
    """lr: peak; min_ratio: the last lr as a share of the peak; warmup_steps: linear from 0. AdamW's betas and decay."""

    lr: float = 1e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    min_ratio: float = 0.0


def build(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, *, steps: int):
    """Return (AdamW, LambdaLR stepped once per optimizer step) over the named parameters that require gradients."""
    decay, plain = [], []
    for name, parameter in parameters:
        if parameter.requires_grad:
            # biases, norms, position tables and token embeddings are not shrunk (MAE's and SAM's habit)
            table = "pos_embed" in name or "rel_pos" in name or "_embed" in name.rsplit(".", 1)[0] or "token" in name
            (plain if parameter.ndim < 2 or table and "patch_embed" not in name else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=tuple(config.betas))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: ratio(step, config, steps=steps))


def ratio(step: int, config: OptimConfig, *, steps: int) -> float:
    """The learning rate at `step` of `steps` as a share of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    return config.min_ratio + (1 - config.min_ratio) * 0.5 * (1 + math.cos(math.pi * done))
