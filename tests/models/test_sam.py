"""Parity with an independent SAM (transformers' SamModel, same random weights), and many images decoded at once.

Parity is asked to 1e-4 in float32: the two sum in different orders, and our attention is the folded form.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from frisket.models.sam import PIXEL_MEAN, PIXEL_STD, Sam
from frisket.sample import IGNORED, Prompts

TOLERANCE = 1e-4

RENAMES = (
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    ("image_encoder.blocks", "vision_encoder.layers"),
    ("image_encoder", "vision_encoder"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "shared_image_embedding.positional_embedding"),
    ("mask_downscaling.0", "mask_embed.conv1"),
    ("mask_downscaling.1", "mask_embed.layer_norm1"),
    ("mask_downscaling.3", "mask_embed.conv2"),
    ("mask_downscaling.4", "mask_embed.layer_norm2"),
    ("mask_downscaling.6", "mask_embed.conv3"),
    ("point_embeddings", "point_embed"),
    ("norm_final_attn", "layer_norm_final_attn"),
    (".norm", ".layer_norm"),
    ("output_upscaling.0", "upscale_conv1"),
    ("output_upscaling.1", "upscale_layer_norm"),
    ("output_upscaling.3", "upscale_conv2"),
)
HEAD_LAYERS = (("layers.0", "proj_in"), ("layers.1", "layers.0"), ("layers.2", "proj_out"))


def their_key(key: str) -> str:
    if "hypernetworks" in key or "iou_prediction_head" in key:
        stem, layer, leaf = key.rsplit("layers.", 1)[0], key.split("layers.")[1][0], key.rsplit(".", 1)[1]
        return f"{stem}{dict(HEAD_LAYERS)[f'layers.{layer}']}.{leaf}"
    for ours, theirs in RENAMES:
        key = key.replace(ours, theirs)
    return key


def their_sam(sam: Sam) -> torch.nn.Module:
    """transformers' SamModel of the same hyper-parameters with our weights, loaded strictly."""
    transformers = pytest.importorskip("transformers")
    ours = sam.image_encoder.config
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": ours.width,
            "num_hidden_layers": ours.depth,
            "num_attention_heads": ours.heads,
            "image_size": ours.image_size,
            "global_attn_indexes": list(ours.global_blocks),
            "window_size": ours.window,
            "mlp_dim": int(ours.width * ours.mlp_ratio),
            "num_pos_feats": 128,
        },
        prompt_encoder_config={
            "image_size": ours.image_size,
            "image_embedding_size": ours.image_size // 16,
        },
    )
    theirs = transformers.SamModel(config).eval()
    state = {their_key(key): value.clone() for key, value in sam.state_dict().items()}
    shared = "shared_image_embedding.positional_embedding"
    state["prompt_encoder.shared_embedding.positional_embedding"] = state[shared]
    theirs.load_state_dict(state, strict=True)
    return theirs


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize("side", [128, 256])
@torch.no_grad()
def test_same_embeddings(tiny: Callable[..., Sam], side: int) -> None:
    sam = tiny(side)
    theirs, x = their_sam(sam), torch.randn(2, 3, side, side)
    embedding = sam.image_encoder(x)
    assert embedding.std() > 0.1  # a comparison of noughts would prove nothing
    assert difference(embedding, theirs.get_image_embeddings(x)) <= TOLERANCE
    position = theirs.get_image_wide_positional_embeddings()
    assert difference(sam.prompt_encoder.get_dense_pe(), position) <= TOLERANCE


