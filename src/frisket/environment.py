"""What a number was measured on: software, processor, GPU, commit, date. Goes into every result.

Use     environment(cuda=False, repeats=7, seed=0)
Source  our choice. Reads /proc/cpuinfo and asks git and nvidia-smi where they are; elsewhere the field stays empty.
"""

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from frisket.kernels.attention import describe


def environment(*, cuda: bool, **facts: Any) -> dict[str, Any]:
    """Everything a reader needs to judge the numbers; `facts` are the caller's own (repeats, seed, command, …)."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "driver": _told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
        if cuda
        else None,
        "cuda": torch.version.cuda if cuda else None,
        "attention": describe(),
        **facts,
    }


def cpu_model() -> str:
    """The processor's name and its bf16 instructions (Linux), or what Python knows of it."""
    fields = _cpu_fields()
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(cpu_bf16()) or 'no bf16 instructions'})"


def cpu_bf16() -> list[str]:
    """The bf16 instruction sets this CPU names in /proc/cpuinfo."""
    fields = _cpu_fields()
    flags = fields.get("flags", fields.get("Features", "")).split()
    return [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags]


def _cpu_fields() -> dict[str, str]:
    info = Path("/proc/cpuinfo")
    text = info.read_text().split("\n\n")[0] if info.is_file() else ""
    return {key.strip(): value.strip() for key, _, value in (part.partition(":") for part in text.splitlines())}


def commit() -> str | None:
    """The commit this package lies in, with '+changes' when files differ from it; None outside a git checkout."""
    folder = str(Path(__file__).parent)
    revision = _told("git", "-C", folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    return revision + ("+changes" if _told("git", "-C", folder, "status", "--porcelain") else "")


def _told(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None  # no such program here: the field stays empty
    return done.stdout.strip() if done.returncode == 0 else None
