"""The command line: verbs, help, the split of arguments, mistakes in one sentence with exit code 2."""

import os
import re
import subprocess
from dataclasses import fields

import pytest
import yaml
from toyrun import command, environment, frisket, toy_run, toy_shards

from frisket import __version__
from frisket.cli.main import VERBS, main, split
from frisket.errors import UserError
from frisket.models.lightening import LighteningConfig
from frisket.recipes.base import RECIPES


def test_help_lists_every_verb(capsys):
    assert main([]) == main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {verb} " in said for verb in VERBS)
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert "    frisket train configs/" in said and "Exit code 75" in said
    assert f"YAMLs of ours: {', '.join(sorted(RECIPES.files()))}." in said
    assert main(["help", "train"]) == 0
    assert capsys.readouterr().out == said
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "frisket: 'trian' is not a verb of frisket: did you mean 'train'?"),
        (["train", "--lr", "1"], "settings are written key=value"),
        (["train"], "no recipe is named"),
        (["train", "recipe=distil_lightening"], "did you mean 'distill_lightening'?"),
        (["train", "recipe=train_sam", "trainer.max_step=3"], "did you mean 'max_steps'?"),
        (["train", "recipe=train_sam", "trainer.max_steps=0"], "trainer.max_steps=0 must be 1 or more"),
        (["train", "recipe=train_sam", "log.wandb=never"], "must be one of auto, online, offline, off"),
        (["train", "recipe=train_sam", "place.precision=bf16"], "must be one of 32-true, bf16-mixed, 16-mixed"),
        (["train", "recipe=train_sam", "trainer.val_every=-1"], "trainer.val_every=-1 must be 0 or more"),
        (["train", "recipe=train_sam", "trainer.clip=nan"], "trainer.clip=nan must be a finite number"),
        (["train", "recipe=train_sam", "place.threads=0"], "place.threads=0 must be 1 or more"),
        (["train", "recipe=train_sam", "place.accelerator=tpu"], "must be one of auto, cpu, gpu, cuda"),
        (["train", "recipe=train_sam", "place.workers=-1"], "place.workers=-1 must be 0 or more"),
        (["train", "recipe=train_sam", "data.image_size=0"], "data.image_size=0 must be a multiple of 16"),
        (["train", "recipe=train_sam", "data.image_size=100"], "data.image_size=100 must be a multiple of 16"),
        (["train", "recipe=train_sam", "optim.lr=-1"], "optim.lr=-1.0 must be 0 or more"),
        (["train", "recipe=train_sam", "optim.lr=nan"], "optim.lr=nan must be a finite number"),
        (["train", "recipe=train_sam", "optim.betas=[0.9,1]"], "optim.betas=[0.9, 1.0] must both be"),
        (["train", "recipe=train_sam", "trainer.accelerator=cpu"], "trainer.accelerator is now place.accelerator"),
        (["train", "recipe=train_sam", "trainer.accumulate=2"], "is now derived from data.global_batch"),
        (["train", "recipe=train_sam", "data.seed=2"], "data.seed is now seed"),
        (["show", "recipe=train_sam", "place.workers=-1"], "place.workers=-1 must be 0 or more"),
        (["show", "recipe=train_sam", "model.encoder.ofsets=longnet"], "model: model 'lightening' has no setting"),
        (["train", "recipe=train_sam", "model.encoder.ofsets=longnet"], "did you mean 'offsets'?"),
        (
            ["show", "recipe=train_sam", "model.encoder.depth=deep"],
            "model: {'image_size': 1024, 'depth': 'deep'} is no 'lightening'",
        ),
        (["train", "recipe=train_sam", "data.image_size=1048576"], "data.image_size=1048576 must be 16384 or less"),
        (["train", "recipe=train_sam", "model.encoder.depth=1000000000"], "depth=1000000000 must be 512 or less"),
        (
            ["train", "recipe=train_sam", "model.encoder.width=16384", "model.encoder.heads=16"],
            "a model of 1.9e+10 weights",
        ),
        (["train", "recipe=train_sam", "model.encoder.mlp_ratio=.nan"], "mlp_ratio=nan must be a finite number"),
        (["train", "recipe=train_sam", "seed=1" + 400 * "0"], "must be 4294967295 or less"),
        (["predict", "x.jpg", "checkpoint=x", "box={}"], "box={} must be a list"),
        (["predict", "x.jpg", "checkpoint=x", "mode=everything", "everything.points_per_side=999999"], "1024 or less"),
        (["help", "trian"], "did you mean 'train'?"),
        (["bench", "plugins=[no.such_module]"], "plug-in no.such_module cannot be imported (ModuleNotFoundError: "),
        (["train", "none.yaml"], "none.yaml does not exist"),
        (["show"], "nothing to show"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(capsys, words, sentence):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("frisket: ") and said.count("\n") == 1


def test_a_refused_start_leaves_no_folder_and_takes_none_away(capsys, tmp_path, tiny_shards):
    """The data are missing: found after the run folder was locked, before it holds settings."""
    words = ["train", "train_sam", "demo/debug", "on/cpu", "model.name=sam_vit_t", f"out={tmp_path / 'new' / 'runs'}"]
    assert main([*words, f"data.train={tmp_path / 'nothing'}", "data.val=null"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    kept = tmp_path / "new" / "runs" / "train_sam" / "notes.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    assert main([*words, f"data.train={tmp_path / 'nothing'}", "data.val=null"]) == 2
    assert kept.read_text() == "mine"


def test_help_lists_the_keys_of_what_is_chosen(capsys):
    """Key, default and the line below the field; of the chosen recipe, task or source alone."""
    assert main(["train", "train_sam", "--help"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^  optim\.schedule=cosine +.*One of cosine, constant, wsd, step\.$", said, re.MULTILINE)
    assert re.search(r"^  plugins=\[\] +Modules from outside", said, re.MULTILINE)
    assert "  prompts.clicks=" in said and "distill." not in said
    assert main(["train", "recipe=distill_lightening", "--help"]) == 0
    said = capsys.readouterr().out
    assert "  distill." in said and "  prompts." not in said
    assert main(["eval", "eval_edges", "-h"]) == 0
    assert "  thresholds=" in capsys.readouterr().out
    assert main(["bench", "--help"]) == 0
    assert "  quick=false" in capsys.readouterr().out
    assert main(["train", "recipe=nothing", "--help"]) == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "stream"),
    [
        (["--help"], "stdout"),
        (["prep", "source=synthetic", "count=1", "image_size=64", "place.workers=1", "out=out"], "stdout"),
        (["trian"], "stderr"),
    ],
)
def test_a_reader_that_went_away_is_no_traceback(tmp_path, words, stream, unbuffered):
    """As `frisket … | head -1`, but for sure: the pipe has no reader from the start."""
    reader, writer = os.pipe()
    os.close(reader)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    env = environment(PYTHONUNBUFFERED=unbuffered)
    done = subprocess.run(command(*words), env=env, cwd=tmp_path, text=True, timeout=240, **pipes)
    os.close(writer)
    assert done.returncode == 1
    assert not done.stdout and not done.stderr


def test_split():
    assert split(["a.yaml", "x.y=1", "b.yaml", "c=d=e"]) == (["a.yaml", "b.yaml"], ["x.y=1", "c=d=e"])
    with pytest.raises(UserError, match="no options"):
        split(["-v"])


def test_show_prints_the_resolved_whole(capsys, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("recipe: train_sam\noptim: {lr: 0.5}\n")
    assert main(["show", str(file), "trainer.max_steps=7"]) == 0
    said = capsys.readouterr().out
    assert "max_steps: 7" in said and "lr: 0.5" in said and "global_batch: " in said


def test_show_says_what_each_key_is_and_stays_yaml(capsys, tmp_path):
    long = "a name of many words " * 12
    assert main(["show", "recipe=train_sam", "optim.schedule=constant", f"log.project='{long}'", "seed=3"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"^  schedule: constant  # .*One of cosine, constant, wsd, step\. \(default cosine\)$", said, re.MULTILINE
    )
    assert re.search(r"^plugins: \[\]  # Modules from outside, .*\)\.$", said, re.MULTILINE)
    assert re.search(r"^    offsets: all  # .*every head", said, re.MULTILINE)  # the encoder's own settings
    parsed = yaml.safe_load(said)
    assert (parsed["seed"], parsed["log"]["project"]) == (3, long)
    (tmp_path / "again.yaml").write_text(said)
    assert main(["show", str(tmp_path / "again.yaml")]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == parsed


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["bench"], "repeats"),
        (["bench_mine.yaml"], "repeats"),
        (["predict", "mine.yaml"], "point"),
        (["source=bsds500", "task=0/4"], "min_area"),
        (["eval_all"], "tasks"),
    ],
)
def test_show_knows_whose_settings_they_are(capsys, tmp_path, monkeypatch, words, key):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "bench_mine.yaml").touch()
    assert main(["show", *words]) == 0
    assert key in yaml.safe_load(capsys.readouterr().out)
    assert main(["show", "mine.yaml"]) == 2
    assert "write frisket show VERB" in capsys.readouterr().err


def test_show_needs_no_environment_and_names_every_knob_of_the_encoder(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("FRISKET_DATA", raising=False)
    file = tmp_path / "run.yaml"
    file.write_text("recipe: distill_lightening\ndata: {train: '${oc.env:FRISKET_DATA}/train'}\n")
    assert main(["show", str(file), "student.encoder.dilation=2"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["data"]["train"] == "${oc.env:FRISKET_DATA}/train"
    assert said["student"]["encoder"].keys() == {f.name for f in fields(LighteningConfig)} - {"image_size"}
    assert said["student"]["encoder"]["dilation"] == [2]
    assert main(["train", str(file)]) == 2  # training does need it
    assert "names $FRISKET_DATA" in capsys.readouterr().err


def test_python_m_frisket_is_the_same_and_a_missing_shard_is_a_sentence(tmp_path):
    done = frisket("train", *toy_run(tmp_path / "nothing", tmp_path, max_steps=1))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("frisket: ") and "Traceback" not in done.stderr


def test_a_run_trains_changes_are_named_and_a_finished_run_says_so(capsys, tmp_path):
    data = toy_shards(tmp_path / "data", 4)
    assert main(["train", *toy_run(data, tmp_path, max_steps=2)]) == 0
    assert "train_sam, from the start" in capsys.readouterr().out
    assert main(["train", *toy_run(data, tmp_path, max_steps=2)]) == 0
    assert "is finished (step 2)" in capsys.readouterr().out
    other = ["recipe=train_lite", "name=train_sam", "model.name=sam_vit_t", "model.encoder.global_blocks=[1]"]
    assert main(["train", *toy_run(data, tmp_path, max_steps=2), *other]) == 2
    assert "was finished by train_sam, and this is train_lite: set name=" in capsys.readouterr().err
    assert main(["train", *toy_run(data, tmp_path, max_steps=3), "optim.lr=0.5"]) == 0
    said = capsys.readouterr().out
    assert "continuing from" in said
    assert "changed since the last start: optim.lr: " in said and "-> 0.5" in said
    assert "changed since the last start: trainer.max_steps: 2 -> 3" in said
    assert (tmp_path / "train_sam" / "model.pt").is_file()


def test_another_model_in_the_same_run_folder_is_refused(capsys, tmp_path):
    data = toy_shards(tmp_path / "data", 4)
    words = ["train", *toy_run(data, tmp_path, max_steps=1), "model.name=sam_vit_t"]
    words = [word.replace("heads: 2", "heads: 2, global_blocks: [1]") for word in words]
    assert main(words) == 0
    settings = (tmp_path / "train_sam" / "config.yaml").read_text()
    words.append("trainer.max_steps=2")
    for change, sentence in (
        (["data.image_size=128"], "holds sam_vit_t at 64 px; the settings ask for sam_vit_t at 128 px: set name=…"),
        (["model.encoder.depth=3"], "sam_vit_t at 64 px, depth=2; the settings ask for sam_vit_t at 64 px, depth=3"),
        (["model.name=sam_vit_b"], "holds sam_vit_t at 64 px; the settings ask for sam_vit_b at 64 px: set name=…"),
    ):
        assert main([*words, *change]) == 2
        said = capsys.readouterr().err
        assert f"frisket: {tmp_path / 'train_sam'} holds" in said and sentence in said and said.count("\n") == 1
        assert (tmp_path / "train_sam" / "config.yaml").read_text() == settings
    assert main([*words, "optim.lr=0.5", "model.encoder.window=14"]) == 0  # 14 is the default
