"""Train a recipe: its module and config in, a run folder out. Starting again continues.

    code = fit(RECIPES.find("train_sam"), config)

The run folder is out/name (see frisket.engine.rundir). The newest checkpoint there decides where to go on; `init_from`
counts only when there is none. Exit code 75: stopped on request, with a checkpoint (slurm/env.sh then requeues); 130:
the same after Ctrl-C. A second Ctrl-C ends the program at once.
"""

import contextlib
import math
from pathlib import Path
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
from frisket.engine.preempt import Preempt, Stopped, exit_code
from frisket.engine.rundir import CsvLog, RunDir, wandb_log
from frisket.engine.save import AtomicIO, KeepLast
from frisket.engine.strategy import ACCELERATORS, exits_for_all, place, quiet
from frisket.errors import UserError
from frisket.recipes.base import Recipe, RecipeConfig, check_model, specs

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def fit(recipe: ModuleType, config: RecipeConfig) -> int:
    """Train `recipe` (a module of frisket.recipes) until trainer.max_steps, or until asked to stop.

    Returns the exit code; raises UserError.
    """
    with signals.held():
        check(config)
        folder = RunDir(Path(config.out) / (config.name or config.recipe))
        folder.open()
        try:
            return _train(recipe.Module, config, folder)
        finally:
            folder.close()


def check(config: RecipeConfig) -> None:
    """Refuse values that would fail later and less clearly. Raises UserError."""
    t, log, data, optim = config.trainer, config.log, config.data, config.optim
    for key, value, least in (
        ("trainer.max_steps", t.max_steps, 1),
        ("trainer.accumulate", t.accumulate, 1),
        ("trainer.checkpoint_every", t.checkpoint_every, 1),
        ("trainer.log_every", t.log_every, 1),
        ("trainer.num_nodes", t.num_nodes, 1),
        ("trainer.threads", 1 if t.threads is None else t.threads, 1),
        ("trainer.val_every", t.val_every, 0),
        ("trainer.clip", t.clip, 0),
        ("data.workers", data.workers, 0),
        ("optim.lr", optim.lr, 0),
        ("optim.weight_decay", optim.weight_decay, 0),
        ("optim.warmup_steps", optim.warmup_steps, 0),
    ):
        if not (value >= least and math.isfinite(value)):  # so written, it also catches nan
            raise UserError(f"{key}={value} must be {least} or more")
    if not all(0 <= beta < 1 for beta in optim.betas):
        raise UserError(f"optim.betas={list(optim.betas)} must both be at least 0 and less than 1")
    if data.image_size < 16 or data.image_size % 16:
        raise UserError(f"data.image_size={data.image_size} must be a multiple of 16, the patch side")
    if t.accelerator not in ACCELERATORS:
        raise UserError(f"trainer.accelerator={t.accelerator} must be one of {', '.join(ACCELERATORS)}")
    if t.precision not in PRECISIONS:  # a `-true` half precision would train without fp32 master weights
        raise UserError(f"trainer.precision={t.precision} must be one of {', '.join(PRECISIONS)}")
    log.wandb = {"False": "off", "True": "auto"}.get(log.wandb, log.wandb)  # YAML reads a bare off as false
    if log.wandb not in ("auto", "online", "offline", "off"):
        raise UserError(f"log.wandb={log.wandb} must be one of auto, online, offline, off")
    for key, spec in specs(config).items():
        check_model(key, spec, data.image_size)


