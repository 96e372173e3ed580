"""Checks of disks: the run's folder, space for checkpoints and stored embeddings, shared memory."""

import fcntl
import shutil
import tempfile
from pathlib import Path

from frisket.data.embeddings import NECK, PATCH, folder_for, numbers
from frisket.engine.doctor.plan import Plan
from frisket.errors import UserError
from frisket.files import standing, writable
from frisket.geometry import Frame

SHM = Path("/dev/shm")
KEPT = 4  # checkpoints: docs/resume.md
ALL_MASKS = 100  # of a photograph of SA-1B, where masks_per_image=0 takes them all
GB = 1e9


def folder(plan: Plan) -> str:
    """Can be written, and nobody trains in it. Rank 0's alone."""
    run = plan.run
    writable(run.path, f"out={plan.config.out}")
    if plan.rank:
        return f"{run.path} can be written"
    file = open(run.lock, "a") if run.lock.exists() else tempfile.NamedTemporaryFile(dir=standing(run.path))  # noqa: SIM115
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(run.taken()) from error
        except OSError as error:
            return f"{run.path} can be written, but has no locks ({error.strerror}): start no second run in it"
    return f"{run.path} can be written and locked"


def checkpoints(plan: Plan) -> str:
    """Space for as many as a run may hold at a time, less those that it holds."""
    if plan.recipe is None:
        return "not checked: there is no model to count"
    state = sum(value.numel() * value.element_size() for value in plan.recipe.state_dict().values())
    trained = sum(weight.numel() for weight in plan.recipe.parameters() if weight.requires_grad)
    size = state + (12 if plan.config.regularize.ema else 8) * trained  # AdamW's two moments and the average, fp32
    count = KEPT + plan.config.trainer.keep_last
    held = sum(path.stat().st_size for path in plan.run.checkpoints.rglob("*") if path.is_file())
    needed, free = max(0, count * size - held), shutil.disk_usage(standing(plan.run.path)).free
    if needed > free:
        raise UserError(
            f"{plan.run.path} needs {needed / GB:.3g} GB for {count} checkpoints and the disk has {free / GB:.3g} GB: "
            "make room, or set out=… to another one"
        )
    return f"{count} checkpoints of {size / GB:.3g} GB, {held / GB:.3g} GB of them there; {free / GB:.3g} GB free"


def embeddings(plan: Plan) -> str:
    """Stored ones are the teacher's own, for every shard; or what storing them would take."""
    c, data, stamp = plan.config.data, plan.data, plan.data.stamp
    if data.has_embeddings:
        data.train_dataloader()  # compares
        return f"{c.embeddings}: of {stamp}, for every shard" if stamp else f"{c.embeddings}: for every shard"
    if data.streaming or not hasattr(plan.config, "teacher"):
        return "none are used"
    at = standing(folder_for(Path(data.train_tars[0])))
    square = Frame.fit((c.image_size, c.image_size), c.image_size)
    size, free = len(data.train_shards) * 2 * numbers(square, data.taps.values()), shutil.disk_usage(at).free
    what = f"all, with blocks {list(data.taps)}," if data.taps else "all,"
    return f"none are used; {what} in fp16, would be {size / GB:.3g} GB at most, and {at} has {free / GB:.3g} GB free"


def shared_memory(plan: Plan) -> str:
    """Room for the batches that all loader workers of this node hold."""
    c, workers = plan.config.data, plan.config.place.workers
    if not workers or not SHM.is_dir():
        return "not needed: no loader workers" if not workers else f"not checked: there is no {SHM}"
    grid = (c.image_size // 4) ** 2 * (c.masks_per_image or ALL_MASKS)
    neck = 4 * NECK.width * (c.image_size // PATCH) ** 2
    layers = sum(2 * tap.width * (c.image_size // tap.stride) ** 2 for tap in plan.data.taps.values())
    embedding = neck + layers if plan.data.has_embeddings else 0
    batch = plan.division.per_device * (3 * c.image_size**2 + grid + embedding)
    needed, free = plan.where["devices"] * workers * 2 * batch, shutil.disk_usage(SHM).free
    if needed > free:
        raise UserError(
            f"{SHM} has {free / GB:.3g} GB and the loaders' workers hold up to {needed / GB:.3g} GB of batches there: "
            "enlarge it (a container: --shm-size), or lower place.workers or place.images_per_device"
        )
    return f"{needed / GB:.3g} GB of training batches at most, {free / GB:.3g} GB free in {SHM}"
