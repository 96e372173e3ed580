"""Post-training quantization of a checkpoint, as a run: calibrate, search each layer's scales, check, write.

    code = quantize_run(QuantRun(checkpoint="runs/distill_tiny", data="data/sa1b/val"))

Each layer's scales, and what it alone costs, are written down as they are found (`.judged-0.jsonl` in `out`): the same
command goes on after a kill; asked to stop, it leaves after that layer with code 75 (130 after Ctrl-C). Then the masks
are compared with the float model's own, for each layer alone and for all together; below `gate` nothing is written but
a sentence that names the layers to keep in float. Files: model.safetensors, quant.json, sensitivity.csv. Source:
frisket.quant.search; the gate and the table are our choice.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from frisket import checkpoint
from frisket.data.annotated import open_annotated, sample
from frisket.data.module import collate
from frisket.engine import signals
from frisket.engine.journal import Journal
from frisket.engine.preempt import Stopped, exit_code
from frisket.errors import UserError, warn
from frisket.files import writable, write_csv, write_json
from frisket.losses import logits_iou
from frisket.models.sam import Sam
from frisket.place import Place, device
from frisket.plugins import Extensible
from frisket.quant import packed
from frisket.quant.layers import Layer, QuantConfig, fold, quantize
from frisket.quant.search import SearchConfig, asked, capture, kinds_of, search
from frisket.runfiles import RunFiles
from frisket.sample import Batch, Sample, valid_cells
from frisket.weights.layout import digest as digest_of

WORST = 5  # layers named when the gate stays shut


@dataclass
class QuantRun(Extensible):
    """One model, the photographs its scales are found on, and how good the result must be."""

    checkpoint: str = ""
    """The float model: a run folder, model.pt or zoo name."""
    trust: bool = False
    """Run what a DeepSpeed folder holds besides weights; else such a folder is refused."""
    data: str = ""
    """Photographs with masks: prepared shards, a COCO or LVIS .json, a BSDS500 folder."""
    images: str = ""
    """The folder of a .json's photographs."""
    split: str = "val"
    """BSDS500's."""
    calibration: int = field(default=8, metadata={"least": 1})
    """Photographs that scales are searched on (the paper's number), spread over the data."""
    check: int = field(default=64, metadata={"least": 1})
    """Other photographs that the result is compared with the float model on."""
    gate: float = field(default=0.98, metadata={"least": 0, "most": 1})
    """Least mean IoU of its masks with the float model's; 0 writes whatever comes out."""
    seed: int = field(default=0, metadata={"least": 0})
    """Of prompts, targets and rows."""
    out: str = "runs/quant_tiny"
    """The folder of the result."""
    quant: QuantConfig = field(default_factory=QuantConfig)
    """How many bits, and of what."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How scales are found."""
    place: Place = field(default_factory=Place)
    """The machine: accelerator and threads."""


def quantize_run(config: QuantRun) -> int:
    """Do all of it, or go on. Returns the exit code; raises UserError."""
    with signals.held():
        try:
            return _quantize(config)
        except Stopped:
            print("stopped on request; the same command goes on from there", flush=True)
            return exit_code()


