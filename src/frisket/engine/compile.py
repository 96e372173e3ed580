"""`place.compile`: torch.compile of the encoders' residual blocks, the trained one's and the teachers'.

Block by block (their code is compiled once for blocks of a shape), in place: names in checkpoints stay as they are, and
whoever asks an encoder for its inner features has them compiled, too. The decoder, whose number of prompts changes from
batch to batch, stays as it is. Our choice.
"""

import os
import shutil
from typing import Any

import torch
import torch._inductor.config

from frisket.errors import UserError
from frisket.models.blocks import residual_blocks
from frisket.models.recompute import INNER

SHAPES = 64
"""Different blocks times modes (training or not, gradients or not) before torch would give up, without a word."""


def compiled(recipe: Any, *, on_cpu: bool) -> int:
    """Compile the blocks of a recipe's encoders at their first use; how many there are. Raises UserError where a CPU's
    code could not be compiled, or no encoder has blocks (frisket.models.blocks.DropPath)."""
    compiler = os.environ.get("CXX", "g++")
    if on_cpu and not (shutil.which(compiler) or shutil.which("clang++")):
        raise UserError(f"place.compile=true needs a C++ compiler and there is no {compiler} here: set it to false")
    torch._inductor.config.compile_threads = 1  # its pool of workers hangs where signals are held (engine.signals)
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    sams = [recipe.sam, *getattr(recipe, "teachers", [])]
    blocks = [block for sam in sams for block in residual_blocks(sam.image_encoder)]
    if not blocks:
        raise UserError("place.compile=true: none of the encoders has residual blocks to compile, set it to false")
    for block in blocks:
        name = INNER if INNER in vars(block) else "forward"
        vars(block)[name] = torch.compile(getattr(block, name))
    return len(blocks)
