"""The written contract of an image encoder: what a Sam, the recipes and the zoo may ask of one, and nothing else.

Write a class with the members of `ImageEncoder` and, in the same file, `ENCODERS = {"name": Entry(config, class, …)}`;
`frisket.models.zoo` reads it when the file lies in this folder or is named under `plugins:`. Every row is put through
tests/models/test_encoder.py. Our choice; the stride and the embedding are those of SAM's decoder (arXiv 2304.02643).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

STRIDE = 16
"""Input pixels to a cell of the embedding, along each side: the prompt encoder and the decoder count in these cells."""


@dataclass(frozen=True)
class Tap:
    """A place inside an encoder whose features can be asked for: (B, S / stride, S / stride, width)."""

    width: int
    """Channels."""
    stride: int = STRIDE
    """Input pixels to a cell, along each side."""


class ImageEncoder(Protocol):
    """An nn.Module made from its config alone: normalized images (B, 3, H, W), H and W any multiples of 16, to an
    embedding (B, channels, H/16, W/16), images of a batch independent of each other.

    A module anywhere inside it may carry `no_decay`, names of its own parameters or children that weight decay must
    leave alone although they have two axes or more: position tables, token embeddings, attention biases.

    Optional: `config.decoder_hidden`, hidden channels of the MLPs in the mask decoder that goes with it (SAM's: 2048).

    Optional: `layer_names`, tuples of beginnings of parameter names, one tuple a layer from the input on; what is in
    none of them (the neck) lies behind the last. `optim.layer_decay` needs it.

    Optional: a `DropPath` (frisket.models.blocks) called `drop_path` in each residual block, through which all its
    branches pass: `regularize.drop_path`, `place.recompute` and `place.compile` act on such blocks.

    Optional: `settings_of(shapes)`, a static method that tells from {key: shape} of its state dict what fields of its
    config made them, so that a file of unknown origin can be told what it is. It may raise LookupError.
    """

    config: Any
    """A frozen dataclass of plain values (numbers, words, tuples) with `image_size`, the native side in pixels. Its
    __post_init__ raises UserError for values that do not fit."""
    channels: int
    """Of the embedding. The published decoders want 256."""
    taps: tuple[Tap, ...]
    """Shallow to deep; () for an encoder that shows nothing but its embedding."""
    may_differ: tuple[str, ...]
    """Fields of `config` that change no weight and no result, and may differ when a run is continued elsewhere."""

    def __call__(self, x: Tensor) -> Tensor:
        """The embedding."""
        ...

    def forward_features(self, x: Tensor, taps: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The embedding, and the features (B, h, w, width) at `taps` (numbers from 0), in the order asked.

        Raises ValueError for a tap that there is not.
        """
        ...

    def macs(self, side: int) -> int:
        """Multiply-accumulates of one (side, side) image, as the paper writes the architecture: convolutions, linear
        layers and attention products; norms, softmax and biases do not count."""
        ...


MEMBERS = (*ImageEncoder.__annotations__, "forward_features", "macs")


@dataclass(frozen=True)
class Entry:
    """One row of the zoo."""

    config: Any
    """The encoder's config as published."""
    encoder: Callable[[Any], nn.Module]
    """The class that takes it."""
    paper: str
    """Where it comes from, its parameters and its GMAC."""
    checkpoint: str | None = None
    """The public file of a whole Sam with this encoder; None where nothing was published."""
    source: str = "nobody published it: train one, copy its model.pt there under that name, or load it by its path"
    """How to get `checkpoint`."""


def check_taps(taps: Sequence[int], encoder: ImageEncoder) -> None:
    """Raise ValueError for a number that is no tap of `encoder`."""
    unknown = [tap for tap in taps if not 0 <= tap < len(encoder.taps)]
    if unknown:
        raise ValueError(f"taps {unknown} do not exist: this encoder has {len(encoder.taps)}, numbered from 0")


def layer_rates(encoder: ImageEncoder, decay: float) -> dict[str, float]:
    """{beginning of a parameter's name: its share of the learning rate}: `decay` for the last of the encoder's layers,
    its square for the one before (BEiT's rule). Raises LookupError for an encoder that names no layers."""
    layers: tuple[tuple[str, ...], ...] = getattr(encoder, "layer_names", ())
    if not layers:
        raise LookupError("no layers")
    return {start: decay ** (len(layers) - i) for i, starts in enumerate(layers) for start in starts}


def undecayed(module: nn.Module) -> set[str]:
    """Names of the parameters in `module` that `no_decay` of it or of a part of it excludes from weight decay."""
    return {
        f"{where}.{parameter}".lstrip(".")
        for where, part in module.named_modules()
        for name in getattr(part, "no_decay", ())
        for parameter, _ in part.named_parameters()
        if parameter == name or parameter.startswith(f"{name}.")
    }
