"""What computed numbers are made of where nothing was measured: GPUs' peaks, the share we assume of them, SA-1B's size.

    gpu_hours(20 * 2 * macs * images)      # of an A100; whoever prints it says "computed"

Source  peaks: NVIDIA's data sheets, dense, bf16; SA-1B's size: arXiv 2304.02643 and Meta's list; MFU is our assumption.
"""

PEAK_FLOPS = {  # longer names first
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,  # fp16
}
MFU = 0.4
"""Share of the peak that computed hours count with; not measured."""
SA1B = {"images": 11_200_000, "masks": 1_100_000_000, "bytes": 10e12}
"""As Meta ships it: JPEGs of 1500 px on the shorter side, a hundred masks each."""


def peak_flops(device_name: str) -> float | None:
    """Return the peak bf16 FLOP/s of a GPU by its CUDA name, or None for one not in the table."""
    words = device_name.replace("-", " ")
    return next((flops for name, flops in PEAK_FLOPS.items() if name in words), None)


def gpu_hours(flops: float, gpu: str = "A100") -> float:
    """Computed: hours of one GPU at MFU of its peak."""
    return flops / (MFU * PEAK_FLOPS[gpu]) / 3600
