"""Leave when asked (Slurm's warning, SIGTERM, Ctrl-C): at a step all ranks agree on, with a checkpoint, exit code 75.

    preempt = Preempt(RunFiles("runs/demo"))
    trainer = L.Trainer(callbacks=[…, preempt], plugins=[SLURMEnvironment(auto_requeue=False)])
    trainer.fit(…)
    if preempt.left: close the loggers; exit with exit_code()          # slurm/env.sh requeues on 75

Our choice over Lightning's auto_requeue (see `frisket.engine.signals`). Ranks receive a signal at different moments,
and a collective save from only some of them would hang; so the flag is reduced by MAX at every step's end, and all
ranks save and stop at the same step. The exit code, not `scontrol` in Python, asks for the requeue: that works in
containers too. After Ctrl-C it is 130: whoever pressed it wants no requeue.
"""

from typing import Any

import lightning as L
import torch

from frisket.engine import signals
from frisket.engine.save import StepEnd, keep
from frisket.errors import UserError
from frisket.runfiles import RunFiles

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: "try again later"


def exit_code() -> int:
    """The code of a run that was asked to stop."""
    return signals.EXIT_INTERRUPTED if signals.interrupted() else EXIT_PREEMPTED


class Stopped(Exception):
    """Raised where Lightning has no orderly way to stop early: before the first step, and inside validation."""


class Preempt(StepEnd):
    """Stop the fit at the first step (or validation batch) after any rank was asked to. `left`: the step, or None."""

    def __init__(self, run: RunFiles) -> None:
        super().__init__()
        self.run = run
        self.left: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the handlers back (Lightning has just put its own in front), and leave if any rank was asked already.

        Raises UserError when the ranks have read different checkpoints (one that a single node cannot read).
        """
        signals.install()
        steps = [self._largest(trainer, sign * trainer.global_step) for sign in (1, -1)]
        if steps[0] != -steps[1]:
            raise UserError(f"ranks would go on from steps {-steps[1]:.0f} to {steps[0]:.0f}: a node sees another file")
        if self._agreed(trainer):
            self.left = trainer.global_step  # what it went on from is all there is to keep
            raise Stopped

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save and stop, once this step is complete and anyone was asked. The run's very last step just finishes."""
        if not self.stepped(trainer) or trainer.global_step >= trainer.max_steps or not self._agreed(trainer):
            return
        self.write_row(trainer)
        self._save(trainer)
        trainer.should_stop = True
        trainer.limit_val_batches = 0  # Lightning validates once more on should_stop: there is no time for it

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """The same inside validation, which is then run from its start after the resume."""
        if trainer.sanity_checking or trainer.state.fn == "test" or not self._agreed(trainer):
            return
        if trainer.state.fn == "fit":  # the final validation follows a checkpoint of the last step
            self._save(trainer)
        self.left = trainer.global_step
        raise Stopped

    def _save(self, trainer: L.Trainer) -> None:
        keep(trainer, self.run, self.run.preempt)
        self.left = trainer.global_step

    def _agreed(self, trainer: L.Trainer) -> bool:
        return self._largest(trainer, signals.asked()) > 0

    def _largest(self, trainer: L.Trainer, mine: float) -> float:
        """The largest of all ranks' numbers; every rank must ask."""
        if trainer.world_size == 1:
            return mine
        number = torch.tensor(float(mine), device=trainer.strategy.root_device)
        return float(trainer.strategy.reduce(number, reduce_op="max"))