def _quantize(config: QuantRun) -> int:
    if not config.checkpoint:
        raise UserError("no model is named: give checkpoint=RUN, the float model to quantize")
    made = RunFiles(config.out)
    if made.model.exists() or checkpoint.trained(made.path):
        raise UserError(f"out={config.out} holds a training run, which the result would hide: give another folder")
    writable(made.path, f"out={config.out}")
    if config.place.threads:
        torch.set_num_threads(config.place.threads)
    sam = checkpoint.load(config.checkpoint, device(config.place), trust=config.trust).requires_grad_(False)
    if sam.form != "float":
        raise UserError(f"checkpoint={config.checkpoint} is quantized already: give the float model it was made of")
    digest = checkpoint.weights_digest(sam)
    calibration, others = photographs(config, sam)
    if not others:
        warn(f"data={config.data} has no photograph beyond those of calibration: the result is checked on these")
    fold(sam)
    kinds = kinds_of(sam, calibration[0])
    layers = quantize(sam, config.quant, kinds)
    shown = {
        f"{batch.keys} {key}": getattr(batch, key) for batch in calibration for key in ("images", "masks", "boxes")
    }
    bits = {key: value for key, value in asdict(config.quant).items() if key != "skip"}  # a layer is searched alone
    identity = {"weights": digest, "data": digest_of(shown), "seed": config.seed, "quant": bits,
                "search": asdict(config.search), "layers": list(kinds)}  # fmt: skip
    refuse_another(made, config, digest)
    journal = Journal(Path(config.out), identity)
    rows = search_all(sam, layers, calibration, config, journal, list(kinds))
    table = sensitivity(sam, layers, rows, calibration, config.seed, journal, list(kinds))
    for layer in layers.values():
        layer.active = True
    agreement, masks = agree(sam, layers, others or calibration, config.seed)
    skip = ",".join(f"'{name}'" for name in (*config.quant.skip, *(row["layer"] for row in table[:WORST])))
    if agreement < config.gate:
        raise UserError(
            f"its masks agree with the float model's to {agreement:.3f} only ({masks} masks; gate={config.gate:g}) and "
            f'nothing is written: keep what costs most in float, "quant.skip=[{skip}]", or take more bits'
        )
    provenance = {"checkpoint": config.checkpoint, "weights": digest, "agreement": agreement, "masks": masks,
                  "checked_on": "other photographs" if others else "those of calibration"}  # fmt: skip
    packed.write(sam, made.packed, provenance=provenance)
    write_csv(made.path / "sensitivity.csv", table)
    size = {"float_bytes": sum(p.numel() * 4 for p in sam.parameters()), "bytes": made.packed.stat().st_size}
    write_json(made.path / "quant.json", {**provenance, **size, "layers": table, "settings": asdict(config)})
    journal.remove()
    wide = max(len(row["layer"]) for row in table[:WORST])
    print(f"{'costs most':{wide}}  mask IoU, it alone quantized ({made.path / 'sensitivity.csv'} has all)")
    print("\n".join(f"{row['layer']:{wide}}  {row['agreement']:.4f}" for row in table[:WORST]))
    bits = f"W{config.quant.weight_bits}A{config.quant.activation_bits}"
    small, large = (size[name] / 2**20 for name in ("bytes", "float_bytes"))
    print(f"{bits}, {len(layers)} layers: mean IoU {agreement:.4f} with the float model over {masks} masks")
    print(f"{made.packed}: {small:.1f} MiB, float {large:.1f}")
    return 0


