"""The rows' baselines are what they claim to be, and their guards notice a wrong answer."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from frisket.bench import attention, encoders, records
from frisket.bench.harness import Setting, ask
from frisket.geometry import Frame
from frisket.models.lightening import LighteningConfig, LighteningEncoder
from frisket.models.vit import ImageEncoderViT

CPU = Setting(quick=True, device=torch.device("cpu"))


def shake(module: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter off zero, so that no term hides."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def test_naive_attention_is_attention() -> None:
    q, k, v = (torch.randn(2, 9, 3, 8) for _ in range(3))
    wanted = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    assert attention.difference(attention.naive(q, k, v), wanted) < 1e-6  # fp32 rounding of 9 terms


def test_plain_vit_equals_ours_and_sees_its_relative_positions() -> None:
    vit = shake(ImageEncoderViT(encoders.QUICK_VIT))
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        ours = vit(x)
        assert attention.difference(ours, encoders.plain_vit(vit, x)) < 1e-4
        for block in vit.blocks:
            block.attn.rel_pos_h.zero_()
        assert attention.difference(ours, encoders.plain_vit(vit, x)) > 1e-3


@pytest.mark.parametrize("offsets", ["all", "longnet"])
@pytest.mark.parametrize("window", ["1d", "2d"])
def test_dense_lightening_equals_ours(offsets: str, window: str) -> None:
    config = LighteningConfig(
        image_size=128, width=48, depth=2, heads=3, segment=(16,), dilation=(2,), offsets=offsets, window=window
    )
    encoder = shake(LighteningEncoder(config))
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert attention.difference(encoder(x), encoders.dense_lightening(encoder, x)) < 1e-4


def test_encoder_guards_notice_a_wrong_student() -> None:
    case = encoders.encoder_row(CPU, torch.float32)
    with torch.no_grad():
        assert all(ask(guard).ok for guard in case.guards)
        # the timed call and the guard share the student: reach it and break its attention
        student = next(
            cell.cell_contents for cell in case.ours.__closure__ if isinstance(cell.cell_contents, LighteningEncoder)
        )
        student.blocks[0].attn.offsets = "longnet"
        assert not ask(case.guards[0]).ok


def test_blobs_fit_sa1b() -> None:
    rles = records.blobs(np.random.default_rng(0), (120, 180), 10)
    masks = coco_mask.decode(rles)
    assert masks.shape == (120, 180, 10) and masks.any(axis=(0, 1)).all()


def test_decode_and_index_samples_the_named_pixels_and_pads_with_zero() -> None:
    rng = np.random.default_rng(0)
    rles = records.blobs(rng, (60, 100), 3)
    frame = Frame.fit((60, 100), 64)
    rows, columns = records.grid_samples(frame)
    grids = records.decode_and_index(rles, rows, columns)
    full = coco_mask.decode(rles)
    for n, i, j in ((0, 0, 0), (1, 5, 9), (2, 8, 15)):
        assert grids[n, i, j] == full[rows[i], columns[j], n]
    assert (rows == -1).any() and not grids[:, rows == -1].any()


def test_the_genuine_photograph_is_used_when_there_is_one(data_root: object) -> None:
    jpg, size, source = records.photograph(np.random.default_rng(0), quick=False)
    assert source.startswith("SA-1B's") and min(size) >= 1000 and len(jpg) > 100_000
