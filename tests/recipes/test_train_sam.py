"""train_sam: everything trains, the loss falls, the curve is the one on file, validation reports both prompts."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from tinyfit import changed, compare_golden, falls, settle, snapshot

from frisket import checkpoint
from frisket.data.module import ShardData
from frisket.errors import UserError
from frisket.models import zoo
from frisket.recipes.interactive import InteractiveConfig
from frisket.recipes.recipe_config import ModelSpec
from frisket.recipes.train_sam import Config, Module, StartConfig, begin
from frisket.sample import Batch, Prompts

Fit = Callable[..., tuple[list[float], L.Trainer]]
TINY = {"width": 48, "depth": 2, "heads": 3, "global_blocks": [1]}


@pytest.fixture
def recipe(tiny_shards: Path) -> Callable[..., Module]:
    """A function (**fields of Config) -> Module on tiny shards, 64 px, two rounds."""

    def make(**fields: object) -> Module:
        config = Config(
            **{"model": ModelSpec("sam_vit_t", TINY), "prompts": InteractiveConfig(clicks=1, refines=1), **fields}
        )
        settle(config, tiny_shards)
        torch.manual_seed(0)
        return Module(config)

    return make


def test_one_step_changes_every_parameter_and_no_buffer(recipe, fit: Fit) -> None:
    module = recipe()
    before = snapshot(module.sam)
    fit(module, 1)
    parameters = {name for name, _ in module.sam.named_parameters()}
    # only the winning candidate learns from the mask loss; a loser's head moves by weight decay, its biases not at all
    losers = {name for name in parameters if "output_hypernetworks_mlps" in name and name.endswith("bias")}
    assert parameters - losers <= changed(before, module.sam) <= parameters


def test_seeds_and_batches_draw_differently_and_whichever_rank_has_one_draws_the_same(
    recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = recipe()
    first, second = (batch for batch, _ in zip(ShardData(module.config.data).train_dataloader(), range(2)))

    def draw(rank: int, seed: int, batch: Batch) -> int:
        monkeypatch.setattr(type(module), "global_rank", rank)
        module.config.seed = seed
        return int(torch.randint(2**31, (1,), generator=module.generator(batch)))

    assert len({draw(0, 0, first), draw(0, 1, first), draw(0, 0, second)}) == 3
    assert draw(1, 0, first) == draw(0, 0, first)


@pytest.mark.parametrize(("clicks", "refines"), [(0, 0), (1, 1)])
def test_every_trained_parameter_gets_a_gradient(recipe, clicks: int, refines: int) -> None:
    """DDP waits for ever for a parameter that takes no part; one round leaves two parts out, so they are frozen."""
    module = recipe(prompts=InteractiveConfig(clicks=clicks, refines=refines))
    batch = next(iter(ShardData(module.config.data).train_dataloader()))
    module.training_step(batch, 0).backward()
    missing = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    frozen = {name for name, p in module.sam.named_parameters() if not p.requires_grad}
    parts = ("prompt_encoder.mask_downscaling.", "mask_decoder.output_hypernetworks_mlps.0.")
    idle = {name for name, _ in module.sam.named_parameters() if name.startswith(parts)}
    assert frozen == (idle if clicks + refines == 0 else set())


def test_loss_falls_and_repeats_the_golden_curve(recipe, fit: Fit) -> None:
    losses, _ = fit(recipe(), 20)
    assert falls(losses)
    compare_golden("train_sam", losses, tolerance=0.05)


def test_the_same_seed_gives_the_same_curve(recipe, fit: Fit) -> None:
    assert fit(recipe(), 3)[0] == fit(recipe(), 3)[0]
    assert fit(recipe(), 3)[0] != fit(recipe(seed=1), 3)[0]


def test_accumulated_batches_draw_differently(recipe) -> None:
    module = recipe()
    batches = ShardData(module.config.data).train_dataloader()
    draws = [torch.rand(4, generator=module.generator(batch)) for batch, _ in zip(batches, range(2))]
    assert not torch.equal(*draws)


def test_validation_by_box_and_by_click(recipe, fit: Fit) -> None:
    module = recipe()
    _, trainer = fit(module, 2, validate=True)
    metrics = trainer.callback_metrics
    shares = [float(metrics[f"val/{what}/miou"]) for what in ("box", "click1")]
    assert all(0 <= share <= 1 for share in shares)
    # by hand, on the same masks
    batches = list(ShardData(module.config.data).val_dataloader())
    total, count = 0.0, 0
    module.eval()
    for batch in batches:
        if not len(batch.masks):
            continue
        said = module.predict_boxes(module.sam, batch)
        for mask, truth, image in zip(said, batch.masks, batch.image_index):
            rows, cols = (-(-(edge - 2) // 4) for edge in batch.frames[image].size)  # cells whose centre is inside
            mask, truth = mask[:rows, :cols], truth[:rows, :cols]
            total += float((mask & truth).sum() / (mask | truth).sum())
            count += 1
    assert shares[0] == pytest.approx(total / count, abs=1e-5)


def test_the_checkpoint_opens_as_a_sam(recipe, fit: Fit, tmp_path: Path) -> None:
    module = recipe()
    _, trainer = fit(module, 1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = checkpoint.load(tmp_path / "x.ckpt")
    assert changed(snapshot(module.sam), loaded) == set()


def test_init_from_wins_over_model(recipe, tiny_teacher: Path) -> None:
    module = recipe(init_from=str(tiny_teacher))
    assert changed(snapshot(checkpoint.load(tiny_teacher)), module.sam) == set()
    # a loaded Sam comes in eval mode; training must not keep it there
    assert all(part.training for part in module.sam.modules())


def test_resuming_takes_the_shape_from_the_checkpoint_and_never_reads_init_from(
    recipe, fit: Fit, tiny_teacher: Path, tmp_path: Path
) -> None:
    """The shape of init_from's model, that is, which need not be `model`'s."""
    first = recipe(init_from=str(tiny_teacher))
    _, trainer = fit(first, 1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    first.config.init_from = str(tmp_path / "gone.pt")
    again = Module(first.config, checkpoint.recorded(tmp_path / "last.ckpt"))
    again.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    assert changed(snapshot(first.sam), again.sam) == set()
    with pytest.raises(UserError, match=r"no checkpoint at .*gone\.pt"):
        Module(first.config)


def test_validation_counts_the_photograph_and_not_its_padding(recipe) -> None:
    module = recipe().eval()
    batch = next(iter(ShardData(module.config.data).val_dataloader()))
    with torch.no_grad():
        embeddings = module.sam.encode(batch.images, batch.sizes)
        prompts = Prompts(boxes=batch.boxes)
        answers = module.sam.decode(embeddings, batch.image_index, prompts, multimask=True).best()[0] > 0
        module.validation_step(batch, 0)
    values, outside = [], 0
    for answer, truth, image in zip(answers, batch.masks, batch.image_index):
        rows, cols = ((batch.sizes[image] + 1) // 4).tolist()  # cells of 4 px whose centre lies inside
        outside += int(answer[rows:].sum() + answer[:, cols:].sum())
        mine, theirs = answer[:rows, :cols], truth[:rows, :cols]
        values.append(((mine & theirs).sum() / (mine | theirs).sum()).item())
    assert outside > 0  # else there would be nothing to leave out
    assert module.val_iou["box"].compute()["miou"] == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_flops_are_counted_without_weights(recipe) -> None:
    module = recipe(model=ModelSpec("sam_vit_t", TINY | {"global_blocks": [0, 1]}))
    flops = module.model_flops_per_image()
    layers = [m for m in module.sam.image_encoder.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    # 16 tokens, two operations per multiply-add, three passes; attention comes on top and is small here
    least = sum(m.weight.numel() for m in layers) * 16 * 2 * 3
    assert least < flops < 1.1 * least
    module.freeze(module.sam.image_encoder)
    assert module.model_flops_per_image() == pytest.approx(flops / 3)


def test_start_makes_pixels_attend_to_the_nearest_prompt() -> None:
    """The point of the tied start: each pixel's first attention is strongest for the token placed nearest to it."""
    torch.manual_seed(0)
    sam = begin(
        zoo.build("sam_vit_t", image_size=128, depth=1, global_blocks=(0,)),
        StartConfig(position_scale=0.3, attention_gain=3.0),
    )
    points = torch.tensor([[[16.0, 16.0], [112.0, 112.0]]])
    tokens = sam.prompt_encoder.pe_layer((points + 0.5) / 128)[0]
    pixels = sam.prompt_encoder.get_dense_pe().flatten(2)[0].T
    attention = sam.mask_decoder.transformer.layers[0].cross_attn_image_to_token
    q, k = (
        layer(x).unflatten(-1, (attention.heads, -1))
        for layer, x in ((attention.q_proj, pixels), (attention.k_proj, tokens))
    )
    scores = torch.einsum("phd,thd->pt", q, k).unflatten(0, (8, 8))
    assert scores[1, 1, 0] > scores[1, 1, 1] and scores[6, 6, 1] > scores[6, 6, 0]
    plain = zoo.build("sam_vit_t", image_size=128, depth=1, global_blocks=(0,))
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    after = begin(plain, StartConfig()).state_dict()  # SAM's own start is left alone
    assert all(torch.equal(value, after[name]) for name, value in before.items())
