"""Train a recipe: its module and config in, a run folder out. Starting again continues.

    code = fit(RECIPES.find("train_sam"), config)

The run folder is out/name (see frisket.engine.rundir). The newest checkpoint there decides where to go on; `init_from`
counts only when there is none. Exit code 75: stopped on request, with a checkpoint (slurm/env.sh then requeues); 130:
the same after Ctrl-C. A second Ctrl-C ends the program at once.
"""

import contextlib
from types import ModuleType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from frisket import checkpoint
from frisket import config as settings
from frisket.callbacks import Gallery, Progress, Samples, Throughput, say
from frisket.checkpoint import Resume
from frisket.data.module import ShardData
from frisket.engine import signals
from frisket.engine.average import Average
from frisket.engine.batch import Division, Recount
from frisket.engine.best import KeepBest, known, write
from frisket.engine.compile import compiled
from frisket.engine.doctor.plan import plan
from frisket.engine.doctor.room import embeddings
from frisket.engine.doctor.run import ready
from frisket.engine.health import Health
from frisket.engine.preempt import Preempt, Stopped, exit_code
from frisket.engine.rundir import CsvLog, RunDir, WandbCurve, wandb_log
from frisket.engine.save import AtomicIO, KeepLast
from frisket.engine.straggler import Straggler
from frisket.engine.strategy import exits_for_all, fits, quiet, together
from frisket.errors import UserError, warn
from frisket.files import write_text
from frisket.recipes.base import Recipe
from frisket.recipes.recipe_config import RecipeConfig, check_model, specs


def fit(recipe: ModuleType, config: RecipeConfig) -> int:
    """Train `recipe` (a module of frisket.recipes) until trainer.max_steps, or until asked to stop.

    Returns the exit code; raises UserError.
    """
    with signals.held():
        check(config)
        folder = RunDir.of(config)
        folder.open()
        try:
            return 0 if _finished(folder, config) else _train(recipe, config, folder)
        finally:
            folder.close()


def check(config: RecipeConfig) -> None:
    """Refuse values that would fail later and less clearly; what a field alone can say is checked as it is read.

    Raises UserError.
    """
    if not all(0 <= beta < 1 for beta in config.optim.betas):
        raise UserError(f"optim.betas={list(config.optim.betas)} must both be at least 0 and less than 1")
    side = config.data.image_size
    if side < 16 or side % 16:
        raise UserError(f"data.image_size={side} must be a multiple of 16, the patch side")
    if config.trainer.nan_skips and config.place.strategy not in ("auto", "ddp"):
        raise UserError(
            f"trainer.nan_skips={config.trainer.nan_skips} skips a step whole and place.strategy="
            f"{config.place.strategy} cannot: set trainer.nan_skips=0 or place.strategy=ddp"
        )
    if config.trainer.keep_best and config.data.val is None:
        raise UserError(f"trainer.keep_best={config.trainer.keep_best} needs validations: set data.val, or it to ''")
    for key, spec in specs(config).items():
        check_model(key, spec, side)


def _finished(folder: RunDir, config: RecipeConfig) -> bool:
    done = folder.finished()
    if not done or done["step"] < config.trainer.max_steps:
        return False
    made = done.get("recipe", config.recipe)  # an earlier frisket did not say
    if made != config.recipe:
        raise UserError(
            f"{folder.path} was finished by {made}, and this is {config.recipe}: set name=… for another run"
        )
    say(
        f"{folder.path} is finished (step {done['step']}): {folder.result}. "
        "Raise trainer.max_steps to go on, or set name=… for another run."
    )
    return True


