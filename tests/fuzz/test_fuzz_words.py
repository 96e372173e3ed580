"""Odd values in YAMLs and key=value words of every schema, prompts of the command and of the library."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hostile import FLOATS, ODD, WHOLE, WORDS, changed, damaged, fuzz
from hypothesis import strategies as st
from test_configs import schemas

from frisket import config as settings
from frisket.cli import predict
from frisket.engine import evaluate
from frisket.engine.fit import check
from frisket.errors import UserError
from frisket.eval.task import TaskConfig
from frisket.everything.candidates import Filters
from frisket.everything.strategy import chosen, describe
from frisket.models import zoo
from frisket.models.sam import Sam
from frisket.predict.predictor import Predictor
from frisket.recipes.recipe_config import RecipeConfig

SCHEMAS = {name: kind for name, kind in schemas().items() if not name.startswith("model ")}
KEYS = {name: [knob.key for knob in settings.describe(kind)] for name, kind in SCHEMAS.items()}
TEXTS = st.one_of(
    st.sampled_from(["", "on", "null", "~", "nan", ".nan", "-.inf", "1e400", "{}", "[]", "[[]]", "{a: {b: 1}}", "[1,"]),
    st.sampled_from(
        ["{", "${seed}", "${nowhere}", "${oc.env:NOWHERE}", "${", "!!python/object:os.system", "&a [*a]", ":"]
    ),
    st.one_of(WHOLE, FLOATS, WORDS).map(str),
    ODD.map(lambda value: json.dumps(value)),
)
"""What a person can type behind `key=`."""


def use(config: Any) -> None:
    """What a verb does with its settings before it opens anything."""
    settings.show(config)
    if isinstance(config, RecipeConfig):
        check(config)
    if isinstance(config, TaskConfig):
        evaluate.check(dataclasses.replace(config, out="."))
    if isinstance(config, predict.PredictConfig):
        predict.prompts(config)
        predict.device(config)
    if isinstance(config, Filters):
        describe(config)


@st.composite
def words(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A schema's name and a few key=value words for it, most of their keys being right."""
    name = draw(st.sampled_from(sorted(SCHEMAS)))
    keys = st.sampled_from(KEYS[name])
    odd = st.one_of(keys, keys, keys, keys.map(lambda key: f"{key}.x"), keys.map(lambda key: key.split(".")[0]), WORDS)
    return name, [f"{key}={value}" for key, value in draw(st.lists(st.tuples(odd, TEXTS), min_size=1, max_size=3))]


def test_key_value_words_of_every_schema() -> None:
    def attack(case: tuple[str, list[str]]) -> None:
        name, given = case
        use(settings.load(SCHEMAS[name], [], given))

    tally = fuzz(words(), 250, attack)
    assert min(tally["answered"], tally["refused"]) > 5


def test_numbers_of_every_field() -> None:
    """One odd number in one field of a schema that is right otherwise."""
    cases = [(name, key) for name, keys in KEYS.items() for key in keys]

    def attack(case: tuple[tuple[str, str], Any]) -> None:
        (name, key), value = case
        use(settings.load(SCHEMAS[name], [], [f"{key}={value}"]))

    tally = fuzz(st.tuples(st.sampled_from(cases), st.one_of(WHOLE, FLOATS)), 150, attack)
    assert min(tally["answered"], tally["refused"]) > 20


def test_yamls(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    shipped = settings.SHIPPED / "distill_lightening.yaml"
    tree = yaml.safe_load(shipped.read_text()) | {"teacher": "sam_vit_b"}

    def attack(text: bytes) -> None:
        path.write_bytes(text)
        settings.peek([path], [], "recipe")
        use(settings.load(SCHEMAS["recipe distill_lightening"], [path]))

    odd = changed(tree).map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogateescape"))
    fuzz(st.one_of(odd, damaged(shipped.read_bytes())), 100, attack)


def test_settings_of_models() -> None:
    """In a YAML's encoder: block; a checkpoint names them in the same way."""
    rows = {name: dataclasses.asdict(zoo.entry(name).config) for name in ("sam_vit_t", "lightening")}

    def attack(case: tuple[str, dict[str, Any]]) -> None:
        name, changes = case
        with torch.device("meta"):
            zoo.build(name, **changes)

    one = st.sampled_from(sorted(rows)).flatmap(
        lambda name: st.tuples(
            st.just(name), st.dictionaries(st.sampled_from(sorted(rows[name])), ODD, min_size=1, max_size=2)
        )
    )
    assert fuzz(one, 250, attack)["refused"] > 100


# ---------------------------------------------------------------- prompts


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """Of a 64 px model, with a drawn picture."""
    torch.manual_seed(0)
    sam: Sam = zoo.build("sam_vit_t", image_size=64, width=48, depth=1, heads=3, global_blocks=(0,))
    ready = Predictor(sam)
    ready.set_image(np.zeros((48, 64, 3), np.uint8))
    return ready


NEAR = st.one_of(st.integers(-3, 70), st.floats(-2, 66), FLOATS, WHOLE, st.none(), st.just("x"))
GROUPS = st.one_of(
    st.lists(NEAR, max_size=5), st.lists(st.lists(NEAR, min_size=2, max_size=4), max_size=3), ODD,
    st.lists(st.integers(0, 40), min_size=2, max_size=2),
    st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(21, 40)] * 2).map(list),
)  # fmt: skip


def test_prompts_of_the_command(predictor: Predictor) -> None:
    def attack(case: tuple[str, Any]) -> None:
        key, value = case
        text = yaml.safe_dump(value, default_flow_style=True, width=9999).removesuffix("\n...\n").strip()
        config = settings.load(predict.PredictConfig, [], ["checkpoint=x", f"{key}={text}"])
        asked = predict.prompts(config)
        assert asked is not None
        predictor.predict(points=asked.points or None, labels=asked.labels or None, boxes=asked.boxes or None)

    tally = fuzz(st.tuples(st.sampled_from(["box", "point"]), GROUPS), 300, attack)
    assert min(tally["answered"], tally["refused"]) > 10


def test_everything_blocks() -> None:
    """Settings of segment everything: what is accepted can be told in words."""

    def attack(block: dict[str, Any]) -> None:
        assert describe(chosen(block))["sentence"]

    keys = [field.name for field in dataclasses.fields(chosen({}))]
    blocks = st.dictionaries(st.sampled_from(keys), ODD, min_size=1, max_size=2)
    fuzz(blocks, 200, attack)


def test_prompts_of_the_library(predictor: Predictor) -> None:
    """Shapes that are none are ValueError there, as its documentation says; values are UserError."""

    def attack(given: dict[str, Any]) -> None:
        try:
            answer = predictor.predict(**given)
            assert bool(answer.iou.isfinite().all())
        except ValueError as error:
            raise UserError(f"no prompts: {str(error).splitlines()[0]}") from error

    some = st.dictionaries(st.sampled_from(["points", "labels", "boxes", "masks"]), GROUPS, min_size=1, max_size=3)
    tally = fuzz(some, 200, attack)
    assert tally["refused"] > 20
