"""Peaks by the names that CUDA gives GPUs, and the hours computed with them."""

import pytest

from frisket.budget import MFU, gpu_hours, peak_flops


def test_peak_flops_of_known_gpus():
    assert peak_flops("NVIDIA A40") == 149.7e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA GeForce GTX 1080") is None


def test_computed_hours_count_with_the_share_we_state() -> None:
    assert gpu_hours(312e12 * 3600 * 10) == pytest.approx(10 / MFU)
    assert gpu_hours(149.7e12 * 3600, "A40") == pytest.approx(1 / MFU)
