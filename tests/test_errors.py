"""`nearest` ends an error sentence with one good guess, or with everything that is known."""

import pytest

from frisket.errors import UserError, nearest


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("leraning_rate", ["lr", "learning_rate", "betas"], "did you mean 'learning_rate'?"),
        ("sam_vit_hh", ["sam_vit_h", "lightening"], "did you mean 'sam_vit_h'?"),
        ("zzz", ["lr", "betas"], "known: betas, lr"),
    ],
)
def test_nearest(word: str, choices: list[str], expected: str) -> None:
    assert nearest(word, choices) == expected


def test_nearest_takes_any_iterable() -> None:
    assert nearest("lr", (key for key in {"lrr": 1})) == "did you mean 'lrr'?"


def test_user_error_is_its_sentence() -> None:
    assert str(UserError("shard x.tar is empty: make it again")) == "shard x.tar is empty: make it again"
