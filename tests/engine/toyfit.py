"""A linear model, a stateful sized loader of 4 batches, and a fit that uses the engine as the command line does.

fit(folder, Ask(step=5))      # SIGUSR1 to ourselves at step 5
fit(folder)                   # goes on
killed_after_rename(lambda: fit(folder), 3)     # in a process that kill -9 ends right after its third rename
ranks(lambda rank: fit(folder, devices=2)[0])   # in two processes, as torchrun starts them; their exit codes
"""

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from frisket.callbacks import Samples
from frisket.checkpoint import newest
from frisket.engine import signals
from frisket.engine.preempt import Preempt, Stopped
from frisket.engine.rundir import CsvLog, RunDir
from frisket.engine.save import AtomicIO, KeepLast
from frisket.engine.strategy import place, together
from frisket.place import Place


class Numbers(NamedTuple):
    """A batch: values (1, 2), and a key as `Batch` has."""

    values: torch.Tensor
    keys: list[str]


class Loader:
    """Batches of one number each, epoch after epoch; `consumed` is the whole state."""

    def __init__(self, length: int = 4) -> None:
        self.length, self.consumed = length, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Any:
        while True:
            self.consumed += 1
            yield Numbers(torch.tensor([[float(self.consumed % 7), 1.0]]), [str(self.consumed)])
            if self.consumed % self.length == 0:
                return

    def state_dict(self) -> dict[str, int]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.consumed = state["consumed"]


class Module(L.LightningModule):
    """Least squares with Adam, so that the optimizer's state matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Numbers, index: int) -> torch.Tensor:
        loss = (self.layer(batch.values) - 3).pow(2).mean()
        self.log_dict({"train/loss": loss, "train/seen": batch.values[0, 0]}, on_step=True)
        return loss

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val/loss", self.layer(batch).mean() * (index + 1), batch_size=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["frisket"] = {"name": "sam_vit_t", "changes": {}}  # whose it is, as a recipe says

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"params": [parameter]} for parameter in self.parameters()]
        return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)


class Ask(L.Callback):
    """Send ourselves `number` at a training step, or (`validating`) at the first validation batch of that step."""

    def __init__(self, step: int, number: int = signal.SIGUSR1, validating: bool = False) -> None:
        self.step, self.number, self.validating = step, number, validating

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.validating and trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.validating and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class Kill(L.Callback):
    """Raise out of the fit, as a crash would, right after step `step` (`validating`: inside its validation)."""

    def __init__(self, step: int, validating: bool = False) -> None:
        self.step, self.validating = step, validating

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.validating and trainer.global_step == self.step:
            raise RuntimeError("killed")

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.validating and trainer.global_step == self.step:
            raise RuntimeError("killed")


def in_a_child(work: Callable[[], object]) -> int:
    """The exit code of a process that does `work` and ends with 0 (negative: the signal that ended it)."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after_rename(work: Callable[[], object], number: int) -> bool:
    """Do `work` in a process of its own, killed -9 right after its `number`-th rename. False: it ended before that."""

    def counted() -> None:
        rename, done = os.replace, 0

        def replace(*paths: Any) -> None:
            nonlocal done
            rename(*paths)
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = replace
        work()

    code = in_a_child(counted)
    assert code in (0, -signal.SIGKILL), "the work itself failed"
    return code != 0


def ranks(work: Callable[[int], int], seconds: float = 200) -> list[int]:
    """Do work(rank) in two processes that have torchrun's environment; their exit codes (negative: the signal)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            os.environ |= {"TORCHELASTIC_RUN_ID": "toy", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.environ |= {"GROUP_RANK": "0", "GLOO_SOCKET_IFNAME": "lo"}
            rank_zero_only.rank = rank  # read from the environment when Lightning is imported
            code = work(rank)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end, codes = time.monotonic() + seconds, {}
    while len(codes) < 2:
        for child in children:
            if child not in codes and (done := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(done[1])
        if time.monotonic() > end:
            for child in set(children) - codes.keys():
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[child] for child in children]


def fit(
    folder: Path,
    *callbacks: L.Callback,
    steps: int = 10,
    val_every: int = 3,
    every: int = 2,
    accumulate: int = 1,
    devices: int = 1,
    strategy: str = "auto",
    precision: str = "32-true",
    clip: float | None = None,
) -> tuple[int | None, list[float]]:
    """Start or go on with the run in `folder`. Returns (step it was asked to stop at or None, the weights)."""
    run = RunDir(folder)
    run.open()
    resume = newest(run.path)
    preempt, module = Preempt(run), Module()
    where = place(Place(accelerator="cpu", devices=str(devices), strategy=strategy, precision=precision))  # type: ignore
    trainer = L.Trainer(
        **where | {"plugins": [*where["plugins"], AtomicIO()]},
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        val_check_interval=val_every * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=CsvLog(run.metrics, resume.step if resume else 0),
        callbacks=[Samples(folder), *callbacks, KeepLast(run, every), preempt],
        default_root_dir=folder,
    )
    val = torch.utils.data.DataLoader(torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]))
    with signals.held():
        try:
            weights_only = True if resume else None
            with together():
                trainer.fit(module, Loader(), val, ckpt_path=resume and resume.path, weights_only=weights_only)
        except Stopped:
            pass  # inside validation: preempt.left tells
        finally:
            run.close()
    return preempt.left, [float(v) for p in module.parameters() for v in p.detach().flatten()]
