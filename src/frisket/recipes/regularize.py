"""What keeps a trained model from fitting its photographs too closely: switches that every recipe has. No recipe.

`regularize.drop_path=0.4 regularize.decoder_dropout=0.1 regularize.ema=0.9999`; all off by default. What is drawn
depends on (seed, step, rank, keys), so a resumed run repeats an uninterrupted one.
"""

from dataclasses import dataclass, field

from torch import nn

from frisket.errors import UserError
from frisket.models.blocks import drop_paths
from frisket.models.mask_decoder import TwoWayBlock
from frisket.models.sam import Sam


@dataclass
class RegularizeConfig:
    """All off."""

    drop_path: float = field(default=0.0, metadata={"least": 0, "most": 0.99})
    """Probability that an image loses a branch of the encoder's last block; 0 for the first, linear between (stochastic
    depth, arXiv 1603.09382; SAM, appendix A: 0.4, ViT-B 0.6)."""
    decoder_dropout: float = field(default=0.0, metadata={"least": 0, "most": 0.99})
    """Of each branch of the mask decoder's transformer (SAM, appendix A: 0.1)."""
    ema: float = field(default=0.0, metadata={"least": 0, "most": 0.9999999})
    """Decay (0.9999, say) of an average of the weights, which validation judges and model.pt then holds; 0: none."""


def regularize(sam: Sam, config: RegularizeConfig) -> None:
    """Set the rates in a Sam whose frozen parts are frozen. Raises UserError where a switch would do nothing."""
    if config.drop_path:
        if not trains(sam.image_encoder):
            raise UserError(f"regularize.drop_path={config.drop_path}: this recipe freezes the encoder, set it to 0")
        if drop_paths(sam.image_encoder, config.drop_path) < 2:
            raise UserError(
                f"regularize.drop_path={config.drop_path}: the encoder of '{sam.name}' has fewer than two residual "
                "blocks with a DropPath (frisket.models.encoder), set it to 0"
            )
    if config.decoder_dropout:
        if not trains(sam.mask_decoder.transformer):
            raise UserError(
                f"regularize.decoder_dropout={config.decoder_dropout}: this recipe freezes the decoder, set it to 0"
            )
        for part in sam.mask_decoder.modules():
            if isinstance(part, TwoWayBlock):
                part.dropout.p = config.decoder_dropout


def trains(part: nn.Module) -> bool:
    """Whether any of its weights is trained."""
    return any(parameter.requires_grad for parameter in part.parameters())
