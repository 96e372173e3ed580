"""Optimizer and schedule: AdamW, decay on matrices only, warm-up, then cosine, steps down, or constant with a decay.

Total steps come from the config: `trainer.estimated_stepping_batches` silently drops the loader's state on resume.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class OptimConfig:
    """AdamW and its learning rate over the steps of a run."""

    lr: float = field(default=1e-4, metadata={"least": 0})
    """The highest learning rate; fits data.global_batch."""
    weight_decay: float = field(default=0.05, metadata={"least": 0})
    """Of matrices; biases, norms, position tables and token embeddings are not shrunk."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's memory of gradients and of their squares."""
    warmup_steps: int = field(default=0, metadata={"least": 0})
    """Linear from 0 to lr."""
    schedule: Literal["cosine", "constant", "wsd", "step"] = "cosine"
    """After the warm-up; wsd: constant, then linear to min_ratio over the last decay_share of the steps; step: divided
    by step_factor at each of step_at."""
    min_ratio: float = field(default=0.0, metadata={"least": 0, "most": 1})
    """The last learning rate as a share of lr."""
    decay_share: float = field(default=0.4, metadata={"least": 0, "most": 1})
    """Of the run, for schedule wsd."""
    step_at: list[float] = field(default_factory=lambda: [60 / 90, 86.666 / 90], metadata={"least": 0})
    """For schedule step: below 1 a share of the run, else a step (SAM, appendix A: 60k and 86,666 of 90k)."""
    step_factor: float = field(default=10.0, metadata={"least": 1})
    """For schedule step (SAM, appendix A)."""
    layer_decay: float = field(default=1.0, metadata={"least": 1e-3, "most": 1})
    """Of the rate with each layer of the image encoder away from its end (BEiT, arXiv 2106.08254; SAM, appendix A: 0.8;
    ViT-B 0.6); 1: none."""


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimConfig,
    *,
    steps: int,
    plain: Collection[str] = (),
    rates: Mapping[str, float] | None = None,
):
    """Return (AdamW, LambdaLR stepped once per optimizer step) over the named parameters that require gradients.

    Biases and norms are not shrunk, nor the parameters called in `plain`: position tables and token embeddings, which
    have two axes or more and yet are no matrices (MAE's and SAM's habit). `rates`: {whole beginning of a dotted name:
    share of lr}; the first that fits counts.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            rate = next((share for start, share in (rates or {}).items() if f"{name}.".startswith(f"{start}.")), 1.0)
            groups.setdefault((rate, parameter.ndim < 2 or name in plain), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": group, "weight_decay": 0.0 if spared else config.weight_decay, "lr": config.lr * rate}
            for (rate, spared), group in sorted(groups.items(), key=lambda item: (-item[0][0], item[0][1]))
        ],
        lr=config.lr, betas=config.betas, fused=True,
    )  # fmt: skip
    # A fused AdamW offers to unscale fp16 gradients itself, and Lightning then refuses to clip them, in bf16 too, where
    # nothing is scaled. Without the offer they are unscaled before clipping, as for any other optimizer.
    optimizer._step_supports_amp_scaling = False
    return optimizer, LambdaLR(optimizer, lambda step: ratio(step, config, steps=steps))


def settle(schedule: LambdaLR, wanted: LambdaLR) -> None:
    """Give a resumed optimizer the rates, decay and betas of `wanted`, of the same groups, from its next step on: the
    checkpoint brought those of the start before. Moments and steps stay."""
    schedule.base_lrs = wanted.base_lrs
    for group, mine in zip(schedule.optimizer.param_groups, wanted.optimizer.param_groups, strict=True):
        group.update({key: mine[key] for key in ("initial_lr", "weight_decay", "betas")})
        group["lr"] = mine["initial_lr"] * schedule.lr_lambdas[0](schedule.last_epoch)


def ratio(step: int, config: OptimConfig, *, steps: int) -> float:
    """The learning rate at `step` of `steps` as a share of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":
        left = (steps - step) / max(1.0, config.decay_share * steps)
        return max(config.min_ratio, min(1.0, left))
    if config.schedule == "step":
        return config.step_factor ** -sum(step >= (at if at >= 1 else round(at * steps)) for at in config.step_at)
    done = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    return config.min_ratio + (1 - config.min_ratio) * 0.5 * (1 + math.cos(math.pi * done))
