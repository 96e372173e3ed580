"""Shared fixtures: one thread and fixed seeds everywhere, tiny shards and models, skips that say why.

tiny_shards   folder with train and val shards of 64 px synthetic photographs, made by `frisket prep`'s own code
tiny_sam      a 64 px Sam with random weights; tiny_teacher: the path of one, deeper, saved as model.pt; tiny_quantized:
              the folder of that one at W8A8, as `frisket quant` writes it
small_disk    a file system of a few kilobytes
data_root     $FRISKET_DATA_ROOT (real data); tests that need it skip when it is not set
Tests marked gpu skip themselves where there is no CUDA device.
"""

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers of pytest-xdist share two cores

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from tinyquant import quantized

from frisket import checkpoint, plugins
from frisket.models.sam import Sam
from frisket.models.zoo import build
from frisket.place import Place
from frisket.prep import synthetic
from frisket.prep.run import prep


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def deterministic() -> None:
    """Every test starts from the same random states, on one thread."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """What a test leaves in the process, the next one does not find: loaded plug-ins, and the rank that Lightning
    remembers for good once a test has played rank 1 (it would write no file then)."""
    known, rank = dict(plugins._outside), rank_zero_only.rank
    yield
    plugins._outside.clear()
    plugins._outside.update(known)
    rank_zero_only.rank = rank


@pytest.fixture
def tiny_sam() -> Sam:
    """A 64 px ViT Sam, two blocks (one windowed, one global), random weights."""
    torch.manual_seed(0)
    return build("sam_vit_t", image_size=64, width=48, depth=2, heads=3, global_blocks=(1,))


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt of a 64 px ViT Sam with four blocks, wider than the students."""
    torch.manual_seed(1)
    sam = build("sam_vit_t", image_size=64, width=64, depth=4, heads=4, global_blocks=(1, 3))
    path = tmp_path_factory.mktemp("teacher") / "model.pt"
    checkpoint.save(sam, path)
    return path


@pytest.fixture(scope="session")
def tiny_quantized(tiny_teacher: Path, tiny_shards: Path) -> Path:
    """A folder with model.safetensors, made of tiny_teacher."""
    return quantized(tiny_teacher, tiny_teacher.parent / "w8a8", tiny_shards)


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train/ (16 photographs in two shards) and val/ (6 in one): synthetic, 96 px, masks from 40 px."""
    folder = tmp_path_factory.mktemp("shards")
    for split, count in (("train", 16), ("val", 6)):
        prep(
            synthetic.Config(
                out=str(folder / split), split=split, count=count, image_size=96, min_area=40,
                samples_per_shard=8, place=Place(workers=1),
            )
        )  # fmt: skip
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """small_disk(256): the folder of a file system of 256 KiB, a new one at each call. Skips without root."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here (it needs root): {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:  # lazy: the traceback of the error under test may still hold a removed file open
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets. Skips when $FRISKET_DATA_ROOT is not set or not there."""
    value = os.environ.get("FRISKET_DATA_ROOT")
    if not value or not Path(value).is_dir():
        pytest.skip("needs real data: set FRISKET_DATA_ROOT to its folder")
    return Path(value)
