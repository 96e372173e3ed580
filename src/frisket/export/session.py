"""An exported Sam, asked in onnxruntime: what `frisket.export.graph` wrote, answering like a `Sam`.

Use     model = Session("runs/export_onnx")
        embedding = model.encode(image); logits, iou = model.decode(embedding, points, labels)
Source  our choice. docs/tinysam.md holds the same in numpy, for a place without this package.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, from_numpy

from frisket.errors import UserError
from frisket.export.packages import needed


def opened(path: Path | str, threads: int = 1, optimized: Path | str | None = None) -> Any:
    """An onnxruntime session of a file, on the CPU; `optimized`: where to write the graph that it really runs."""
    needed("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds have no common parent
        raise UserError(
            f"{path} cannot be opened by onnxruntime ({str(error).splitlines()[0]}): export it again"
        ) from error


class Session:
    """encoder.onnx and decoder.onnx of a folder. Raises UserError where onnxruntime cannot open them."""

    def __init__(self, folder: Path | str, threads: int = 1) -> None:
        self.encoder, self.decoder = (opened(Path(folder) / f"{part}.onnx", threads) for part in ("encoder", "decoder"))

    def encode(self, image: Tensor) -> Tensor:
        """Embedding (1, 256, S/16, S/16) of a normalized image (1, 3, S, S)."""
        return from_numpy(self.encoder.run(None, {"image": image.numpy()})[0])

    def decode(self, embedding: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, 4, S/4, S/4) and predicted IoU (N, 4) of labelled points (N, K, 2), (N, K) in input pixels."""
        given = {"embedding": embedding, "points": points.float(), "labels": labels.long()}
        logits, iou = self.decoder.run(None, {name: value.contiguous().numpy() for name, value in given.items()})
        return from_numpy(logits), from_numpy(iou)
