"""Edge maps from disk: both formats at the right place and scale, and one sentence for each mistake."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from frisket.data.bsds import boundaries
from frisket.data.edgemaps import EdgeMaps
from frisket.errors import UserError

SIZE = (6, 9)


def png(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


def ucm2(path: Path, values: np.ndarray, name: str = "ucm2") -> Path:
    scipy.io.savemat(path, {name: values})
    return path


def read(folder: Path, name: str = "7") -> np.ndarray:
    return EdgeMaps(folder, [name]).read(name, SIZE)


def test_png_is_value_over_255(tmp_path: Path) -> None:
    values = np.arange(54, dtype=np.uint8).reshape(SIZE) * 4
    png(tmp_path / "7.png", values)
    assert (read(tmp_path) == values / 255).all()


@pytest.mark.parametrize("form", ["16 bit", "equal colours", "black and white"])
def test_other_grey_pngs(tmp_path: Path, form: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    if form == "16 bit":
        png(tmp_path / "7.png", values.astype(np.uint16) * 257)
    elif form == "equal colours":
        png(tmp_path / "7.png", np.repeat(values[..., None], 3, axis=2))
    else:
        values = np.where(values > 127, 255, 0).astype(np.uint8)
        Image.fromarray(values).convert("1").save(tmp_path / "7.png")
    assert np.abs(read(tmp_path) - values / 255).max() < 1e-12


def test_ucm2_is_read_at_odd_positions_from_the_third(tmp_path: Path) -> None:
    full = np.random.default_rng(0).random((13, 19))
    ucm2(tmp_path / "7.mat", full)
    wanted = [[full[2 * y + 2, 2 * x + 2] for x in range(9)] for y in range(6)]  # MATLAB's 3:2:end
    assert (read(tmp_path) == wanted).all()


MISTAKES: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: None, "holds no maps"),
    (lambda f: png(f / "8.png", np.zeros(SIZE, np.uint8)), "has no map of the photograph 7"),
    (lambda f: (f / "7.npy").write_bytes(b"x"), r"7\.npy is no map: '\.npy' files are not read"),
    (lambda f: (png(f / "7.png", np.zeros(SIZE, np.uint8)), ucm2(f / "7.mat", np.zeros((13, 19)))), "leave one map"),
    (lambda f: png(f / "7.png", np.zeros((9, 6), np.uint8)), "6 wide and 9 high, its photograph 9 and 6"),
    (lambda f: png(f / "7.png", np.full((*SIZE, 3), (255, 0, 0), np.uint8)), "colour"),
    (lambda f: (f / "7.png").write_bytes(b"\x89PNG, or so it says"), "cannot be read"),
    (lambda f: ucm2(f / "7.mat", np.full((13, 19), np.nan)), "holds NaN at 54 pixels"),
    (lambda f: ucm2(f / "7.mat", np.full((13, 19), 200.0)), "values from 0 to 200: save edge strengths in 0..1"),
    (lambda f: ucm2(f / "7.mat", np.zeros((13, 19)), "ucm"), "holds ucm, but no ucm2"),
    (lambda f: ucm2(f / "7.mat", np.zeros((13, 19, 2))), "3 axes"),
    (lambda f: (f / "7.mat").write_bytes(b"MATLAB 5.0" * 30), "cannot be read"),
]


@pytest.mark.parametrize(("make", "sentence"), MISTAKES, ids=[sentence for _, sentence in MISTAKES])
def test_one_sentence_for_each_mistake(tmp_path: Path, make: Callable[[Path], object], sentence: str) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of maps"):
        read(tmp_path / "nowhere")


def test_fields_in_another_case_and_drawings_that_do_not_fit(tmp_path: Path) -> None:
    def truth(name: str, field: str, *drawn: np.ndarray) -> Path:
        cells = np.empty((1, len(drawn)), object)
        for n, one in enumerate(drawn):
            cells[0, n] = {field: one}
        scipy.io.savemat(tmp_path / "7.mat", {name: cells})
        return tmp_path / "7.mat"

    one, two = np.eye(6, 9, dtype=np.uint8), np.ones(SIZE, np.uint8)
    found = boundaries(truth("groundtruth", "boundaries", one, two))
    assert found.dtype == bool and (found == np.stack([one, two])).all()
    with pytest.raises(ValueError, match="of one size"):
        boundaries(truth("groundTruth", "Boundaries", one, two.T))
    with pytest.raises(ValueError, match="has no Boundaries"):
        boundaries(truth("groundTruth", "Contours", one))
