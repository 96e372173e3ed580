"""What a strategy of segment everything is, and how `everything: {strategy: grid, …}` becomes one.

    class Config(Filters): …           its settings beside the shared ones; `strategy` is its file's name
    class Strategy(BaseStrategy): …    `ask` for masks, and say in words what was asked

A strategy is a file beside this one, or a plug-in of the same form (frisket.plugins). Our choice.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from frisket import config as settings
from frisket.everything.candidates import Candidates, Filters
from frisket.plugins import Room
from frisket.predict.predictor import Predictor

STRATEGIES = Room("frisket.everything", "strategy", "Strategy")
"""Every strategy, as in `everything: {strategy: grid}`."""
DEFAULT = "grid"


class BaseStrategy(ABC):
    """One way of asking for the masks of a picture, bound to its settings."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def ask(self, predictor: Predictor, layer: int) -> Iterator[Candidates]:
        """What passes `sift`, batch by batch and at least one, of the predictor's picture; it is of crop layer `layer`,
        0 for a whole photograph."""

    @abstractmethod
    def words(self) -> str:
        """What is asked, for a protocol's sentence: "32 x 32 points"."""


def chosen(block: dict[str, Any]) -> Filters:
    """The settings of an `everything:` block, checked: the `Config` of its strategy.

    Raises UserError for an unknown strategy or key (with the nearest right one) and for values out of bounds.
    """
    name = block.get("strategy", DEFAULT)
    return settings.from_dict(STRATEGIES.find(name).Config, {**block, "strategy": name}, "everything")


def bound(config: Filters) -> BaseStrategy:
    """The strategy that `config` belongs to. Raises UserError when there is none."""
    return STRATEGIES.find(config.strategy).Strategy(config)


def describe(config: Filters) -> dict[str, Any]:
    """{"name", "arguments": every setting that changes which masks are kept, "sentence"}, for results."""
    arguments = {name: value for name, value in asdict(config).items() if name not in ("strategy", "points_per_batch")}
    limits = {"predicted IoU >": config.pred_iou_thresh, "stability >=": config.stability_score_thresh}
    used = [f"{name} {limit:g}" for name, limit in limits.items() if limit > 0] or ["no filters"]
    crops = [f"{config.crop_n_layers} layers of crops"] if config.crop_n_layers else []
    parts = [config.strategy, bound(config).words(), *used, f"box NMS {config.box_nms_thresh:g}", *crops]
    return {"name": config.strategy, "arguments": arguments, "sentence": ", ".join(parts)}
