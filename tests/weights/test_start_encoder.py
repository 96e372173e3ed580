"""encoder_from: MAE's and ImageNet's files, other sides, Sams, runs; what did not fit is said."""

from pathlib import Path

import pytest
import torch
from toyrun import toy_run

from frisket import checkpoint
from frisket.checkpoint import start_encoder
from frisket.cli.main import main
from frisket.errors import UserError
from frisket.models.blocks import resample_position, resample_relative
from frisket.models.sam import Sam
from frisket.models.zoo import build
from frisket.runfiles import RunFiles

WIDTH, SIDE = 32, 3  # of the file; ours are asked at 64 px, 4 x 4 tokens
SMALL = {"depth": 2, "width": WIDTH, "heads": 2, "global_blocks": (1,)}


def mae(depth: int = 3) -> dict[str, torch.Tensor]:
    """The layout of Meta's mae_pretrain_vit_*.pth, small: one block more than ours."""
    torch.manual_seed(5)
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + SIDE**2, WIDTH), "norm.weight": (WIDTH,)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, 16, 16), "patch_embed.proj.bias": (WIDTH,)}
    for i in range(depth):
        parts = {"norm1": WIDTH, "norm2": WIDTH, "attn.proj": (WIDTH, WIDTH), "attn.qkv": (3 * WIDTH, WIDTH)}
        parts |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for name, shape in parts.items():
            shape = shape if isinstance(shape, tuple) else (shape,)
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mae.pth"
    torch.save({"model": mae()}, path)
    return path


def ours(name: str = "sam_vit_t", **changes: object) -> Sam:
    torch.manual_seed(0)
    return build(name, **{"image_size": 64, **SMALL, **changes})


def test_mae_gives_all_but_what_only_sam_has(file: Path) -> None:
    sam, fresh, state = ours(), ours().image_encoder.state_dict(), mae()
    said = start_encoder(sam, str(file))
    mine = sam.image_encoder.state_dict()
    grid = state["pos_embed"][:, 1:].reshape(1, SIDE, SIDE, WIDTH)  # row by row behind the class token
    assert torch.equal(mine["pos_embed"], resample_position(grid, (4, 4)))
    for i in range(2):
        for theirs, part in {"mlp.fc1": "mlp.lin1", "mlp.fc2": "mlp.lin2", "attn.qkv": "attn.qkv"}.items():
            assert torch.equal(mine[f"blocks.{i}.{part}.weight"], state[f"blocks.{i}.{theirs}.weight"])
    assert torch.equal(mine["patch_embed.proj.weight"], state["patch_embed.proj.weight"])
    kept = {key for key in mine if torch.equal(mine[key], fresh[key])}
    assert {key for key in kept if not key.startswith("neck")} == {
        f"blocks.{i}.attn.rel_pos_{axis}" for i in range(2) for axis in "hw"
    }
    assert "resampled: pos_embed;" in said and "left at their own start: " in said
    assert "not used: cls_token, norm.weight, blocks.2." in said and f"of {len(mine)} tensors taken" in said


def test_packed_qkv_is_cut_for_lightening(file: Path) -> None:
    sam, state = build("lightening", image_size=64, depth=2, width=WIDTH, heads=2), mae()
    start_encoder(sam, str(file))
    attn = sam.image_encoder.blocks[1].attn
    assert torch.equal(torch.cat([attn.q.weight, attn.k.weight, attn.v.weight]), state["blocks.1.attn.qkv.weight"])


def test_another_sam_of_another_side_gives_its_relative_tables(tmp_path: Path) -> None:
    other, sam = ours(image_size=96), ours()
    torch.nn.init.normal_(other.image_encoder.blocks[1].attn.rel_pos_h)
    for path, content in (
        (tmp_path / "model.pt", None),
        (tmp_path / "bare.pth", {f"module.{key}": value for key, value in other.state_dict().items()}),
    ):
        checkpoint.save(other, path) if content is None else torch.save(content, path)
        start_encoder(sam, str(path))
        table = other.image_encoder.blocks[1].attn.rel_pos_h
        assert torch.equal(sam.image_encoder.blocks[1].attn.rel_pos_h, resample_relative(table, 4))
        assert not torch.equal(sam.mask_decoder.iou_token.weight, other.mask_decoder.iou_token.weight)


def test_what_fits_nothing_or_is_damaged_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fits nothing of this encoder"):
        start_encoder(ours(width=48, heads=3), str(file))
    state = mae()
    state["blocks.0.attn.proj.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"NaN or infinity in blocks\.0\.attn\.proj\.weight"):
        start_encoder(ours(), str(tmp_path / "nan.pth"))
    (tmp_path / "cut.pth").write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match="damaged"):
        start_encoder(ours(), str(tmp_path / "cut.pth"))


def test_a_run_starts_from_it_once_and_says_so(file, tiny_shards, tiny_teacher, tmp_path, capsys) -> None:
    words = ["train", *toy_run(tiny_shards / "train", tmp_path), f"model.encoder_from={file}"]
    words += ["model.name=sam_vit_t", f"model.encoder={{depth: 2, width: {WIDTH}, heads: 2, global_blocks: [1]}}"]
    assert main([*words, "trainer.max_steps=1", "optim.lr=0"]) == 0
    assert "model.encoder_from=" in capsys.readouterr().out
    state = torch.load(RunFiles(tmp_path / "train_sam").model, weights_only=True)["state_dict"]
    assert torch.equal(state["image_encoder.blocks.0.attn.qkv.weight"], mae()["blocks.0.attn.qkv.weight"])
    file.unlink()
    assert main([*words, "trainer.max_steps=2", "optim.lr=0"]) == 0
    assert "tensors taken" not in capsys.readouterr().out
    for word in ([f"init_from={tiny_teacher}"], ["name=other"]):
        assert main([*words, "name=other", "trainer.max_steps=1", *word]) == 2
    said = capsys.readouterr().err
    assert "both say where the encoder starts" in said and "there is no checkpoint at" in said
