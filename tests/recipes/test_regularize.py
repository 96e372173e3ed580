"""Switches that every recipe has: each changes the training, is gone in validation, and a resume repeats its draws."""

from pathlib import Path

import pytest
import torch
from toyrun import toy_run

from frisket.cli.main import main
from frisket.engine.rundir import read_csv
from frisket.recipes import interactive
from frisket.recipes.interactive import InteractiveConfig, interactive_loss
from frisket.recipes.regularize import RegularizeConfig, regularize
from frisket.runfiles import RunFiles

SWITCHES = ["regularize.drop_path=0.5", "regularize.decoder_dropout=0.3", "optim.layer_decay=0.5"]


def losses(run: Path) -> list[str]:
    return [row["train/loss"] for row in read_csv(run / "metrics.csv") if row["train/loss"]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(RunFiles(run).last, weights_only=True)["state_dict"]


@pytest.fixture
def words(tiny_shards: Path, tmp_path: Path) -> list[str]:
    """A run of train_sam whose prompts come two at a time, so that the decoder draws again in the backward pass."""
    return ["train", *toy_run(tiny_shards / "train", tmp_path, checkpoint_every=1), "place.prompts_at_once=2"]


def test_each_switch_changes_the_run_and_a_resume_repeats_all(words, tmp_path):
    assert main([*words, "name=plain", "trainer.max_steps=2"]) == 0
    plain = losses(tmp_path / "plain")
    for number, switch in enumerate([*SWITCHES, "optim.schedule=step optim.step_at=[1]"]):
        assert main([*words, f"name={number}", "trainer.max_steps=3", *switch.split()]) == 0
        assert losses(tmp_path / str(number))[1:] != plain[1:], switch

    words += [*SWITCHES, "place.recompute=true"]
    for steps in (1, 3):
        assert main([*words, "name=twice", f"trainer.max_steps={steps}", "optim.schedule=constant"]) == 0
    assert main([*words, "name=constant", "trainer.max_steps=3", "optim.schedule=constant"]) == 0
    mine, theirs = weights(tmp_path / "twice"), weights(tmp_path / "constant")
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert losses(tmp_path / "twice") == losses(tmp_path / "constant")


def test_chunks_of_prompts_lose_the_same_branches_forward_and_backward(tiny_sam, batch_of, monkeypatch):
    regularize(tiny_sam.train(), RegularizeConfig(decoder_dropout=0.5))
    batch = batch_of([torch.ones(4, 16, 16, dtype=torch.bool)])
    embeddings = tiny_sam.encode(batch.images, batch.sizes).detach()

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(3)
        generator, config = torch.Generator().manual_seed(4), InteractiveConfig(clicks=0, refines=1)
        loss, _ = interactive_loss(tiny_sam, embeddings, batch, config, generator, at_once=2)
        return torch.autograd.grad(loss, list(tiny_sam.mask_decoder.transformer.parameters()))

    again = gradients()
    monkeypatch.setattr(interactive, "checkpoint", lambda ask, rows, **_: ask(rows))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients(), again, strict=True))


@pytest.mark.parametrize(
    ("recipe", "switch", "said"),
    [
        ("finetune_decoder", "regularize.drop_path=0.1", "freezes the encoder"),
        ("finetune_decoder", "optim.layer_decay=0.9", "freezes the encoder"),
        ("distill_lightening", "regularize.decoder_dropout=0.1", "freezes the decoder"),
        ("train_sam", "regularize.drop_path=1", "0.99 or less"),
        ("train_sam", "optim.layer_decay=0", "0.001 or more"),
        ("train_sam", "optim.step_factor=0", "1 or more"),
    ],
)
def test_a_switch_that_would_do_nothing_is_refused(recipe, switch, said, tiny_shards, tiny_teacher, tmp_path, capsys):
    words = [word for word in toy_run(tiny_shards / "train", tmp_path) if not word.startswith(("model", "prompts"))]
    more = {
        "finetune_decoder": [f"init_from={tiny_teacher}"],
        "distill_lightening": [f"teacher={tiny_teacher}", "student.encoder={depth: 2, width: 48, heads: 3}"],
        "train_sam": [],
    }
    assert main(["train", *words, f"recipe={recipe}", *more[recipe], "trainer.max_steps=1", switch]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