def _train(module: type[Recipe], config: RecipeConfig, folder: RunDir) -> int:
    quiet()
    t = config.trainer
    done = folder.finished()
    if done and done["step"] >= t.max_steps:
        say(
            f"{folder.path} is finished (step {done['step']}): {folder.model}. "
            "Raise trainer.max_steps to go on, or set name=… for another run."
        )
        return 0
    if t.threads:
        torch.set_num_threads(t.threads)
    L.seed_everything(config.seed, workers=True, verbose=False)
    resume = checkpoint.newest(folder.path)  # the one time that its facts are read
    _announce(config, folder, resume)
    recipe = module(config, resume)
    recipe.check_resume(folder.path)
    _remember(config, folder)
    data = ShardData(config.data, recipe.stamp())
    preempt = Preempt(folder)
    trainer = _trainer(config, folder, resume, preempt)
    if signals.asked():  # nothing is lost yet; a later start finds the same state
        say("asked to stop before the first step")
        return exit_code()
    with contextlib.suppress(Stopped):  # inside validation; preempt.left says where
        trainer.fit(
            recipe,
            datamodule=data,
            ckpt_path=resume.path if resume else None,
            weights_only=True if resume and resume.ranks is None else None,
        )
    _finalize(trainer)
    if preempt.left is not None:
        trainer.strategy.barrier("frisket.left")
        environment = getattr(trainer.strategy, "cluster_environment", None)  # one device on one node has none
        say(f"stopped on request at step {preempt.left}; the same command goes on from there")
        return exit_code() if exits_for_all(environment, trainer.global_rank) else 0
    _finish(trainer, recipe, folder)
    trainer.strategy.barrier("frisket.finished")
    return 0


def _trainer(config: RecipeConfig, folder: RunDir, resume: Resume | None, preempt: Preempt) -> L.Trainer:
    t, log = config.trainer, config.log
    where = place(
        accelerator=t.accelerator,
        devices=t.devices,
        num_nodes=t.num_nodes,
        strategy=t.strategy,
        precision=t.precision,
        images_per_gpu=config.data.images_per_gpu,
    )
    where["plugins"] = [*where["plugins"], AtomicIO()]
    speed = Throughput(t.log_every)
    callbacks: list[L.Callback] = [speed, KeepLast(folder, t.checkpoint_every)]
    if log.samples:
        callbacks.append(Samples(folder.path))
    validate = config.data.val is not None
    if validate and log.gallery_every and log.gallery_images:
        callbacks.append(Gallery(folder.path, log.gallery_every, log.gallery_images))
    return L.Trainer(
        **where,
        max_steps=t.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=t.accumulate,
        gradient_clip_val=t.clip or None,
        check_val_every_n_epoch=None,
        val_check_interval=min(t.val_every or t.max_steps, t.max_steps) * t.accumulate,
        limit_val_batches=1.0 if validate else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=t.log_every,
        deterministic=t.deterministic,
        use_distributed_sampler=False,  # the loader splits over ranks itself, and is exact at a resume
        enable_checkpointing=False,  # KeepLast does it
        enable_progress_bar=False,  # Progress does it
        enable_model_summary=False,
        default_root_dir=folder.path,
        logger=_loggers(config, folder, resume),
        callbacks=[*callbacks, preempt, Progress(speed, t.log_every)],
    )


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
def _announce(config: RecipeConfig, folder: RunDir, resume: Resume | None) -> None:
    """Say what happens, and name the settings that changed since the last start."""
    say(f"{config.recipe}: {folder.path}, " + (f"continuing from {resume.path}" if resume else "from the start"))
    if resume and folder.config.exists():
        before, now = settings.flatten(settings.read(folder.config)), settings.flatten(config)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                say(f"  changed since the last start: {key}: {before.get(key)} -> {now.get(key)}")


@rank_zero_only
def _remember(config: RecipeConfig, folder: RunDir) -> None:
    settings.save(config, folder.config)


def _finish(trainer: L.Trainer, recipe: Recipe, folder: RunDir) -> None:
    """Write model.pt and the summary (rank 0), and say where they are."""
    if not trainer.is_global_zero:
        return
    # inside DeepSpeed the module may be bf16; its checkpoint folder holds the fp32 weights
    sam = checkpoint.load(folder.last) if folder.last.is_dir() else recipe.sam
    provenance = {
        "recipe": recipe.config.recipe,
        "run": folder.path.name,
        "step": trainer.global_step,
        "seed": recipe.config.seed,
    }
    checkpoint.save(sam, folder.model, provenance=provenance)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    folder.finish(trainer.global_step, metrics)
    scores = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith("val/"))
    say(f"finished at step {trainer.global_step}: {folder.model}" + (f"  {scores}" if scores else ""))


def _finalize(trainer: L.Trainer) -> None:
    """Close W&B before any requeue: Slurm kills the step soon after."""
    for logger in trainer.loggers:
        if trainer.is_global_zero and hasattr(logger, "close"):
            logger.close()
