"""Activation checkpointing of an encoder's residual blocks: computed again in the backward pass instead of kept.

Use     recompute(sam.image_encoder): a third more work, memory of one block's inner activations instead of all blocks'
Source  Chen et al. 2016 (arXiv 1604.06174). Gradients are those without it: random numbers are repeated, and BatchNorm
        counts a batch once (ours).
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from frisket.models.blocks import residual_blocks

INNER = "forward_once"
"""Of a block that recomputes: what it computes."""


def recompute(encoder: nn.Module) -> None:
    """Let the residual blocks keep only their input while gradients are wanted. Changes them in place; their names in a
    state dict stay."""
    for block in residual_blocks(encoder):
        vars(block)[INNER] = block.forward  # where torch.compile is welcome (frisket.engine.compile)
        block.forward = partial(_again, block)


def _again(block: nn.Module, *inputs: Any) -> Any:
    forward = vars(block)[INNER]
    if not torch.is_grad_enabled():
        return forward(*inputs)
    contexts = lambda: (contextlib.nullcontext(), _uncounted(block))  # noqa: E731
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Within it BatchNorm moves no running statistics."""
    norms: Any = [part for part in block.modules() if isinstance(part, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
