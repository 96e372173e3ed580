"""A checkpoint as files that run without PyTorch: encoder.onnx, decoder.onnx and export.json, all or none of them.

    code = export_run(ExportRun(checkpoint="runs/quant_tiny", data="data/sa1b/val"))

Before they are kept, onnxruntime answers for them: its embeddings must be those of the same operations in torch, and
of a quantized model the masks must be its float model's own. Below `gate` nothing is written but a sentence that names
the layers to keep in float. What the graphs are: frisket.export.graph. Source: our choice.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from frisket import checkpoint
from frisket.engine.quantize import WORST, agree, with_masks
from frisket.errors import UserError
from frisket.export.graph import OPSET, runnable, write_decoder, write_encoder
from frisket.export.session import Session
from frisket.files import atomic, writable, write_json
from frisket.losses import logits_iou
from frisket.models.sam import PIXEL_MEAN, PIXEL_STD, Sam
from frisket.place import Place
from frisket.plugins import Extensible
from frisket.quant.layers import SWAPS, fold
from frisket.quant.search import asked, questions
from frisket.sample import Batch, Prediction, valid_cells

ABOUT = "export.json"
SAME = 0.999  # cosine of onnxruntime's embedding with torch's of the same operations


@dataclass
class ExportRun(Extensible):
    """One model, where it goes, and the photographs that it is checked on."""

    checkpoint: str = ""
    """The model: a run folder, model.pt, zoo name, or what `frisket quant` made."""
    masters: str = ""
    """What a quantized one was made of, and is compared with; empty: the one that it names."""
    trust: bool = False
    """Run what a DeepSpeed folder holds besides weights; else such a folder is refused."""
    data: str = ""
    """Photographs with masks: prepared shards, a COCO or LVIS .json, a BSDS500 folder; a float model needs none."""
    images: str = ""
    """The folder of a .json's photographs."""
    split: str = "val"
    """BSDS500's."""
    masks: int = field(default=1000, metadata={"least": 1})
    """Least masks that are compared."""
    prompts: int = field(default=16, metadata={"least": 1})
    """Of one photograph, at most; half boxes, half clicks."""
    gate: float = field(default=0.98, metadata={"least": 0, "most": 1})
    """Least mean IoU of onnxruntime's masks with the float model's; 0 writes whatever comes out."""
    side: int | None = field(default=None, metadata={"least": 16})
    """Pixels of the input, which the files fix; null: the model's own."""
    seed: int = field(default=0, metadata={"least": 0})
    """Of photographs and prompts."""
    out: str = "runs/export_onnx"
    """The folder of the files."""
    place: Place = field(default_factory=lambda: Place(accelerator="cpu", threads=1))
    """Threads, of torch and of onnxruntime; the CPU always."""


def export_run(config: ExportRun) -> int:
    """Do all of it. Returns 0; raises UserError."""
    if not config.checkpoint:
        raise UserError("no model is named: give checkpoint=RUN, the model to export")
    out, threads = Path(config.out), config.place.threads or 1
    torch.set_num_threads(threads)
    ready(out)
    sam = checkpoint.load(config.checkpoint, trust=config.trust).requires_grad_(False)
    side = config.side or sam.image_size
    if side % 16:
        raise UserError(f"side={side} is not a multiple of 16: give another")
    quantized, digest = sam.form == "quantized", checkpoint.weights_digest(sam)
    if quantized and not config.data:
        raise UserError("a quantized model is compared with its float one: give data=…, photographs with masks")
    exact = float_model(config, sam) if quantized else sam
    given = checkpoint.load(config.checkpoint, trust=config.trust).requires_grad_(False) if quantized else sam
    batches = photographs(config, side) if config.data else []
    with atomic(out) as folder:
        folder.mkdir()
        if quantized:
            write_encoder(exact, folder / "float.onnx", side)
            runnable(sam)
        write_encoder(sam, folder / "encoder.onnx", side)
        write_decoder(sam, folder / "decoder.onnx", side)
        about = {"model": sam.name, "form": sam.form, "weights": digest, "side": side, "opset": OPSET,
                 "pixel_mean": PIXEL_MEAN, "pixel_std": PIXEL_STD}  # fmt: skip
        models = {"cosine": sam, "cosine_quantized": given, "cosine_float": exact}
        about |= compared(Session(folder, threads), models, batches, config.seed)
        if quantized and about["agreement"] < config.gate:
            assert sam.quantization is not None
            kept = sam.quantization["quant"]["skip"]
            skip = ",".join(f"'{name}'" for name in (*kept, *costly(given, exact, batches[:2], config.seed)))
            raise UserError(
                f"in onnxruntime its masks agree with the float model's to {about['agreement']:.3f} only "
                f"({about['masks']} masks; gate={config.gate:g}) and nothing is written: quantize again with what "
                f'costs most in float, "quant.skip=[{skip}]", or with more bits'
            )
        for part in ("encoder", "decoder"):
            file = folder / f"{part}.onnx"
            content = file.read_bytes()
            about[part] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if quantized:
            about["encoder"]["float_bytes"] = (folder / "float.onnx").stat().st_size
            (folder / "float.onnx").unlink()
        write_json(folder / ABOUT, {**about, "settings": asdict(config)})
    told(out, about)
    return 0


