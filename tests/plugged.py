"""A plug-in for tests: a small pyramid, whose stages differ in width and grid, as somebody else would write it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from frisket.models.encoder import Entry, Tap, check_taps


@dataclass(frozen=True)
class PyramidConfig:
    """Two stages."""

    image_size: int = 1024
    width: int = 8


class Pyramid(nn.Module):
    """Convolutions: 8 px cells of `width`, then 16 px cells of twice that."""

    channels, may_differ = 256, ()

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.taps = (Tap(width, 8), Tap(2 * width, 16))
        self.stages = nn.ModuleList((nn.Conv2d(3, width, 8, 8), nn.Conv2d(width, 2 * width, 2, 2)))
        self.neck = nn.Conv2d(2 * width, self.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x, ())[0]

    def forward_features(self, x: Tensor, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        check_taps(taps, self)
        features = []
        for stage in self.stages:
            x = stage(x).relu()
            features.append(x.movedim(1, -1))
        return self.neck(x), [features[tap] for tap in taps]

    def macs(self, side: int) -> int:
        width, cells = self.config.width, (side // 16) ** 2
        return cells * (4 * 192 * width + 8 * width * width + 2 * width * self.channels)


ENCODERS = {"pyramid": Entry(PyramidConfig(), Pyramid, "for tests")}
