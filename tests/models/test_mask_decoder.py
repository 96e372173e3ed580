"""The decoder's contract: shapes, sharing or pairing of embeddings, ignored tokens, gradients to every parameter."""

import pytest
import torch

from frisket.models.mask_decoder import MaskDecoder


@pytest.fixture
def decoder() -> MaskDecoder:
    torch.manual_seed(0)
    return MaskDecoder().eval()


def inputs(n: int, tokens: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "image_embeddings": torch.randn(1, 256, 6, 4),
        "image_pe": torch.randn(1, 256, 6, 4),
        "sparse_prompt_embeddings": torch.randn(n, tokens, 256),
        "dense_prompt_embeddings": torch.randn(n, 256, 6, 4),
    }


@torch.no_grad()
def test_one_embedding_is_shared_and_n_are_paired(decoder: MaskDecoder) -> None:
    given = inputs(5)
    shared = decoder(**given, multimask_output=True)
    given["image_embeddings"] = given["image_embeddings"].repeat(5, 1, 1, 1)
    paired = decoder(**given, multimask_output=True)
    assert shared[0].shape == (5, 3, 24, 16)
    assert shared[1].shape == (5, 3)
    for a, b in zip(shared, paired):
        assert (a - b).abs().max() < 1e-5
    given["image_embeddings"] = given["image_embeddings"][:2]
    with pytest.raises(ValueError, match="2 image embeddings for 5 prompts"):
        decoder(**given, multimask_output=True)


@torch.no_grad()
def test_single_mask_is_the_first_token_and_the_three_are_the_rest(decoder: MaskDecoder) -> None:
    given = inputs(2)
    one, three = decoder(**given, multimask_output=False), decoder(**given, multimask_output=True)
    assert one[0].shape == (2, 1, 24, 16)
    assert one[1].shape == (2, 1)
    decoder.output_hypernetworks_mlps[0].layers[2].bias += 1
    decoder.iou_prediction_head.layers[2].bias[0] += 1
    one_moved, three_moved = decoder(**given, multimask_output=False), decoder(**given, multimask_output=True)
    assert not torch.equal(one[0], one_moved[0])
    assert torch.allclose(one[1] + 1, one_moved[1], atol=1e-6)
    assert torch.equal(three[0], three_moved[0])
    assert torch.equal(three[1], three_moved[1])


@torch.no_grad()
def test_ignored_tokens_are_not_there(decoder: MaskDecoder) -> None:
    given = inputs(2, tokens=4)
    ignored = torch.tensor([[False, True, False, True], [False, False, False, False]])
    logits, iou = decoder(**given, multimask_output=True, ignored=ignored)
    fewer = given | {
        "sparse_prompt_embeddings": given["sparse_prompt_embeddings"][:1, ::2],
        "dense_prompt_embeddings": given["dense_prompt_embeddings"][:1],
    }
    logits_fewer, iou_fewer = decoder(**fewer, multimask_output=True)
    assert (logits[:1] - logits_fewer).abs().max() < 1e-5
    assert (iou[:1] - iou_fewer).abs().max() < 1e-5
    plain, _ = decoder(**given, multimask_output=True)
    assert (logits[1] - plain[1]).abs().max() < 1e-5
    assert (logits[0] - plain[0]).abs().max() > 1e-3


def test_every_parameter_learns(decoder: MaskDecoder) -> None:
    given = inputs(2)
    total = sum(out.square().sum() for multi in (True, False) for out in decoder(**given, multimask_output=multi))
    total.backward()
    # A key's bias shifts all logits of a query alike, which softmax does not see: its gradient is zero by nature.
    still = [
        name
        for name, parameter in decoder.named_parameters()
        if not name.endswith("k_proj.bias") and (parameter.grad is None or parameter.grad.abs().max() == 0)
    ]
    assert still == []
