"""Tokens in SAM's order and number, coordinates in input pixels, padding that is padding and ignoring that is exact."""

import pytest
import torch

from frisket.models.prompt_encoder import PromptEncoder
from frisket.sample import IGNORED, PADDING


@pytest.fixture
def encoder() -> PromptEncoder:
    torch.manual_seed(0)
    return PromptEncoder(128).eval()


def points(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, k, 2) * 127, torch.randint(0, 2, (n, k))


def test_shapes(encoder: PromptEncoder) -> None:
    boxes, masks = torch.rand(3, 4) * 100, torch.randn(3, 1, 32, 32)
    for given, tokens in (
        ({"points": points(3, 2)}, 3),  # two and SAM's padding point
        ({"boxes": boxes}, 2),
        ({"points": points(3, 2), "boxes": boxes}, 4),
        ({"masks": masks}, 0),
    ):
        sparse, dense = encoder(**given)
        assert sparse.shape == (3, tokens, 256)
        assert dense.shape == (3, 256, 8, 8)
    assert encoder.get_dense_pe().shape == (1, 256, 8, 8)
    assert encoder.get_dense_pe((4, 6)).shape == (1, 256, 4, 6)


def test_dense_code_is_the_point_code_at_cell_centres(encoder: PromptEncoder) -> None:
    """A padding-free point at pixel 16*i + 7.5 (+0.5 = the cell's centre) has the code of cell i, plus its kind."""
    x, y = 3, 5
    coords = torch.tensor([[[16 * x + 7.5, 16 * y + 7.5]]])
    token = encoder.embed(coords, torch.ones(1, 1, dtype=torch.long))[0, 0]
    code = encoder.get_dense_pe()[0, :, y, x]
    assert (token - encoder.point_embeddings[1].weight[0] - code).abs().max() < 1e-5


def test_padding_forgets_the_position(encoder: PromptEncoder) -> None:
    coords = torch.rand(1, 2, 2) * 100
    tokens = encoder.embed(coords, torch.tensor([[PADDING, IGNORED]]))
    assert torch.equal(tokens[0, 0], encoder.not_a_point_embed.weight[0])
    assert tokens[0, 1].abs().max() == 0


def test_a_box_is_two_labelled_points(encoder: PromptEncoder) -> None:
    boxes = torch.tensor([[3.0, 4.0, 50.0, 60.0]])
    sparse, _ = encoder(boxes=boxes)
    corners, _ = encoder(points=(boxes.view(1, 2, 2), torch.tensor([[2, 3]])))
    assert torch.equal(corners[:, :2], sparse)
    assert corners[:, 2].abs().max() == 0  # and no padding point: a row with a box gets none


def test_rows_may_mix_boxes_and_clicks(encoder: PromptEncoder) -> None:
    coords = torch.tensor([[[3.0, 4.0], [50.0, 60.0]], [[9.0, 9.0], [0.0, 0.0]]])
    _, labels = encoder.tokens((coords, torch.tensor([[2, 3], [1, IGNORED]])), None)
    assert labels.tolist() == [[2, 3, IGNORED], [1, IGNORED, PADDING]]


def test_other_sides_normalise_by_their_own_side(encoder: PromptEncoder) -> None:
    """(x + 0.5) / S is what counts: a point of a 128 px input and the same place in a 256 px input give one token."""
    here = encoder.embed(torch.tensor([[[31.5, 63.5]]]), torch.ones(1, 1, dtype=torch.long))
    there = encoder.embed(torch.tensor([[[63.5, 127.5]]]), torch.ones(1, 1, dtype=torch.long), (16, 16))
    assert torch.equal(here, there)


def test_mask_of_the_wrong_grid_is_refused(encoder: PromptEncoder) -> None:
    with pytest.raises(ValueError, match=r"must be \(N, 1, 32, 32\)"):
        encoder(masks=torch.zeros(2, 1, 64, 64))


def test_codes_stay_exact_under_autocast(encoder: PromptEncoder) -> None:
    exact, _ = encoder(points=(torch.tensor([[[100.0, 3.0]]]), torch.ones(1, 1, dtype=torch.long)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = encoder(points=(torch.tensor([[[100.0, 3.0]]]), torch.ones(1, 1, dtype=torch.long)))
    assert torch.equal(exact, cast)