def _train(recipe_file: ModuleType, config: RecipeConfig, folder: RunDir) -> int:
    quiet()
    if config.place.threads:
        torch.set_num_threads(config.place.threads)
    L.seed_everything(config.seed, workers=True, verbose=False)
    start = plan(recipe_file, config)
    where, division, data = start.where, start.division, start.data
    ready(start)
    if config.trainer.sync_batchnorm and where["accelerator"] == "cpu" and start.world > 1:
        raise UserError(
            "trainer.sync_batchnorm=true needs GPUs, torch has none for CPUs: set it to false, or devices=1"
        )
    resume = checkpoint.newest(folder.path)  # the one time that its facts are read
    if resume:
        fits(resume)
    stalled = folder.stalled()
    recipe = recipe_file.Module(config, resume)
    recipe.check_resume(folder.path)
    data.stamp, data.taps, data.targets = recipe.stamp(), recipe.taps(), recipe.targets()
    embeddings(start)
    if config.trainer.keep_best:
        known(recipe, config.trainer.keep_best)
    if config.place.compile:
        compiled(recipe, on_cpu=where["accelerator"] == "cpu")
    _announce(config, folder, resume, f"{division}, {_epochs(config, data)}")  # behind whatever refuses
    _remember(config, folder)
    average = Average(config.regularize.ema) if config.regularize.ema else None
    keep, preempt = KeepLast(folder, config.trainer.checkpoint_every, config.trainer.keep_last), Preempt(folder)
    trainer = L.Trainer(
        **where | {"plugins": [*where["plugins"], AtomicIO()]},
        **_rhythm(config, division),
        default_root_dir=folder.path,
        logger=_loggers(config, folder, resume),
        callbacks=_callbacks(config, folder, average, keep, preempt),
    )
    metrics: dict[str, Any] = {}
    # Stopped: preempt.left says where
    with contextlib.suppress(Stopped), together():
        trainer.fit(
            recipe,
            datamodule=data,
            ckpt_path=resume.path if resume else None,
            weights_only=True if resume else None,
        )
        metrics |= trainer.callback_metrics
        # due by no count of steps, or this start found every step done and the end missing
        if preempt.left is None and config.data.val is not None and keep.validated != trainer.global_step:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step - 1  # the loggers' step
            trainer.validate(recipe, datamodule=data, verbose=False)
            metrics |= trainer.callback_metrics
    _finalize(trainer)
    stuck = preempt.left is not None and preempt.left == (resume.step if resume else 0)
    folder.stall(stuck and not stalled and not signals.interrupted())
    if preempt.left is None:
        with average.shown(recipe) if average else contextlib.nullcontext():
            return _finish(trainer, recipe, folder, {name: float(value) for name, value in metrics.items()})
    return _leave(trainer, preempt.left, stuck and stalled)


def _epochs(config: RecipeConfig, data: ShardData) -> str:
    if not data.train_images:
        return "a stream"
    return f"{config.trainer.max_steps * config.data.global_batch / data.train_images:.3g} epochs"


def _rhythm(config: RecipeConfig, division: Division) -> dict[str, Any]:
    """The Trainer's keyword arguments for how long, how often and how exactly; it counts batches, we count steps."""
    t = config.trainer
    return {
        "max_steps": t.max_steps,
        "max_epochs": -1,
        "accumulate_grad_batches": division.accumulated,
        "gradient_clip_val": t.clip or None,
        "check_val_every_n_epoch": None,
        "val_check_interval": min(t.val_every or t.max_steps, t.max_steps) * division.accumulated,
        "limit_val_batches": 1.0 if config.data.val is not None else 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": t.log_every,
        "sync_batchnorm": t.sync_batchnorm,
        "deterministic": t.deterministic,
        "use_distributed_sampler": False,  # the loader splits over ranks itself, and is exact at a resume
        "enable_checkpointing": False,  # KeepLast does it
        "enable_progress_bar": False,  # Progress does it
        "enable_model_summary": False,
    }


