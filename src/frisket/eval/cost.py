"""What a model costs apart from time: MACs, memory in a fresh process, and the state of the machine it was measured on.

Use     macs(sam, 1024)["encoder"]; memory(sam, side=1024, precision="32-true"); conditions(device)
Source  the procedure of our evaluation spec ("how to measure properly"): MACs of the encoder are those it declares
        (bound by test to torch's counter), of the rest torch's FlopCounterMode divided by two, attention products
        included; memory needs a process of its own, because a caching allocator and a peak counter remember what ran
        before. The reduced precision is our choice.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from frisket.models.sam import Sam
from frisket.sample import Prompts

PRECISIONS = {"32-true": torch.float32, "bf16-true": torch.bfloat16, "16-true": torch.float16}
MIB = 2**20
GIGA = 1e9


def reduced(sam: Sam, precision: str) -> Sam:
    """A copy of `sam` whose image encoder and mask decoder compute in `precision` (one of PRECISIONS).

    Weights are cast, and what enters either part is cast to them, so no autocast stands in the timed path. The prompt
    encoder stays in fp32: eight bits of mantissa cannot tell neighbouring pixels apart. 32-true gives `sam` itself.
    """
    if precision == "32-true":
        return sam
    dtype = PRECISIONS[precision]

    def cast(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)

    made = copy.deepcopy(sam)
    for part in (made.image_encoder, made.mask_decoder):
        part.to(dtype).register_forward_pre_hook(cast)
    return made


# ---------------------------------------------------------------- MACs


def on_meta(module: nn.Module) -> Any:
    """A copy of `module` whose parameters and buffers have shapes and no storage."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), False) for p in module.parameters()}
    memo |= {id(b): b.detach().to("meta") for b in module.buffers()}
    return copy.deepcopy(module, memo)


def count(call: Callable[[], Any]) -> float:
    """Multiply-accumulates (in 1e9) of everything `call` computes: convolutions, linear layers, attention products."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    return counter.get_total_flops() / 2 / GIGA


def macs(sam: Sam, side: int) -> dict[str, float]:
    """GMAC of one `side` x `side` image, nothing computed.

    "encoder"; "box": prompt encoder and decoder for one box, one mask; "point": one click, three masks; "points64": 64
    clicks, three masks each; "total": encoder and one box.
    """
    model: Sam = on_meta(sam)
    embedding = torch.empty(1, 256, side // 16, side // 16, device="meta")

    def decode(prompts: Prompts, multimask: bool) -> float:
        index = torch.zeros(len(prompts), dtype=torch.long, device="meta")
        return count(lambda: model.decode(embedding, index, prompts, multimask))

    encoder = sam.image_encoder.macs(side) / GIGA
    gmac = {"encoder": encoder, "box": decode(boxes(1, "meta"), False)}
    gmac |= {"point": decode(points(1, "meta"), True), "points64": decode(points(64, "meta"), True)}
    return gmac | {"total": gmac["encoder"] + gmac["box"]}


def boxes(number: int, device: torch.device | str) -> Prompts:
    """`number` boxes of unspecified place, for shapes alone."""
    return Prompts(boxes=torch.zeros(number, 4, device=device))


def points(number: int, device: torch.device | str) -> Prompts:
    """`number` objects with one click each, of unspecified place, for shapes alone."""
    labels = torch.ones(number, 1, dtype=torch.long, device=device)
    return Prompts(points=torch.zeros(number, 1, 2, device=device), labels=labels)


# ---------------------------------------------------------------- memory


def weights_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])


def memory(sam: Sam, *, side: int, precision: str, device: torch.device, threads: int = 1) -> dict[str, Any]:
    """What a fresh process needs to hold `sam` and answer one box, then 64 points, about one image. MiB.

    CUDA: "weights", "peak" (allocated), "activations" (peak - weights), "reserved", "device" (free memory that is gone,
    context included), and "<part>_peak" for encoder, box, points64. CPU: "weights", "rss_before" (torch imported, no
    model), "rss" (model loaded), "peak" (resident), "activations" (peak - rss), and "<part>_peak".
    Raises RuntimeError with the child's last words when it fails.
    """
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        torch.save(sam, path)
        told = {"side": side, "precision": precision, "device": str(device), "threads": threads, "free": free}
        command = [sys.executable, "-m", "frisket.eval.cost", str(path), json.dumps(told)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(path: str, told: dict[str, Any]) -> dict[str, Any]:
    """The fresh process's part of `memory`."""
    device = torch.device(told["device"])
    gauge = CudaGauge(device, told["free"]) if device.type == "cuda" else CpuGauge()
    torch.set_num_threads(told["threads"])
    sam = reduced(torch.load(path, map_location=device, weights_only=False), told["precision"]).eval()
    gauge.loaded()
    images = torch.zeros(1, 3, told["side"], told["side"], dtype=torch.uint8, device=device)
    sizes = torch.tensor([[told["side"], told["side"]]], device=device)
    index = torch.zeros(64, dtype=torch.long, device=device)
    peaks: dict[str, float] = {}
    with torch.inference_mode():
        embedding = sam.encode(images, sizes)
        calls = {
            "encoder": lambda: sam.encode(images, sizes),
            "box": lambda: sam.decode(embedding, index[:1], boxes(1, device), multimask=False),
            "points64": lambda: sam.decode(embedding, index, points(64, device), multimask=True),
        }
        for name, call in calls.items():
            call()  # workspaces and lazily made buffers are not this call's peak
            gauge.reset()
            call()
            peaks[f"{name}_peak"] = gauge.peak()
    peak = max(peaks.values())
    return {"weights": weights_bytes(sam) / MIB, "peak": peak, **gauge.rest(peak), **peaks}


