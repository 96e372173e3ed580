"""Config: later sources win; every mistake is one sentence with the source, the key and the nearest right one."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from omegaconf import MISSING

from frisket import config
from frisket.errors import UserError


@dataclass
class Inner:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "constant"] = "cosine"
    blocks: list[int] = field(default_factory=lambda: [1, 2, 3])


@dataclass
class Schema:
    name: str | None = None
    steps: int = 10
    on: bool = True
    optim: Inner = field(default_factory=Inner)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Old:
    """A schema whose keys had other names."""

    renamed: ClassVar[dict[str, str]] = {
        "trainer.accelerator": "place.accelerator",
        "trainer.accumulate": "derived from data.global_batch",
        "generator": "everything",
    }
    place: dict[str, Any] = field(default_factory=dict)
    wandb: Literal["auto", "online", "off"] = "auto"
    parts: list[Literal["encoder", "decoder"]] = field(default_factory=list)
    threads: int | None = field(default=None, metadata={"least": 1, "most": 512})


@dataclass
class Older(Old):
    renamed: ClassVar[dict[str, str]] = {"side": "image_size"}


@dataclass
class Needy:
    data: str = MISSING


@pytest.fixture
def write(tmp_path: Path):
    """A function (text, name) -> path of a YAML file."""

    def make(text: str, name: str = "a.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return make


def message(*args: Any, schema: type = Schema, **kwargs: Any) -> str:
    """The sentence that loading raises."""
    with pytest.raises(UserError) as caught:
        config.load(schema, *args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_later_wins_and_defaults_stay(write) -> None:
    first, second = write("steps: 20\noptim: {lr: 8e-4}\n"), write("optim: {lr: 1}\n", "b.yaml")
    loaded = config.load(Schema, [first, second], ["steps=30", "name=x"])
    assert loaded == Schema(name="x", steps=30, optim=Inner(lr=1.0))
    assert isinstance(loaded.optim, Inner) and isinstance(loaded.optim.lr, float)


def test_exponents_are_numbers(write) -> None:
    assert config.load(Schema, [write("optim: {lr: 8e-4}")]).optim.lr == 8e-4


def test_lists_are_replaced_and_mappings_merge(write) -> None:
    a, b = write("optim: {blocks: [4, 5]}\nextra: {x: 1, y: 2}"), write("extra: {y: 3}", "b.yaml")
    loaded = config.load(Schema, [a, b], ["optim.blocks=[7]"])
    assert loaded.optim.blocks == [7]
    assert loaded.extra == {"x": 1, "y": 3}


def test_unknown_key_names_file_key_and_nearest(write) -> None:
    path = write("optim: {learning_rate: 1, lrr: 2}")
    text = message([write("optim: {lrr: 2}", "typo.yaml")])
    assert "typo.yaml" in text and "'optim.lrr'" in text and "did you mean 'lr'?" in text
    assert "known: betas, blocks, lr, schedule" in message([path])
    assert "'stepz'" in message([], ["stepz=1"]) and "did you mean 'steps'?" in message([], ["stepz=1"])
    assert "override 'optim.scedule=cosine'" in message([], ["optim.scedule=cosine"])


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("steps=many", ["override 'steps=many'", "steps"]),
        ("optim.betas={}", ["optim.betas={} must be a list, as in [a, b]"]),
        ("optim=[1]", ["optim=[1] must be keys, as in {a: 1}"]),
        ("optim.blocks=[[]]", ["optim.blocks[0]=[] must be a single value"]),
        ("name=*", ["override 'name=*'", "if it is a word, quote it: name=\"'…'\""]),
        ("optim.lr=fast", ["optim.lr=fast must be a number"]),
        ("optim.schedule=cosin", ["optim.schedule", "cosine", "constant"]),
        ("optim=3", ["optim=3 must be keys, as in {a: 1}"]),
        ("extra=word", ["extra=word must be keys"]),
        ("on=perhaps", ["on=perhaps must be true or false"]),
        ("steps=[1,2]", ["steps=[1, 2] must be a whole number"]),
        ("name={a: 1}", ["name={'a': 1} must be a word"]),
        ("optim.blocks=[1,b]", ["optim.blocks[1]=b must be a whole number"]),
        ("steps.inner=3", ["steps={'inner': 3} must be a whole number"]),
    ],
)
def test_wrong_type_names_key_and_value(override: str, parts: list[str]) -> None:
    text = message([], [override])
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("steps=", "steps"),
        ("steps=null", "steps"),
        ("on=", "on"),
        ("optim=", "optim"),
        ("optim.lr=", "optim.lr"),
        ("optim.schedule=", "optim.schedule"),
        ("optim={lr: }", "optim.lr"),
        ("optim.blocks=", "optim.blocks"),
        ("optim.betas=", "optim.betas"),
        ("optim.blocks=[1,null]", "optim.blocks[1]"),
    ],
)
def test_nothing_where_a_value_is_needed(override: str, key: str) -> None:
    assert message([], [override]) == (
        f"override '{override}': {key} is empty: give a value, or leave it out for the default"
    )


def test_nothing_in_a_file_and_where_nothing_is_a_value(write) -> None:
    assert "a.yaml: optim.lr is empty: give" in message([write("optim:\n  lr:\n")])
    assert config.load(Schema, [], ["name=x", "name="]).name is None
    assert config.load(Schema, [], ["name=''"]).name == ""


@pytest.mark.parametrize("override", ["steps", "=3", ""])
def test_not_an_override(override: str) -> None:
    assert "write key=value" in message([], [override])


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "nowhere.yaml does not exist" in message(["nowhere.yaml"])
    assert "is a folder or a pipe: give a YAML file" in message([tmp_path])
    (tmp_path / "distill.yaml").touch()
    assert f"did you mean {tmp_path / 'distill.yaml'}?" in message([tmp_path / "distil.yaml"])
    assert "did you mean" not in message([tmp_path / "zzz.yaml"])


@pytest.mark.parametrize("text", ["steps: [1", "a: b: c", "- 1\n- 2", "just words", "3", "\t: x", "steps: 1\nsteps: 2"])
def test_bad_yaml_names_the_file(write, text: str) -> None:
    assert "a.yaml" in message([write(text)])


def test_bad_yaml_names_the_line(write) -> None:
    assert re.search(
        r"is not valid YAML, line \d: did not find expected ',' or '\]'", message([write("a: 1\nb: [1\nc")])
    )


def test_empty_file_changes_nothing(write) -> None:
    assert config.load(Schema, [write("# only a comment\n")]) == Schema()


def test_environment(write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write('name: "${oc.env:FRISKET_TEST_X}/a-{000..003}.tar"')
    monkeypatch.setenv("FRISKET_TEST_X", "/data")
    assert config.load(Schema, [path]).name == "/data/a-{000..003}.tar"
    monkeypatch.delenv("FRISKET_TEST_X")
    text = message([path])
    assert "a.yaml" in text and "FRISKET_TEST_X" in text and "give name=…" in text


def test_an_overridden_environment_is_never_looked_up(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRISKET_TEST_X", raising=False)
    path = write('name: "${oc.env:FRISKET_TEST_X}"')
    assert config.load(Schema, [path], ["name=mine"]).name == "mine"


def test_an_unset_environment_is_kept_for_looking(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRISKET_TEST_X", raising=False)
    path = write('name: "${oc.env:FRISKET_TEST_X}/${oc.env:FRISKET_TEST_Y}/${oc.env:FRISKET_TEST_X,z}"')
    monkeypatch.setenv("FRISKET_TEST_Y", "y")
    with config.unset_kept():
        loaded = config.load(Schema, [path])
    assert loaded.name == "${oc.env:FRISKET_TEST_X}/y/z"
    assert "name: ${oc.env:FRISKET_TEST_X}/y/z\n" in config.show(loaded)
    assert "FRISKET_TEST_X" in message([path])


def test_mandatory_field_left_out() -> None:
    assert "leaves data unset" in message([], schema=Needy)
    assert config.load(Needy, [], ["data=x"]).data == "x"


def test_a_single_word_is_a_list_of_one(write) -> None:
    loaded = config.load(Schema, [write("optim: {blocks: 3}")])
    assert loaded.optim.blocks == [3]
    assert config.load(Schema, [], ["optim.blocks=7"]).optim.blocks == [7]
    assert config.load(Schema, [], ["optim.blocks=[7,8]"]).optim.blocks == [7, 8]
    assert "optim.blocks[0]" in message([], ["optim.blocks=x"])
    assert "optim.betas" in message([], ["optim.betas=0.5"])  # a pair is not meant by one number


def test_peek_needs_no_schema(write) -> None:
    path = write("recipe: train_sam\noptim: {lr: 1}")
    assert config.peek([path], [], "recipe") == "train_sam"
    assert config.peek([path], ["recipe=x"], "recipe") == "x"
    assert config.peek([path], [], "optim.lr") == 1
    assert config.peek([path], [], "nothing") is None


def test_from_dict_says_where() -> None:
    assert config.from_dict(Schema, {"steps": 3}, "model.pt") == Schema(steps=3)
    with pytest.raises(UserError, match=r"model\.pt: unknown key 'step', did you mean 'steps'\?"):
        config.from_dict(Schema, {"step": 3}, "model.pt")


def test_what_is_shown_loads_again(tmp_path: Path) -> None:
    mine = Schema(name="é x", optim=Inner(betas=(0.5, 0.6), blocks=[]), extra={"dilation": [1, 2]})
    (tmp_path / "c.yaml").write_text(config.show(mine))
    assert config.load(Schema, [tmp_path / "c.yaml"]) == mine
    assert config.read(tmp_path / "c.yaml")["optim"]["betas"] == [0.5, 0.6]


def test_flatten_for_loggers() -> None:
    flat = config.flatten(Schema())
    assert flat["optim.lr"] == 1e-4 and flat["extra"] == {} and flat["name"] is None


def test_keys_of_a_nested_schema() -> None:
    assert config.keys(Schema, "optim") == ["lr", "betas", "schedule", "blocks"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.accelerator=cpu", "trainer.accelerator is now place.accelerator"),
        ("trainer={accelerator: cpu}", "trainer.accelerator is now place.accelerator"),
        ("trainer.accumulate=2", "trainer.accumulate is now derived from data.global_batch"),
        ("generator.crops.layers=1", "generator.crops.layers is now everything.crops.layers"),
        ("side=64", "side is now image_size"),
        ("generators=1", "unknown key 'generators'"),
    ],
)
def test_a_renamed_key_is_refused_with_its_new_name(write, override: str, sentence: str) -> None:
    assert message([], [override], schema=Older).startswith(f"override '{override}': {sentence}")
    key, _, value = override.partition("=")
    for name in reversed(key.split(".")):
        value = f"{{{name}: {value}}}"
    assert f"a.yaml: {sentence}" in message([write(value)], schema=Older)
    if "now" in sentence:
        with pytest.raises(UserError, match=f"run: {sentence}"):
            config.from_dict(Older, config.read(write(value)), "run")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("wandb=of", "wandb=of must be one of auto, online, off: did you mean 'off'?"),
        ("wandb=3", "wandb=3 must be one of auto, online, off"),
        ("wandb={a: 1}", "wandb={'a': 1} must be one of auto, online, off"),
        ("parts=[encoder,decodr]", "parts[1]=decodr must be one of encoder, decoder: did you mean 'decoder'?"),
        ("parts={}", "parts={} must be a list, as in [a, b]"),
        ("parts=on", "parts[0]=True must be one of encoder, decoder"),
    ],
)
def test_a_closed_choice_names_key_value_and_choices(override: str, sentence: str) -> None:
    assert message([], [override], schema=Old) == f"override '{override}': {sentence}"


def test_yamls_off_and_on_are_words_where_words_are_wanted(write) -> None:
    assert config.load(Old, [write("wandb: off")]).wandb == "off"
    assert config.load(Old, [], ["wandb=on"]).wandb == "auto"
    assert config.load(Old, [], ["parts=encoder"]).parts == ["encoder"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("threads=0", "threads=0 must be 1 or more"),
        ("threads=100000000000", "threads=100000000000 must be 512 or less"),
    ],
)
def test_bounds_stand_beside_the_field(override: str, sentence: str) -> None:
    assert message([], [override], schema=Old) == sentence
    with pytest.raises(UserError, match="run: threads=0 must be 1 or more"):
        config.from_dict(Old, {"threads": 0}, "run")


@pytest.mark.parametrize(
    ("override", "key"), [("optim.lr=nan", "optim.lr=nan"), ("optim.betas=[0.9,inf]", "optim.betas=(0.9, inf)")]
)
def test_a_number_is_finite(override: str, key: str) -> None:
    assert message([], [override]) == f"{key} must be a finite number"


def test_an_interpolation_of_an_unknown_key(write) -> None:
    assert message([write("steps: ${nothing}")]).endswith("a.yaml: Interpolation key 'nothing' not found (key 'steps')")
    with pytest.raises(UserError, match=r"plugins: .*nothing"):
        config.peek([write("plugins: ${nothing}")], [], "plugins")


def test_our_yamls_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.peek(["train_sam"], [], "recipe") == "train_sam"
    assert config.find("on/a100") == Path(__file__).parents[1] / "configs" / "on" / "a100.yaml"
    assert "did you mean train_sam?" in message(["train_sma"])
    (tmp_path / "train_sam").mkdir()  # what is there wins
    words = ["eval_miou", "a.jpg", "mine.yaml", "train_sam", "runs/eval_miou"]
    assert config.split(words) == (["eval_miou", "mine.yaml"], ["a.jpg", "train_sam", "runs/eval_miou"])
