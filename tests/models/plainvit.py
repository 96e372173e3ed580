"""SAM's relative positions as they are written in words: the reference of `frisket.models.vit.relative_attention`."""

import torch
from torch import Tensor

from frisket.models.vit import relative_terms


def relative_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, table_h: Tensor, table_w: Tensor, grid: tuple[int, int]
) -> Tensor:
    """The plain form of `relative_attention`: logits, bias and softmax written out. For tests and reading."""
    h, w = grid
    row_logits, column_logits = relative_terms(q, table_h, table_w, grid)
    bias = row_logits.repeat_interleave(w, dim=-1) + column_logits.repeat(1, 1, 1, h)  # (B, query, H, key)
    logits = torch.einsum("bqnd,bknd->bqnk", q * q.shape[-1] ** -0.5, k) + bias
    return torch.einsum("bqnk,bknd->bqnd", logits.softmax(dim=-1), v)