class CudaGauge:
    """The allocator's counters, and how much free memory has gone since `free` bytes were counted."""

    def __init__(self, device: torch.device, free: int) -> None:
        self.device, self.free, self.weights = device, free, 0

    def loaded(self) -> None:
        """Remember what the weights alone take. (A cast copy's original is freed by now.)"""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        self.weights = torch.cuda.memory_allocated(self.device)

    def reset(self) -> None:
        """Start a new peak."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float:
        """Peak allocated since `reset`, MiB."""
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) / MIB

    def rest(self, peak: float) -> dict[str, float]:
        """The other numbers, MiB."""
        gone = self.free - torch.cuda.mem_get_info(self.device)[0]
        return {
            "activations": peak - self.weights / MIB,
            "reserved": torch.cuda.memory_reserved(self.device) / MIB,
            "device": gone / MIB,
        }


class CpuGauge:
    """Resident memory from Linux's /proc: VmRSS, and VmHWM, whose peak can be started anew."""

    def __init__(self) -> None:
        self.before, self.with_model = _status("VmRSS"), 0.0
        self.whole_life = False

    def loaded(self) -> None:
        """Remember what is resident with the model loaded."""
        self.with_model = _status("VmRSS")

    def reset(self) -> None:
        """Start a new peak; where the kernel does not allow it, the peak is that of the process's whole life."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.whole_life = True

    def peak(self) -> float:
        """Peak resident since `reset`, MiB."""
        return _status("VmHWM")

    def rest(self, peak: float) -> dict[str, float]:
        """The other numbers, MiB. "whole_life" 1: the peak includes loading."""
        return {
            "activations": peak - self.with_model,
            "rss_before": self.before,
            "rss": self.with_model,
            "whole_life": float(self.whole_life),
        }


def _status(field: str) -> float:
    """A kB field of /proc/self/status in MiB, or, elsewhere than on Linux, getrusage's peak."""
    path = Path("/proc/self/status")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    import resource  # not on Windows, and only needed where /proc is not

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


# ---------------------------------------------------------------- the machine


SMI = {
    "clocks.sm": "clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
    "power.limit": "power_limit_w",
}


def conditions(device: torch.device) -> dict[str, float]:
    """Clocks, temperature, power and other processes of a GPU as nvidia-smi tells them now; a CPU's load average."""
    if device.type != "cuda":
        return {"load": os.getloadavg()[0]}
    which = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    told = _ask_smi(which, f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits").split(",")
    facts = {name: value for name, text in zip(SMI.values(), told) if (value := _number(text)) is not None}
    others = _ask_smi(which, "--query-compute-apps=pid", "--format=csv,noheader").split()
    return facts | {"gpu_processes": float(len(others)), "load": os.getloadavg()[0]}


def _ask_smi(*words: str) -> str:
    try:
        return subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""  # no such program here: the fields stay away


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # "[N/A]", or nothing


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], json.loads(sys.argv[2]))))
