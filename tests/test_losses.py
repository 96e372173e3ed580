"""Each loss against plain numpy written from the formula, forward and gradient."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from frisket.losses import dice_loss, feature_loss, focal_loss, logits_iou, mask_losses, normalize_feature


def numpy_focal(logits: np.ndarray, truth: np.ndarray, valid: np.ndarray, alpha: float, gamma: float) -> float:
    chance = 1 / (1 + np.exp(-logits))
    right = np.where(truth, chance, 1 - chance)
    weight = np.where(truth, alpha, 1 - alpha)
    return float((-weight * (1 - right) ** gamma * np.log(right))[valid].mean())


def numpy_dice(logits: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    chance = (1 / (1 + np.exp(-logits)))[valid]
    truth = truth[valid]
    return float(1 - (2 * (chance * truth).sum() + 1) / (chance.sum() + truth.sum() + 1))


def numeric_gradient(function, logits: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences."""
    gradient = np.zeros_like(logits)
    for place in np.ndindex(*logits.shape):
        up, down = logits.copy(), logits.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits (3, 5, 6) double, truth bool, valid bool with some padding."""
    valid = torch.ones(3, 5, 6, dtype=torch.bool)
    valid[0, 4:], valid[1, :, 3:] = False, False
    return 2 * torch.randn(3, 5, 6, dtype=torch.float64), torch.rand(3, 5, 6) < 0.4, valid


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["focal", "focal_other", "dice"])
def test_mask_terms_equal_numpy_forward_and_gradient(case, kind: str, masked: bool) -> None:
    logits, truth, valid = case
    logits.requires_grad_(True)
    given = valid if masked else None
    used = valid.numpy() if masked else np.ones_like(valid.numpy())
    if kind == "dice":
        ours = dice_loss(logits, truth, valid=given)
        plain = [lambda x, row=row: numpy_dice(x, truth[row].numpy(), used[row]) for row in range(3)]
    else:
        alpha, gamma = (0.25, 2.0) if kind == "focal" else (0.6, 1.5)
        ours = focal_loss(logits, truth, valid=given, alpha=alpha, gamma=gamma)
        plain = [lambda x, row=row: numpy_focal(x, truth[row].numpy(), used[row], alpha, gamma) for row in range(3)]
    start = logits.detach().numpy()
    assert ours.shape == (3,)
    np.testing.assert_allclose(ours.detach().numpy(), [f(start[row]) for row, f in enumerate(plain)], rtol=1e-10)
    ours.sum().backward()
    expected = np.stack([numeric_gradient(f, start[row]) for row, f in enumerate(plain)])
    # differences of step 1e-5 in float64 are good to about 1e-10
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-8)


def test_focal_and_dice_known_values() -> None:
    flat = torch.zeros(1, 2, 2)
    truth = torch.tensor([[[True, True], [False, False]]])
    # p = 1/2 everywhere: mean of alpha and 1 - alpha is 1/2, times 1/4, times log 2
    assert focal_loss(flat, truth).item() == pytest.approx(0.5 * 0.25 * np.log(2))
    assert dice_loss(flat, truth).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))


def test_focal_is_finite_when_certain_and_wrong() -> None:
    logits = torch.tensor([[[1e4, -1e4]]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([[[False, True]]]))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()


def test_logits_iou_counts_and_has_no_gradient() -> None:
    logits = torch.tensor([[[1.0, 1.0, -1.0, 0.0]], [[-1.0, -1.0, -1.0, -1.0]]], requires_grad=True)
    truth = torch.tensor([[[True, False, True, False]], [[False, False, False, False]]])
    iou = logits_iou(logits, truth)
    assert iou.tolist() == pytest.approx([1 / 3, 1.0])  # a logit of 0 is background; two empty masks agree
    assert not iou.requires_grad


def test_logits_iou_leaves_padding_out() -> None:
    logits = torch.tensor([[[1.0, 1.0, 1.0, 1.0]]])
    truth = torch.tensor([[[True, True, False, False]]])
    valid = torch.tensor([[[True, True, True, False]]])
    assert logits_iou(logits, truth, valid=valid).item() == pytest.approx(2 / 3)


def test_min_over_candidates_trains_only_the_winner() -> None:
    logits = torch.randn(6, 3, 8, 8, requires_grad=True)
    truth = torch.rand(6, 8, 8) < 0.5
    losses = mask_losses(logits, torch.zeros(6, 3), truth, focal=20.0, dice=1.0)
    (20 * losses["focal"] + losses["dice"]).backward()
    every = np.ones((8, 8), dtype=bool)
    numbers = logits.detach().double().numpy()
    score = [
        [
            20 * numpy_focal(numbers[n, c], truth[n].numpy(), every, 0.25, 2.0)
            + numpy_dice(numbers[n, c], truth[n].numpy(), every)
            for c in range(3)
        ]
        for n in range(6)
    ]
    winner = np.argmin(score, axis=1)
    assert len(set(winner.tolist())) > 1  # else the test could not tell "winner" from "first"
    trained = logits.grad.abs().sum(dim=(2, 3)) > 0
    assert trained.sum(dim=1).eq(1).all()
    assert trained.int().argmax(dim=1).tolist() == winner.tolist()
    best = np.take_along_axis(np.array(score), winner[:, None], 1).mean()
    assert (20 * losses["focal"] + losses["dice"]).item() == pytest.approx(best, rel=1e-5)


def test_the_weights_choose_the_winner() -> None:
    """One candidate wins by focal, the other by dice."""
    truth = torch.zeros(1, 16, 16, dtype=torch.bool)
    truth[0, :2, :2] = True
    timid = torch.full((16, 16), -3.0)  # right nearly everywhere, no overlap
    bold = torch.where(truth[0], 4.0, -1.0)  # finds the object, unsure elsewhere
    logits = torch.stack([timid, bold])[None]
    by_focal = mask_losses(logits, torch.zeros(1, 2), truth, focal=1.0, dice=0.0)
    by_dice = mask_losses(logits, torch.zeros(1, 2), truth, focal=0.0, dice=1.0)
    assert by_focal["focal"].item() == pytest.approx(focal_loss(timid, truth[0]).item())
    assert by_dice["dice"].item() == pytest.approx(dice_loss(bold, truth[0]).item())


def test_iou_error_trains_every_candidate_and_no_mask() -> None:
    logits = torch.randn(4, 3, 8, 8, requires_grad=True)
    iou = torch.rand(4, 3, requires_grad=True)
    truth = torch.rand(4, 8, 8) < 0.5
    mask_losses(logits, iou, truth)["iou"].backward()
    masks, target = logits.detach().numpy() > 0, truth.numpy()
    real = np.array([[(m & t).sum() / (m | t).sum() for m in row] for row, t in zip(masks, target)])
    expected = 2 * (iou.detach().numpy() - real) / 12
    np.testing.assert_allclose(iou.grad.numpy(), expected, atol=1e-6)
    assert logits.grad is None


def test_padding_changes_no_term() -> None:
    logits, truth = torch.randn(2, 3, 8, 8), torch.rand(2, 8, 8) < 0.5
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    valid[:, 6:], truth[:, 6:] = False, False
    noisy = logits.clone()
    noisy[:, :, 6:] = 9.0
    iou = torch.rand(2, 3)
    plain, other = (mask_losses(x, iou, truth, valid=valid) for x in (logits, noisy))
    assert all(torch.equal(plain[name], other[name]) for name in ("focal", "dice", "iou"))


def test_no_masks_is_zero_not_nan() -> None:
    logits = torch.zeros(0, 3, 8, 8, requires_grad=True)
    losses = mask_losses(logits, torch.zeros(0, 3), torch.zeros(0, 8, 8, dtype=torch.bool))
    assert [value.item() for value in losses.values()] == [0, 0, 0]
    sum(losses.values()).backward()


def test_feature_loss_is_a_mean_over_valid_tokens_and_channels() -> None:
    student = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    teacher = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    valid = torch.rand(2, 3, 4) < 0.6
    expected = ((student - teacher).numpy() ** 2)[valid.numpy()].mean()
    assert feature_loss(student, teacher, valid=valid).item() == pytest.approx(expected, rel=1e-5)


def test_feature_loss_ignores_padding() -> None:
    student = torch.randn(1, 4, 4, 8, requires_grad=True)
    teacher = torch.randn(1, 4, 4, 8)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[:, 3:] = False
    first = feature_loss(student, teacher, valid=valid)
    first.backward()
    assert student.grad[:, 3:].abs().max() == 0 and student.grad[:, :3].abs().min() > 0
    wild = teacher.clone()
    wild[:, 3:] = 1e6
    assert feature_loss(student, wild, valid=valid).item() == first.item()
    # the size of the padding must not dilute the loss
    assert first.item() == pytest.approx(feature_loss(student[:, :3], teacher[:, :3], valid=valid[:, :3]).item())
    assert feature_loss(student, teacher, valid=torch.zeros_like(valid)).item() == 0


def test_normalized_features_have_one_scale() -> None:
    feature = 40 * torch.randn(2, 3, 3, 64) + 7
    normal = normalize_feature(feature)
    assert normal.mean(-1).abs().max() < 1e-5
    assert (normal.square().mean(-1) - 1).abs().max() < 1e-3


def test_gradients_of_the_whole_mask_loss() -> None:
    """autograd against differences, through the winner's choice (no tie near these values)."""
    truth = torch.rand(2, 4, 4) < 0.5

    def total(logits: torch.Tensor) -> torch.Tensor:
        return (20 * focal_loss(logits, truth) + dice_loss(logits, truth)).mean()

    assert gradcheck(total, torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True))
