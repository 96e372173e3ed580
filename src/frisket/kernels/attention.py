"""The one door to attention: flash-attn 2 where it can serve, else PyTorch's fused kernel, else plain matrix products.

Use     `attention(q, k, v)` with tensors in (B, N, H, d); `describe()` gives the line for the log.
Choose  in this order: the `backend` argument, the environment variable FRISKET_ATTENTION (flash, sdpa, plain or auto),
        else automatically per call by `choose`.
Source  FlashAttention-2 (arXiv 2307.08691) through the flash-attn package; the limits checked here are those of its
        README (Ampere or newer, fp16 or bf16, head width up to 256, no additive bias).

Shape letters: B batch, N queries, M keys, H heads, d width of one head.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frisket.errors import UserError, nearest

VARIABLE = "FRISKET_ATTENTION"


class Backend(StrEnum):
    """Where attention runs. `auto` is no member: it means "no wish"."""

    flash = "flash"
    """flash-attn >= 2 (extra `flash`). CUDA of compute capability 8.0 or newer, fp16 and bf16, d <= 256, no bias."""
    sdpa = "sdpa"
    """torch.nn.functional.scaled_dot_product_attention. Any device and dtype, bias allowed; it picks a kernel."""
    plain = "plain"
    """Two matrix products around a float32 softmax. Any device and dtype; N x M is allocated. The reference."""


@cache
def _flash() -> tuple[Callable[..., Any] | None, str]:
    """flash_attn_func, or None with the reason why it is not there. Imported once, on first need."""
    try:
        import flash_attn
        from flash_attn import flash_attn_func
    except ImportError as error:
        return None, f"flash-attn is not importable ({error})"
    if int(flash_attn.__version__.split(".")[0]) < 2:
        return None, f"flash-attn {flash_attn.__version__} is too old, 2 or newer is needed"
    return flash_attn_func, f"flash-attn {flash_attn.__version__}"


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _obstacle(q: Tensor, bias: Tensor | None) -> str | None:
    """Why flash-attn cannot serve this call, or None when it can. Cheap checks first; no import on a CPU."""
    if not q.is_cuda:
        return f"the tensors are on {q.device.type}, not on CUDA"
    if bias is not None:
        return "it takes no bias or mask"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 or bfloat16, not {q.dtype}"
    if q.shape[-1] > 256:
        return f"heads are {q.shape[-1]} wide, more than 256"
    if _capability(q.device) < (8, 0):
        return "the GPU is older than Ampere (compute capability 8.0)"
    function, reason = _flash()
    return None if function is not None else reason


def parse(name: Backend | str | None, where: str) -> Backend | None:
    """A backend from its name; None, "" and "auto" mean no wish. Raises UserError naming `where` for anything else."""
    if name is None or name in ("", "auto"):
        return None
    known = [backend.value for backend in Backend]
    if name not in known:
        hint = nearest(str(name), [*known, "auto"])
        raise UserError(f"{where} asks for the unknown attention backend '{name}'; {hint}")
    return Backend(name)


def _wish() -> Backend | None:
    return parse(os.environ.get(VARIABLE), f"the environment variable {VARIABLE}")


def choose(q: Tensor, bias: Tensor | None = None) -> Backend:
    """The backend a call with these tensors gets when its `backend` argument is None.

    A wish for flash (by the environment) is kept for the calls flash-attn can serve; the others (a bias, fp32)
    go to sdpa, so that one model may hold both kinds. Raises UserError when flash is wished for and not installed.
    """
    wish = _wish()
    if wish is Backend.flash and _flash()[0] is None:
        raise UserError(f"attention backend flash was asked for, but {_flash()[1]}; install frisket[flash] or use sdpa")
    if wish is Backend.sdpa or wish is Backend.plain:
        return wish
    return Backend.flash if _obstacle(q, bias) is None else Backend.sdpa


def describe() -> str:
    """One line for the log: which backend calls will get and why."""
    wish = _wish()
    if wish is not None:
        return f"attention: {wish.value} ({VARIABLE})"
    if not torch.cuda.is_available():
        return f"attention: sdpa (torch {torch.__version__}, no CUDA device)"
    function, reason = _flash()
    if function is None:
        return f"attention: sdpa (torch {torch.__version__}, {reason})"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"attention: sdpa (torch {torch.__version__}, the GPU is older than Ampere)"
    return f"attention: flash for fp16 and bf16 without bias ({reason}), else sdpa (torch {torch.__version__})"


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    backend: Backend | str | None = None,
) -> Tensor:
    """softmax(q k^T * scale + bias) v, per batch item and head, not causal, no dropout.

    q (B, N, H, d); k, v (B, M, H, d), any strides with a dense last axis (no copy is made of them).
    bias broadcasts to (B, H, N, M): float is added to the scores, bool keeps where True.
    scale defaults to d ** -0.5. Returns (B, N, H, d).
    Raises ValueError when `backend` names flash for a call it cannot serve (the reason is given).
    """
    chosen = parse(backend, "attention()")
    if chosen is None:
        chosen = choose(q, bias)
    elif chosen is Backend.flash and (reason := _obstacle(q, bias)) is not None:
        raise ValueError(f"attention backend flash cannot serve this call: {reason}")
    if chosen is Backend.flash:
        function, reason = _flash()
        assert function is not None, reason  # `choose` and `_obstacle` made sure
        return function(q, k, v, softmax_scale=scale)
    if chosen is Backend.sdpa:
        heads_first = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first, attn_mask=bias, scale=scale).transpose(1, 2)
    return _plain(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, bias)


def _plain(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    scores = (q.transpose(1, 2) * scale) @ k.permute(0, 2, 3, 1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if bias is not None:
        scores = scores.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else scores + bias
    return (scores.softmax(-1).to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