def refuse_another(made: RunFiles, config: QuantRun, digest: str) -> None:
    """Raise UserError where `out` holds the result of other settings, or of another model, which would be lost."""
    if not made.packed.exists():
        return
    try:
        old = json.loads((made.path / "quant.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = {}  # of whom the file is, nobody can say
    bits, asked_for = (told.get("quant") for told in (old.get("settings", {}), asdict(config)))
    if (old.get("weights"), bits) != (digest, asked_for):
        what = f"W{bits['weight_bits']}A{bits['activation_bits']} of {old['checkpoint']}" if bits else "another result"
        raise UserError(f"out={config.out} holds {what}, which would be lost: give another folder, or delete that one")


def photographs(config: QuantRun, sam: Sam) -> tuple[list[Batch], list[Batch]]:
    """(those for calibration, others), one to a batch, each with at most `search.prompts` masks. Raises UserError where
    no photograph has a mask."""
    drawn = with_masks(config.data, config.images, config.split, sam.image_size, config.search.prompts, config.seed)
    chosen = [batch.to(sam.device) for batch in islice(drawn, config.calibration + config.check)]
    if not chosen:
        raise UserError(f"data={config.data} holds no photograph with a mask to calibrate on: give other data")
    return chosen[: config.calibration], chosen[config.calibration :]


def with_masks(data: str, images: str, split: str, side: int, prompts: int, seed: int) -> Iterator[Batch]:
    """Photographs that have a mask, in an order drawn at random, one to a batch, with `prompts` masks at most."""
    records = open_annotated(data, images or None, split)
    for number in np.random.default_rng(seed).permutation(len(records)):
        whole = sample(records[int(number)], side)
        if len(whole.masks):
            yield collate([_some(whole, prompts, seed + int(number))])


def _some(whole: Sample, count: int, seed: int) -> Sample:
    """`count` of its objects, drawn at random."""
    kept = torch.randperm(len(whole.masks), generator=Generator().manual_seed(seed))[:count].sort().values
    return Sample(whole.key, whole.image, whole.masks[kept], whole.boxes[kept], whole.areas[kept], whole.frame)


def search_all(
    sam: Sam, layers: dict[str, Layer], batches: Sequence[Batch], config: QuantRun, journal: Journal, every: list[str]
) -> dict[str, dict[str, Any]]:
    """{layer: its error before and after}, its scales set and the layer left float; what the journal knows is taken.
    every: all layers that could be quantized; the journal counts in them, so that it knows others than `layers`."""
    names, known = list(layers), journal.read()
    kept = {every[number]: dict(row["layer"]) for number, row in known.items() if row is not None and "layer" in row}
    rows = {name: row for name, row in kept.items() if name in layers}
    journal.start(known)
    for name, row in rows.items():
        layers[name].load_state_dict({**layers[name].state_dict(), **row["scales"]})
    begun, left = time.monotonic(), [name for name in names if name not in rows]
    for first in range(0, len(left), config.search.together):
        group = left[first : first + config.search.together]
        captured = capture(sam, {name: layers[name] for name in group}, batches, config.search, config.seed)
        for name in group:
            leave_if_asked()
            layer = layers[name]
            report = search(layer, captured[name], config.search)
            layer.active = False
            scales = {key: value for key, value in layer.state_dict().items() if key not in ("weight", "bias")}
            rows[name] = {**report, "scales": scales}
            journal.add(every.index(name), {"layer": rows[name]})
        done = first + len(group)
        _say(f"{len(names) - len(left) + done} of {len(names)} layers", begun, done, len(left))
    return {name: rows[name] for name in names}


def _say(what: str, begun: float, done: int, total: int) -> None:
    minutes = (time.monotonic() - begun) / done * (total - done) / 60
    print(f"{what}, {minutes:.0f} min left", flush=True)


def leave_if_asked() -> None:
    """Raise Stopped once somebody asked."""
    if signals.asked():
        raise Stopped


def sensitivity(
    sam: Sam,
    layers: dict[str, Layer],
    rows: dict[str, dict[str, Any]],
    batches: Sequence[Batch],
    seed: int,
    journal: Journal,
    every: list[str],
) -> list[dict[str, Any]]:
    """For each layer {"layer", "agreement" with the float masks when it alone is quantized, "before", "after"}; what
    costs most first. The journal counts these behind `every`."""
    table, begun, wanted = [], time.monotonic(), answers(sam, layers, batches, seed, active=False)
    known = {number: row["alone"]["agreement"] for number, row in journal.read().items() if row and "alone" in row}
    left = [name for name in layers if len(every) + every.index(name) not in known]
    for done, name in enumerate(left, 1):
        leave_if_asked()
        entry = len(every) + every.index(name)
        known[entry], _ = agree(sam, {name: layers[name]}, batches, seed, wanted)
        layers[name].active = False
        journal.add(entry, {"alone": {"agreement": known[entry]}})
        if done % 8 == 0 or done == len(left):
            _say(f"each layer alone: {len(layers) - len(left) + done} of {len(layers)}", begun, done, len(left))
    for name in layers:
        costs = {k: rows[name][k] for k in ("before", "after")}
        table.append({"layer": name, "agreement": known[len(every) + every.index(name)], **costs})
    return sorted(table, key=lambda row: row["agreement"])


def agree(
    sam: Sam, layers: dict[str, Layer], batches: Sequence[Batch], seed: int, wanted: Sequence[Tensor] | None = None
) -> tuple[float, int]:
    """(mean IoU of the masks with `layers` active and with them float, how many masks): the output believed in most.
    wanted: `answers` of the float layers, where they are known. The layers are left active."""
    wanted = answers(sam, layers, batches, seed, active=False) if wanted is None else wanted
    given = answers(sam, layers, batches, seed, active=True)
    pairs = zip(given, wanted, batches, strict=True)
    every = torch.cat([logits_iou(mine, theirs, valid=valid_cells(batch)).cpu() for mine, theirs, batch in pairs])
    return float(every.mean()), len(every)


@torch.no_grad()
def answers(sam: Sam, layers: dict[str, Layer], batches: Sequence[Batch], seed: int, *, active: bool) -> list[Tensor]:
    """Logits (N, G, G) for each photograph, of the output believed in most: with `layers` active (or left float: as
    bool masks)."""
    for layer in layers.values():
        layer.active = active
    drawn = (Generator().manual_seed(seed + number) for number in range(len(batches)))
    logits = [asked(sam, batch, generator).best()[0] for batch, generator in zip(batches, drawn, strict=True)]
    return logits if active else [each > 0 for each in logits]