def ready(out: Path) -> None:
    """Raise UserError for a folder that cannot be made, or holds what is none of ours and would be lost."""
    writable(out, f"out={out}")
    if out.exists() and any(out.iterdir()) and not (out / ABOUT).is_file():
        raise UserError(f"out={out} holds other things, which would be lost: give another folder")


def float_model(config: ExportRun, sam: Sam) -> Sam:
    """What the quantized model was made of. Raises UserError where it is not there, or is another one."""
    made = (sam.quantization or {})["provenance"]
    name = config.masters or str(made.get("checkpoint", ""))
    try:
        exact = checkpoint.load(name, trust=config.trust).requires_grad_(False)
    except UserError as error:
        raise UserError(f"the float model of {config.checkpoint}: {error}; masters=… names it") from error
    if checkpoint.weights_digest(exact) != made.get("weights"):
        raise UserError(f"masters={name} is not the model that {config.checkpoint} was made of: give that one")
    return exact


def photographs(config: ExportRun, side: int) -> list[Batch]:
    """Those that the files are checked on, one to a batch. Raises UserError where they hold too few masks."""
    batches: list[Batch] = []
    masks = 0
    for batch in with_masks(config.data, config.images, config.split, side, config.prompts, config.seed):
        batches.append(batch)
        masks += len(batch.masks)
        if masks >= config.masks:
            return batches
    fewer = f", or masks={masks}" if masks else ""
    raise UserError(f"data={config.data} holds {masks} masks, the check asks for {config.masks}: give more{fewer}")


@torch.no_grad()
def compared(session: Session, models: dict[str, Sam], batches: Sequence[Batch], seed: int) -> dict[str, Any]:
    """{name: mean cosine, over cells, of onnxruntime's embeddings with those of a model}: "cosine" of what was written,
    "cosine_quantized" of it before it was made runnable, "cosine_float"; "agreement": mean IoU of the masks with the
    float model's; "masks": how many. Without data of one picture of noise, and no masks.

    Raises UserError where onnxruntime does not compute what was written.
    """
    sam, exact = models["cosine"], models["cosine_float"]
    values: list[Tensor] = []
    near: dict[str, list[Tensor]] = {name: [] for name in models}

    def embedded(images: Tensor, sizes: Tensor) -> Tensor:
        image = sam.preprocess(images, sizes)
        embedding = session.encode(image)
        for name, model in models.items():
            near[name].append(F.cosine_similarity(embedding, model.image_encoder(image), dim=1).flatten())
        return embedding

    if not batches:
        side = session.encoder.get_inputs()[0].shape[-1]
        noise = torch.randint(256, (1, 3, side, side), generator=Generator().manual_seed(seed))
        embedded(noise.to(torch.uint8), torch.tensor([[side, side]]))
    for number, batch in enumerate(batches):
        generators = (Generator().manual_seed(seed + number) for _ in range(2))
        prompts = questions(batch, next(generators))
        assert prompts.points is not None and prompts.labels is not None
        logits, iou = session.decode(embedded(batch.images, batch.sizes), prompts.points, prompts.labels)
        mine, _ = Prediction(logits[:, 1:], iou[:, 1:]).best()
        theirs, _ = asked(exact, batch, next(generators)).best()
        values.append(logits_iou(mine, theirs > 0, valid=valid_cells(batch)))
    masks, agreement = sum(map(len, values)), float(torch.cat(values).mean()) if values else None
    cosines = {name: float(torch.cat(kept).mean()) for name, kept in near.items()}
    if not cosines["cosine"] >= SAME:
        raise UserError(
            f"onnxruntime does not compute here what torch does (cosine {cosines['cosine']:.4f} of the embeddings) and "
            "nothing is written: is this an x86 CPU without VNNI? Export on another"
        )
    return {**cosines, "agreement": agreement, "masks": masks}


def costly(sam: Sam, exact: Sam, batches: Sequence[Batch], seed: int) -> list[str]:
    """The layers of a quantized model that cost most masks, each quantized alone, judged on these photographs."""
    fold(exact)
    sam.load_state_dict({**sam.state_dict(), **exact.state_dict()})
    layers: dict[str, Any] = {name: part for name, part in sam.named_modules() if type(part) in SWAPS.values()}
    for layer in layers.values():
        layer.active = False
    table = []
    for name, layer in layers.items():
        table.append((agree(sam, {name: layer}, batches, seed)[0], name))
        layer.active = False
    return [name for _, name in sorted(table)[:WORST]]


def told(out: Path, about: dict[str, Any]) -> None:
    """The result in a few lines."""
    encoder, decoder = about["encoder"], about["decoder"]
    share = f", {encoder['bytes'] / encoder['float_bytes']:.0%} of its float" if "float_bytes" in encoder else ""
    print(f"{out}: {about['model']}, {about['form']}, {about['side']} px")
    print(f"encoder {encoder['bytes'] / 2**20:.1f} MiB{share}; decoder {decoder['bytes'] / 2**20:.1f} MiB")
    near = (("what was written", ""), ("the quantized model", "_quantized"), ("the float one", "_float"))
    cosines = ", ".join(f"{about['cosine' + key]:.5f} with {who}" for who, key in near)
    print(f"onnxruntime's embeddings, cosine: {cosines}")
    if about["masks"]:
        print(f"mean IoU {about['agreement']:.4f} with the float model over {about['masks']} masks")
