"""Strategy `autoppn`, Lite-SAM's: the model itself proposes where to click (frisket.models.auto_ppn).

Use     everything(predictor, Config())      # on the command line: everything.strategy=autoppn
Source  Lite-SAM (arXiv 2407.08965): 256 points. Three ways to ask about them; which one was timed is not told, so `ask`
        is a setting: clicks with three masks each, or one mask of the proposed box, with or without its click.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch

from frisket.errors import UserError
from frisket.everything.candidates import Candidates, Filters, sift
from frisket.everything.strategy import BaseStrategy
from frisket.models.auto_ppn import pick
from frisket.predict.predictor import Predictor
from frisket.sample import FOREGROUND, Prompts


@dataclass
class Config(Filters):
    """Lite-SAM's proposals."""

    strategy: str = "autoppn"
    """How masks are asked for: a file of frisket.everything, or a plug-in."""
    points: int = field(default=256, metadata={"least": 1, "most": 65536})
    """Proposals of a picture, at most."""
    fill: bool = True
    """Fewer peaks than points: the likeliest other cells are asked, too, so that as many are asked always (ours; the
    paper's number is fixed). false: peaks alone, which are few on small inputs."""
    ask: Literal["point", "box", "point+box"] = "point"
    """With what: point: its click, three masks; box, point+box: one mask."""


class Strategy(BaseStrategy):
    """Every proposal."""

    config: Config

    def ask(self, predictor: Predictor, layer: int) -> Iterator[Candidates]:
        """Batches of proposals, surest first."""
        sam, config, frame = predictor.sam, self.config, predictor.frame
        if sam.auto_ppn is None:
            raise UserError(
                f"'{sam.name}' has no AutoPPN to propose points: train one on it (frisket train train_autoppn "
                "init_from=RUN), or set everything.strategy=grid"
            )
        sizes, proposals = torch.tensor([frame.size], device=sam.device), sam.auto_ppn(predictor.embedding)
        points, boxes, scores, _ = (part[0] for part in pick(proposals, sizes, config.points, fill=config.fill))
        count = max(1, int((scores > 0).sum()))  # those after are padding or, without `fill`, no peaks
        index = torch.arange(count)
        if config.ask == "point":  # a cell may be a peak of two groups, whose boxes differ: one click is enough
            cells, which = points[:count].cpu().unique(dim=0, return_inverse=True)
            first = index.new_full((len(cells),), count).scatter_reduce(0, which, index, "amin")
            index = first.sort().values
        for chosen in index.split(config.points_per_batch):
            xy = points[chosen]
            clicked, labels = xy[:, None], torch.full((len(chosen), 1), FOREGROUND, device=sam.device)
            prompts = Prompts() if config.ask == "box" else Prompts(clicked, labels)
            if config.ask != "point":
                prompts.boxes = boxes[chosen]
            yield sift(frame.to_original(xy), predictor.ask(prompts, multimask=config.ask == "point"), frame, config)

    def words(self) -> str:
        """How many, and asked how."""
        kind = "points" if self.config.fill else "peaks"
        return f"{kind} of AutoPPN, {self.config.points} at most, asked by {self.config.ask}"