def prompt_cases(side: int) -> dict[str, Prompts]:
    """Two images, one prompt each."""
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(2, 3, 2, generator=generator) * side
    labels = torch.tensor([[1, 0, 1], [1, 1, -1]])
    corner = torch.rand(2, 2, generator=generator) * side / 2
    boxes = torch.cat((corner, corner + side / 3), dim=1)
    masks = torch.randn(2, 1, side // 4, side // 4, generator=generator) * 4
    return {
        "points": Prompts(points, labels),
        "one point": Prompts(points[:, :1], labels[:, :1]),
        "boxes": Prompts(boxes=boxes),
        "boxes and points": Prompts(points, labels, boxes),
        "points and masks": Prompts(points, labels, masks=masks),
        "boxes and masks": Prompts(boxes=boxes, masks=masks),
        "masks": Prompts(masks=masks),
    }


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", prompt_cases(128))
@torch.no_grad()
def test_same_masks_and_ious(tiny: Callable[..., Sam], kind: str, multimask: bool) -> None:
    sam = tiny(128)
    theirs, prompts, x = their_sam(sam), prompt_cases(128)[kind], torch.randn(2, 3, 128, 128)
    out = theirs(
        pixel_values=x,
        input_points=None if prompts.points is None else prompts.points[:, None],
        input_labels=None if prompts.labels is None else prompts.labels[:, None],
        input_boxes=None if prompts.boxes is None else prompts.boxes[:, None],
        input_masks=prompts.masks,
        multimask_output=multimask,
    )
    embeddings = sam.image_encoder(x)
    ours = sam.decode(embeddings, torch.arange(2), prompts, multimask)
    assert ours.logits.std() > 0.01
    assert difference(ours.logits, out.pred_masks[:, 0]) <= TOLERANCE
    assert difference(ours.iou, out.iou_scores[:, 0]) <= TOLERANCE

    # The parts called one by one, as others script them, say the same.
    points = None if prompts.points is None else (prompts.points, prompts.labels)
    sparse, dense = sam.prompt_encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
    position = sam.prompt_encoder.get_dense_pe()
    logits, iou = sam.mask_decoder(embeddings, position, sparse, dense, multimask)
    assert difference(logits, ours.logits) <= 1e-5
    assert difference(iou, ours.iou) <= 1e-5


@torch.no_grad()
def test_the_decoder_takes_segment_anythings_keywords(tiny: Callable[..., Sam]) -> None:
    """One image, several prompts, as segment_anything's predictor calls it; a dense map of one serves all."""
    sam = tiny(128)
    embeddings = sam.image_encoder(torch.randn(1, 3, 128, 128))
    prompts = Prompts(torch.rand(3, 1, 2) * 128, torch.ones(3, 1, dtype=torch.long))
    sparse, dense = sam.prompt_encoder(points=(prompts.points, prompts.labels), boxes=None, masks=None)
    ours = sam.decode(embeddings, torch.zeros(3, dtype=torch.long), prompts, multimask=True)
    for one in (dense, dense[:1]):
        logits, iou = sam.mask_decoder(
            image_embeddings=embeddings,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=one,
            multimask_output=True,
        )
        assert logits.shape[:2] == (3, 3)
        assert difference(logits, ours.logits) <= 1e-5
        assert difference(iou, ours.iou) <= 1e-5


@torch.no_grad()
def test_many_prompts_of_one_image(tiny: Callable[..., Sam]) -> None:
    """Their point batch: 5 clicks on each of 2 images, against ours flat with an index."""
    sam = tiny(128)
    theirs, x = their_sam(sam), torch.randn(2, 3, 128, 128)
    points, labels = torch.rand(10, 2, 2) * 128, torch.randint(0, 2, (10, 2))
    out = theirs(pixel_values=x, input_points=points.view(2, 5, 2, 2), input_labels=labels.view(2, 5, 2))
    index = torch.arange(2).repeat_interleave(5)
    ours = sam.decode(sam.image_encoder(x), index, Prompts(points, labels), multimask=True)
    assert difference(ours.logits, out.pred_masks.flatten(0, 1)) <= TOLERANCE
    assert difference(ours.iou, out.iou_scores.flatten(0, 1)) <= TOLERANCE


@torch.no_grad()
def test_decode_at_once_equals_one_by_one(tiny: Callable[..., Sam]) -> None:
    sam = tiny(128)
    embeddings = torch.randn(3, 256, 8, 8)
    index = torch.tensor([2, 0, 2, 1])
    points, labels = torch.rand(4, 2, 2) * 128, torch.tensor([[1, 0], [1, IGNORED], [1, -1], [0, 1]])
    together = sam.decode(embeddings, index, Prompts(points, labels), multimask=True)
    for n in range(4):
        real = labels[n] != IGNORED  # an ignored point equals a prompt without it; padding does not
        alone = Prompts(points[n : n + 1, real], labels[n : n + 1, real])
        single = sam.decode(embeddings[index[n]][None], torch.zeros(1, dtype=torch.long), alone, multimask=True)
        assert difference(together.logits[n : n + 1], single.logits) <= 1e-5
        assert difference(together.iou[n : n + 1], single.iou) <= 1e-5


def test_gradients_reach_every_part(tiny: Callable[..., Sam]) -> None:
    sam = tiny(64).train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    prompts = Prompts(torch.rand(3, 1, 2) * 64, torch.ones(3, 1, dtype=torch.long), masks=torch.randn(3, 1, 16, 16))
    prediction = sam(images, torch.tensor([[64, 64], [40, 64]]), torch.tensor([0, 1, 1]), prompts, True)
    (prediction.logits.square().sum() + prediction.iou.sum()).backward()
    for part in ("image_encoder.pos_embed", "image_encoder.blocks.0.attn.rel_pos_h", "mask_decoder.iou_token.weight"):
        assert sam.get_parameter(part).grad.abs().max() > 0, part
    assert sam.prompt_encoder.mask_downscaling[0].weight.grad.abs().max() > 0


def test_preprocess_pads_with_exact_zeros(tiny: Callable[..., Sam]) -> None:
    sam = tiny(64)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    sizes = torch.tensor([[64, 48], [20, 64]])
    out = sam.preprocess(images, sizes)
    assert out.dtype == torch.float32
    assert out[0, :, :, 48:].abs().max() == 0
    assert out[1, :, 20:].abs().max() == 0
    expected = (images[0, 1, 10, 10].item() - PIXEL_MEAN[1]) / PIXEL_STD[1]
    assert out[0, 1, 10, 10].item() == pytest.approx(expected, abs=1e-5)
    assert not {"pixel_mean", "pixel_std"} & set(sam.state_dict())


def test_bf16_autocast_stays_close_and_answers_in_float32(tiny: Callable[..., Sam]) -> None:
    sam = tiny(128)
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    sizes, index = torch.full((2, 2), 128), torch.tensor([0, 1])
    for prompts in prompt_cases(128).values():
        with torch.no_grad():
            exact = sam(images, sizes, index, prompts, True)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                cast = sam(images, sizes, index, prompts, True)
        assert cast.logits.dtype == cast.iou.dtype == torch.float32
        # bf16 keeps 8 bits; over these few layers the error stays within a few percent of the signal.
        assert (cast.logits - exact.logits).std() <= 0.05 * exact.logits.std()


def test_no_prompts_are_refused_and_no_objects_are_fine(tiny: Callable[..., Sam]) -> None:
    sam = tiny(64)
    embeddings, none = torch.randn(2, 256, 4, 4), torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="no points, no boxes and no masks"):
        sam.decode(embeddings, none, Prompts(), multimask=True)
    assert sam.decode(embeddings, none, Prompts(boxes=torch.zeros(0, 4)), multimask=True).logits.shape == (0, 3, 16, 16)