def _callbacks(
    config: RecipeConfig, folder: RunDir, average: Average | None, keep: KeepLast, preempt: Preempt
) -> list[L.Callback]:
    """In their order: the counters before who reads them, what is written before who says that the step is done."""
    log, speed = config.log, Throughput(config.trainer.log_every)
    scaled = config.place.precision == "16-mixed"
    health = Health(folder, skips=config.trainer.nan_skips, every=config.trainer.log_every, scaled=scaled)
    callbacks: list[L.Callback] = [speed, Recount(), health]
    if config.trainer.keep_best:
        callbacks.append(KeepBest(folder, config.trainer.keep_best))
    if average:
        callbacks.append(average)
    if log.samples:
        callbacks.append(Samples(folder.path))
    if config.data.val is not None and log.gallery_every and log.gallery_images:
        shown = average.shown if average else contextlib.nullcontext
        callbacks.append(Gallery(folder.path, log.gallery_every, log.gallery_images, shown))
    every = config.trainer.log_every
    return [*callbacks, keep, preempt, Progress(speed, every), Straggler(every)]


def _loggers(config: RecipeConfig, folder: RunDir, resume: Resume | None) -> list[Any]:
    loggers: list[Any] = [CsvLog(folder.metrics, resume.step if resume else 0)]
    if rank_zero_only.rank == 0:
        wandb, sentence = wandb_log(
            folder, mode=config.log.wandb, project=config.log.project, config=settings.flatten(config)
        )
        say(sentence)
        loggers += [wandb] if wandb else []
    return loggers


@rank_zero_only
def _announce(config: RecipeConfig, folder: RunDir, resume: Resume | None, size: str) -> None:
    """Say what happens, and name the settings that changed since the last start."""
    start = f"continuing from {resume.path}" if resume else "from the start"
    say(f"{config.recipe}: {folder.path}, {start}; {size}")
    if resume and folder.config.exists():
        try:
            before, now = settings.flatten(settings.read(folder.config)), settings.flatten(config)
        except (UserError, ValueError) as error:
            warn(f"{folder.config} is damaged ({error}): cannot say what changed since the last start")
            return
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                say(f"  changed since the last start: {key}: {before.get(key)} -> {now.get(key)}")


@rank_zero_only
def _remember(config: RecipeConfig, folder: RunDir) -> None:
    write_text(folder.config, settings.show(config))


def _leave(trainer: L.Trainer, step: int, stuck: bool) -> int:
    """Say that the run stopped on request; the exit code, from the ranks whose code reaches somebody.

    Raises UserError when this was the second start that was stopped before it had made a step.
    """
    trainer.strategy.barrier("frisket.left")
    environment = getattr(trainer.strategy, "cluster_environment", None)  # one device on one node has none
    if not exits_for_all(environment, trainer.global_rank):
        return 0
    if stuck:
        raise UserError(
            f"two starts in a row were asked to stop before they had made a step (at {step}): the time limit is "
            "shorter than start-up and warning (#SBATCH --time, --signal); ask for more time and send it again"
        )
    say(f"stopped on request at step {step}; the same command goes on from there")
    return exit_code()


def _finish(trainer: L.Trainer, recipe: Recipe, folder: RunDir, metrics: dict[str, float]) -> int:
    """Write the model and the summary (rank 0), and say where they are. Returns the exit code, 0."""
    if trainer.is_global_zero:
        step, config = trainer.global_step, recipe.config
        provenance = {"recipe": config.recipe, "run": folder.path.name, "step": step, "seed": config.seed}
        write(recipe.sam, folder.model, provenance)
        folder.finish(step, metrics, config.recipe)
        scores = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith("val/"))
        say(f"finished at step {step}: {folder.result}" + (f"  {scores}" if scores else ""))
    trainer.strategy.barrier("frisket.finished")
    return 0


def _finalize(trainer: L.Trainer) -> None:
    """Close W&B before any requeue: Slurm kills the step soon after."""
    for logger in trainer.loggers:
        if trainer.is_global_zero and isinstance(logger, WandbCurve):
            logger.close()
