"""Fidelity on models whose answers are known: itself, its teacher, one that does not look."""

import pytest
import torch

from frisket.data.module import collate
from frisket.fidelity import CURVES, MEASURES, asked, compare, curves, neck_errors
from frisket.geometry import Frame, boxes_of_masks
from frisket.losses import logits_iou
from frisket.models.sam import Sam
from frisket.models.zoo import build
from frisket.sample import Batch, Prompts, Sample, valid_cells, valid_tokens


def batch_of(images: int = 3) -> Batch:
    """Noise photographs of 64 px, the second not square, two objects each."""
    generator, samples = torch.Generator().manual_seed(1), []
    for number in range(images):
        size = (40, 64) if number == 1 else (64, 64)
        masks = torch.zeros(2, 16, 16, dtype=torch.bool)
        masks[0, 1:6, 2 : 9 + number] = masks[1, 4:9, 5:13] = True
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        areas = masks.flatten(1).sum(1) * 16.0
        samples.append(Sample(f"sa_{number}", image, masks, boxes_of_masks(masks) * 4, areas, Frame(size, size, 64)))
    return collate(samples)


@pytest.fixture
def other_sam() -> Sam:
    torch.manual_seed(5)
    return build("sam_vit_t", image_size=64, width=48, depth=2, heads=3, global_blocks=(1,), window=2).eval()


def test_a_model_agrees_with_itself_and_has_no_error(tiny_sam: Sam) -> None:
    batch = batch_of()
    measures = compare(tiny_sam, asked(tiny_sam, batch), batch)
    assert set(measures) == set(MEASURES)
    assert measures["neck_error"].tolist() == [0.0] * batch.num_images
    for prompt in ("box", "click1"):
        assert (measures[f"agreement_{prompt}"] == 1).all()
        assert torch.equal(measures[prompt], measures[f"teacher_{prompt}"])


def test_every_measure_is_what_its_name_says(tiny_sam: Sam, other_sam: Sam) -> None:
    """Computed once more, object by object, each alone with its photograph."""
    batch = batch_of()
    measures = compare(tiny_sam, asked(other_sam, batch), batch)
    valid = valid_cells(batch)
    with torch.no_grad():
        mine, theirs = (sam.encode(batch.images, batch.sizes) for sam in (tiny_sam, other_sam))
        for number, owner in enumerate(batch.image_index.tolist()):
            prompt, first = Prompts(boxes=batch.boxes[number : number + 1]), torch.zeros(1, dtype=torch.long)

            def alone(
                sam: Sam, embedding: torch.Tensor, prompt: Prompts = prompt, first: torch.Tensor = first
            ) -> torch.Tensor:
                return sam.decode(embedding, first, prompt, multimask=True).best()[0]

            own, wanted = alone(tiny_sam, mine[owner][None]), alone(other_sam, theirs[owner][None])
            strange = alone(tiny_sam, mine[(owner + 1) % batch.num_images][None])
            truth, cells = batch.masks[number][None], valid[number][None]
            expected = {
                "box": logits_iou(own, truth, valid=cells),
                "teacher_box": logits_iou(wanted, truth, valid=cells),
                "agreement_box": logits_iou(own, wanted > 0, valid=cells),
                "other_box": logits_iou(strange, truth, valid=cells),
            }
            for name, value in expected.items():
                # a logit within rounding of 0 may fall on either side; a cell of 256 is .004 and more
                assert measures[name][number].item() == pytest.approx(value.item(), abs=0.02), name
        tokens = valid_tokens(batch, 4)
        for index in range(batch.num_images):
            error = (mine[index] - theirs[index])[:, tokens[index]].square().mean()
            assert measures["neck_error"][index].item() == pytest.approx(error.item(), rel=1e-5)


def test_padding_does_not_count_in_the_neck_error() -> None:
    student, teacher = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    teacher[:, :, 1] = 100.0
    valid = torch.tensor([[[True, True], [False, False]]])
    assert neck_errors(student, teacher, valid=valid).tolist() == [1.0]


def test_a_decoder_that_ignores_the_embedding_has_no_dependence(tiny_sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of()
    looks = curves(compare(tiny_sam, None, batch))
    assert set(looks) == {"dependence/box", "dependence/click1"} < set(CURVES)
    monkeypatch.setattr(tiny_sam, "encode", lambda images, sizes: torch.ones(len(images), 256, 4, 4))
    blind = curves(compare(tiny_sam, None, batch))
    assert blind["dependence/box"].abs().max() == 0
    assert looks["dependence/box"].abs().max() > 0


def test_a_photograph_alone_has_no_other(tiny_sam: Sam) -> None:
    batch = batch_of(images=1)
    assert set(compare(tiny_sam, None, batch)) == {"box", "click1"}
