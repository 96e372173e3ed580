"""What `frisket quant` writes, in a second: quantized("model.pt", tmp_path / "w4a4", shards, weight_bits=4)."""

from pathlib import Path

from frisket import checkpoint
from frisket.data.annotated import open_annotated, sample
from frisket.data.module import collate
from frisket.quant import packed
from frisket.quant.layers import QuantConfig, fold, quantize
from frisket.quant.search import SearchConfig, capture, kinds_of, search


def quantized(source: Path, folder: Path, shards: Path, **bits: int) -> Path:
    """`folder` with the packed file of a float model of 64 px, its scales searched in a hurry."""
    sam = checkpoint.load(source).requires_grad_(False)
    provenance = {"checkpoint": str(source), "weights": checkpoint.weights_digest(sam), "agreement": 0.5}
    batch = collate([sample(open_annotated(str(shards / "train"))[0], 64)])
    fold(sam)
    config = SearchConfig(candidates=4, rounds=1, rows=64)
    layers = quantize(sam, QuantConfig(**bits), kinds_of(sam, batch))  # type: ignore[arg-type]
    captured = capture(sam, layers, [batch], config)
    for name, layer in layers.items():
        search(layer, captured[name], config)
    folder.mkdir(exist_ok=True)
    packed.write(sam, folder / "model.safetensors", provenance=provenance)
    return folder
