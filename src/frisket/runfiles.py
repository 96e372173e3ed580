"""The names of the files in a run folder, spelled here and nowhere else: who writes and who reads one agree.

    RunFiles("runs/demo").metrics           # a Path; whether it exists is the caller's question

    runs/<name>/config.yaml     the resolved configuration
                wandb_id        the W&B run id, the same at every resume
                metrics.csv     one row per logged step (`step` = optimizer steps done), appended to at a resume
                samples.jsonl   sample ids per step, where asked for (samples-rankR.jsonl for the other ranks)
                checkpoints/    last.ckpt, previous.ckpt, preempt.ckpt after a preemption, step-N.ckpt if asked for
                gallery/        pictures of masks, one per gallery step
                model.pt        the trained weights; instead model.safetensors where they are quantized
                best.pt         the model that a validation found best, where asked for; best.json says how good
                summary.json    last step and last metrics: present when the run is finished; written last

Our choice. `frisket.engine.rundir` writes them, `frisket.checkpoint` and `frisket.report` read them.
"""

from pathlib import Path


class RunFiles:
    """Where everything of the run folder `path` is or would be; touches no disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.wandb = self.path / "wandb_id"
        self.metrics = self.path / "metrics.csv"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"
        self.preempt = self.checkpoints / "preempt.ckpt"
        self.gallery = self.path / "gallery"
        self.model = self.path / "model.pt"
        self.packed = self.path / "model.safetensors"
        self.best = self.path / "best.pt"
        self.best_value = self.path / "best.json"
        self.summary = self.path / "summary.json"
        self.lock = self.path / ".lock"
        self.refused = self.path / ".refused"
        self.stalls = self.path / ".stalls"

    @property
    def result(self) -> Path:
        """What the run made, or will: model.safetensors if there is one, else model.pt."""
        return self.packed if self.packed.is_file() else self.model

    def samples(self, rank: int) -> Path:
        """The sample ids that `rank` was given."""
        return self.path / ("samples.jsonl" if rank == 0 else f"samples-rank{rank}.jsonl")

    def kept(self, step: int) -> Path:
        """A further name of the checkpoint of `step`, which stays when last.ckpt is replaced."""
        return self.checkpoints / f"step-{step:06d}.ckpt"

    def pictures(self, step: int) -> Path:
        """The gallery's picture at `step`."""
        return self.gallery / f"step-{step:06d}.png"
