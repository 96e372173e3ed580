"""Box and click mIoU on any annotated set, at the photograph's own resolution, under one or more named protocols.

Run     frisket eval configs/eval_miou.yaml checkpoint=runs/finetune_decoder data=SHARDS
        … data=instances_val2017.json images=val2017 protocol=[all] clicks=[1,2,3,5,9]
        … data=/data/BSDS500 split=val
Numbers box/miou, box/miou_s, …, click1/miou, click3/miou, …, and curve/miou, a list over 1 to the last of `clicks`;
        under several protocols each begins with the protocol's name, edgesam/box/miou.
Source  frisket.eval.protocols says what each protocol does and where it is from. `box_fill` is the baseline that
        answers the prompt box itself. One encoder pass serves all protocols; equal questions are asked once.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from frisket.data.annotated import Photograph
from frisket.errors import UserError
from frisket.eval.clicks import anywhere, first_clicks, grid_error_clicks, next_clicks, round_trip
from frisket.eval.metrics import MaskIoU
from frisket.eval.protocols import Protocol, chosen
from frisket.eval.task import PROMPTS, PhotographConfig, PhotographTask, Row
from frisket.geometry import Frame, mask_areas, mask_iou, pad_square, upscale_logits
from frisket.models.sam import Sam
from frisket.picture import Panel, row
from frisket.sample import FOREGROUND, Prompts, picked

PIXELS = 1 << 27
"""Bool pixels of masks held at once per answer, and a quarter of it of float logits: bounds memory, not results."""
SHOWN = 12  # masks in a picture


@dataclass
class Truth:
    """One photograph to judge. photo: its objects, each with a pixel and kept by some protocol; image: uint8
    (1, 3, S, S); pixels: mask areas (M,); clicks: {rule: first clicks (M, K, 2)}; kept: {protocol: bool (M,)}."""

    photo: Photograph
    image: Tensor
    frame: Frame
    pixels: np.ndarray
    clicks: dict[str, np.ndarray]
    kept: dict[str, np.ndarray]

    @property
    def key(self) -> str:
        """The photograph's name."""
        return self.photo.key


@dataclass
class Config(PhotographConfig):
    """What is asked and compared."""

    renamed: ClassVar[dict[str, str]] = {"batch": "place.prompts_at_once"}
    protocol: list[Literal["sam", "sam_oracle", "edgesam", "efficientsam", "evit", "fast", "all"]] = field(
        default_factory=lambda: ["sam"]
    )
    """How papers prompt and score, see frisket.eval.protocols."""
    clicks: list[int] = field(default_factory=lambda: [1], metadata={"least": 1})
    """After how many to report."""
    seed: int = field(default=0, metadata={"least": 0, "most": 2**32 - 1})
    """Of random clicks."""


class Task(PhotographTask):
    """Items are `Truth`s; a row holds IoU (M,) by protocol and prompt, and areas (M,) by protocol."""

    protocol = "prompted_miou"
    baseline = "box fill (baseline)"

    def __init__(self, config: Config, image_size: int) -> None:
        super().__init__(config, image_size)
        self.protocols = chosen(config.protocol)
        if not config.clicks:
            raise UserError(f"clicks={config.clicks} cannot be judged: list numbers from 1 up, e.g. clicks=[1,3,5]")
        self.clicks = sorted(set(config.clicks))
        self.seed, self.batch = config.seed, config.place.prompts_at_once or PROMPTS

    @property
    def sentence(self) -> str:
        """Every protocol's sentence, and the set."""
        return "; ".join(f"{p.name}: {p.sentence}" for p in self.protocols) + f"; {self.photographs.name}"

    @property
    def arguments(self) -> dict[str, Any]:
        """Names of the protocols, and clicks."""
        return {"protocols": [p.name for p in self.protocols], "clicks": self.clicks, "seed": self.seed}

    def load(self, index: int) -> Truth | None:
        """One photograph with its objects and their first clicks; None when no protocol keeps any."""
        photo = self.photographs[index]
        pixels = np.array([coco_mask.area(rle) for rle in photo.rles], np.int64)
        kept = {p.name: (pixels > 0) & (photo.areas >= 1) & (p.crowd | ~photo.crowd) for p in self.protocols}
        used = np.flatnonzero(np.any(list(kept.values()), axis=0)) if len(photo) else []
        if not len(used):
            return None
        resized, frame = photo.fitted(self.image_size)
        image, photo = pad_square(resized, frame.side)[None], photo.select(used)
        photo.encoded = None  # decoded; the rest travels from a worker
        clicks = self._first_clicks(photo)
        return Truth(photo, image, frame, pixels[used], clicks, {name: keep[used] for name, keep in kept.items()})

    def _first_clicks(self, photo: Photograph) -> dict[str, np.ndarray]:
        """{rule: (M, K, 2)}, the clicks that need no answer: one each, or all of a random rule. Mask by mask."""
        points: dict[str, list[Any]] = {p.first: [] for p in self.protocols}
        for number in range(len(photo)):
            mask = photo.masks([number])
            for rule, clicks in points.items():
                if rule == "uniform":
                    rng = self._rng(photo.key, number)
                    clicks.append([anywhere(mask[0], rng) for _ in range(self.clicks[-1])])
                else:
                    clicks.append(first_clicks(rule, mask))
        return {rule: np.asarray(clicks, np.float64).reshape(len(photo), -1, 2) for rule, clicks in points.items()}

    def _rng(self, key: str, number: int, *more: int) -> np.random.Generator:
        """Chance of one object, the same on every rank, in every order and beside every other protocol."""
        return np.random.default_rng([self.seed, zlib.crc32(key.encode()), number, *more])

    def answer(self, sam: Sam | None, item: Truth) -> Row:
        """IoU of every object by every protocol and prompt."""
        device = torch.device("cpu") if sam is None else sam.device
        answer = None if sam is None else Answers(sam, item)
        largest = np.argsort(-item.pixels, kind="stable")[:SHOWN]
        shown: dict[int, Tensor] = {}
        parts: dict[str, dict[str, list[Tensor]]] = {p.name: {} for p in self.protocols}
        step = max(1, min(self.batch, PIXELS // max(item.frame.original[0] * item.frame.original[1], 1)))
        for start in range(0, len(item.photo), step):
            numbers = np.arange(start, min(start + step, len(item.photo)))
            chunk = Chunk(numbers, torch.from_numpy(item.photo.masks(numbers)).to(device))
            for p in self.protocols:
                ious = self._boxes_filled(p, item, chunk) if answer is None else self._asked(p, answer, item, chunk)
                for kind, iou in ious.items():
                    parts[p.name].setdefault(kind, []).append(iou)
            first = next((chunk.known[k][0] for k in chunk.known if k[0] in ("box", "click")), None)
            if first is not None:
                shown |= {int(n): first[n - start].cpu() for n in largest if start <= n < start + len(numbers)}
        return self._row(item, parts, largest, shown)

    def _row(self, item: Truth, parts: dict, largest: np.ndarray, shown: dict[int, Tensor]) -> Row:
        several = len(self.protocols) > 1
        iou: dict[str, dict[str, Tensor]] = {}
        means: dict[str, float] = {}
        for p in self.protocols:
            keep = torch.from_numpy(item.kept[p.name])
            iou[p.name] = {kind: torch.cat(ious)[keep] for kind, ious in parts[p.name].items()}
            for kind, values in iou[p.name].items():
                if bool(values.isfinite().any()):
                    means[f"{p.name}/{kind}/miou" if several else f"{kind}/miou"] = float(values.nanmean())
        areas = {
            p.name: torch.from_numpy((item.photo.areas if p.by_annotation else item.pixels)[item.kept[p.name]])
            for p in self.protocols
        }
        score = {"score": next(iter(means.values()))} if means else {}
        masks = [shown[int(n)] for n in largest if int(n) in shown]
        return {
            "key": item.key, "masks": len(item.photo), **means, **score, "iou": iou, "areas": areas,
            "_shown": torch.stack(masks) if masks else None, "_largest": largest,
        }  # fmt: skip

    def _asked(self, p: Protocol, answer: "Answers", item: Truth, chunk: "Chunk") -> dict[str, Tensor]:
        """{"box": IoU (n,), "click1": …} of a chunk's objects under one protocol."""
        ious: dict[str, Tensor] = {}
        if p.box:
            masks, _ = chunk.once(("box", p.output), lambda: answer.box(chunk, p.output))
            ious["box"] = score(p, masks, chunk)
        rounds = self.clicks[-1] if p.later else 1
        points = item.clicks[p.first][chunk.numbers]
        prompts = answer.clicks(points[:, :1])
        masks, low = chunk.once(("click", p.first, p.output), lambda: answer.ask(prompts, p.output, chunk))
        ious["click1"] = score(p, masks, chunk)
        clicked = points[:, :1]
        for k in range(2, rounds + 1):
            if p.later == "uniform":
                new, labels = points[:, k - 1], np.full(len(points), FOREGROUND)
            elif p.later == "error_uniform":
                rngs = [self._rng(item.key, int(n), k) for n in chunk.numbers]
                new, labels = grid_error_clicks(low, chunk.truth, item.frame, rngs)
            else:
                new, labels = next_clicks(p.later, masks.cpu().numpy(), chunk.truth.cpu().numpy(), clicked)
                clicked = np.concatenate([clicked, new[:, None]], axis=1)
            prompts = answer.click(prompts, new, labels, in_input=p.later == "error_uniform")
            asked = prompts.refine(low) if p.feedback else prompts
            masks, low = answer.ask(asked, p.later_output, chunk)
            ious[f"click{k}"] = score(p, masks, chunk)
        return ious

    def _boxes_filled(self, p: Protocol, item: Truth, chunk: "Chunk") -> dict[str, Tensor]:
        """The baseline: the prompt box itself as the mask. It has no answer to a click."""
        if not p.box:
            return {}
        boxes = torch.from_numpy(item.photo.boxes[chunk.numbers]).float()
        masks, _ = chunk.once(("box", "fill"), lambda: (box_fill(boxes, item.frame.original), boxes))
        return {"box": score(p, masks, chunk)}

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """{"box/miou": …, "box/miou_s": …, "click1/miou": …, "curve/miou": […], "masks": n, "images": n}; several
        protocols begin with their names."""
        numbers: dict[str, Any] = {}
        for p in self.protocols:
            prefix = f"{p.name}/" if len(self.protocols) > 1 else ""
            means: dict[str, dict[str, float]] = {}
            for kind in rows[0]["iou"][p.name]:
                metric = MaskIoU(shared_borders=p.shared_borders, gathered=True)
                for part in rows:
                    iou, areas = part["iou"][p.name][kind], part["areas"][p.name]
                    real = iou.isfinite()  # EdgeSAM drops an object that neither side has a pixel of
                    metric.update(iou[real], areas[real])
                means[kind] = metric.compute()
            kinds = ["box", *(f"click{k}" for k in self.clicks)]
            for kind in (kind for kind in kinds if kind in means):
                numbers |= {f"{prefix}{kind}/{name}": value for name, value in means[kind].items() if name != "n"}
            curve = [means[f"click{k}"] for k in range(1, self.clicks[-1] + 1) if f"click{k}" in means]
            if len(curve) > 1:
                names = ("miou", "miou_s", "miou_m", "miou_l")
                numbers |= {f"{prefix}curve/{name}": [mean[name] for mean in curve] for name in names}
            numbers[f"{prefix}masks"] = float(sum(len(part["areas"][p.name]) for part in rows))
        return numbers | {"images": float(len(rows))}

    def table(self, numbers: dict[str, dict[str, Any]]) -> str:
        """Models as rows; 1-box and 1-point mIoU in percent, all sizes and S / M / L, then later clicks."""
        width = max(len(label) for label in numbers)
        later = [k for k in self.clicks if k > 1]
        several = len(self.protocols) > 1
        lines: list[str] = []
        for p in self.protocols:
            prefix = f"{p.name}/" if several else ""
            tail = "".join(f"{f'{k} points':>10}" for k in later) if p.later else ""
            lines.append(
                f"{p.name if several else '':{width}}   1-box mIoU (S / M / L)          1-point mIoU (S / M / L){tail}"
            )
            for label, values in numbers.items():
                if not any(f"{prefix}{kind}/miou" in values for kind in ("box", "click1")):
                    continue  # the baseline, where there is no box
                cells = [_cell(values, f"{prefix}{kind}") for kind in ("box", "click1")]
                more = [_percent(values.get(f"{prefix}click{k}/miou")) for k in later if p.later]
                lines.append(f"{label:{width}}   {'   '.join(cells)}{''.join(f'{text:>10}' for text in more)}".rstrip())
        first = next(iter(numbers.values()))
        masks = ", ".join(f"{int(first[f'{p.name}/masks'])} ({p.name})" for p in self.protocols) if several else (
            f"{int(first['masks'])}"
        )  # fmt: skip
        said = [f"{p.name}: {p.sentence}" for p in self.protocols]
        return "\n".join([*lines, f"{int(first['images'])} photographs, {masks} masks; {self.photographs.name}", *said])

    def picture(self, item: Truth, answers: dict[str, Row]) -> list[Panel]:
        """The 12 largest masks by each model, and the truth."""
        image = item.image[0, :, : item.frame.size[0], : item.frame.size[1]]
        shown = {
            label: answered["_shown"]
            for label, answered in answers.items()
            if label != self.baseline and answered["_shown"] is not None
        }
        largest = next(iter(answers.values()))["_largest"]
        return row(image, item.key, shown, torch.from_numpy(item.photo.masks(largest)))


@dataclass
class Chunk:
    """Some objects of a photograph: their numbers (n,), true masks (n, H, W) on the device, and what was asked of them
    already, {question: (masks (n, H, W), logits (n, G, G))}."""

    numbers: np.ndarray
    truth: Tensor
    known: dict[tuple[str, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    _round_trip: Tensor | None = None

    def once(self, question: tuple[str, ...], ask: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The answer to a question, asked the first time only."""
        if question not in self.known:
            self.known[question] = ask()
        return self.known[question]

    def truth_of(self, p: Protocol) -> Tensor:
        """What a protocol compares with."""
        if p.round_trip and self._round_trip is None:
            self._round_trip = round_trip(self.truth)
        return self._round_trip if p.round_trip and self._round_trip is not None else self.truth


class Answers:
    """One model's answers about one photograph, embedded once."""

    def __init__(self, sam: Sam, item: Truth) -> None:
        self.sam, self.frame, self.item = sam, item.frame, item
        sizes = torch.tensor([item.frame.size], device=sam.device)
        self.embedding = sam.encode(item.image.to(sam.device), sizes)
        self.boxes = item.frame.boxes_to_input(torch.from_numpy(item.photo.boxes).float())

    def box(self, chunk: Chunk, output: str) -> tuple[Tensor, Tensor]:
        """Masks and logits of a chunk's boxes."""
        return self.ask(Prompts(boxes=self.boxes[chunk.numbers].to(self.sam.device)), output, chunk)

    def clicks(self, points: np.ndarray) -> Prompts:
        """Foreground clicks (n, 1, 2) in original pixels as prompts."""
        xy = self.frame.to_input(torch.from_numpy(points).float()).to(self.sam.device)
        return Prompts(points=xy, labels=torch.full(xy.shape[:2], FOREGROUND, device=self.sam.device))

    def click(self, prompts: Prompts, points: np.ndarray, labels: np.ndarray, *, in_input: bool) -> Prompts:
        """The prompts and one more click each: points (n, 2) in original (or input) pixels, labels (n,)."""
        xy = torch.from_numpy(points).float()
        xy = xy if in_input else self.frame.to_input(xy)
        return prompts.click(xy.to(self.sam.device), torch.from_numpy(labels).long().to(self.sam.device))

    def ask(self, prompts: Prompts, output: str, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Masks bool (n, H, W) at original size and logits (n, G, G) of the output that `output` names."""
        index = torch.zeros(len(prompts), dtype=torch.long, device=self.sam.device)
        prediction = self.sam.decode(self.embedding, index, prompts, multimask=output != "single")
        if output == "oracle":
            return self._oracle(prediction.logits, chunk.truth)
        low = prediction.best()[0]
        return torch.cat([self._enlarge(part) for part in low.split(self._step)]), low

    @property
    def _step(self) -> int:
        """Masks enlarged at once: float logits at the input's and the original size."""
        return max(1, PIXELS // 4 // max(self.frame.side**2, self.frame.original[0] * self.frame.original[1]))

    def _enlarge(self, low: Tensor) -> Tensor:
        return upscale_logits(low, self.frame) > 0

    def _oracle(self, logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Of all outputs (n, C, G, G) the one with the highest IoU against the truth (n, H, W), at original size."""
        masks, lows = [], []
        for part, true in zip(logits.split(self._step), truth.split(self._step), strict=True):
            outputs = torch.stack([self._enlarge(part[:, c]) for c in range(part.shape[1])], dim=1)
            iou = torch.stack([mask_iou(outputs[:, c], true) for c in range(part.shape[1])], dim=1)
            masks.append(picked(outputs, iou.argmax(dim=1)))
            lows.append(picked(part, iou.argmax(dim=1)))
        return torch.cat(masks), torch.cat(lows)


def score(p: Protocol, masks: Tensor, chunk: Chunk) -> Tensor:
    """IoU (n,) on the CPU as a protocol counts it."""
    truth = chunk.truth_of(p)
    if p.epsilon:
        return (mask_areas(masks & truth).double() / (mask_areas(masks | truth) + p.epsilon)).cpu()
    iou = mask_iou(masks, truth)
    if p.round_trip:
        iou = torch.where(mask_areas(masks | truth) > 0, iou, torch.nan)
    return iou.cpu()


def box_fill(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) as masks (N, H, W): the pixels whose centres lie inside."""
    ys, xs = torch.arange(size[0])[None, :, None] + 0.5, torch.arange(size[1])[None, None, :] + 0.5
    x0, y0, x1, y1 = (edge[:, None, None] for edge in boxes.unbind(1))
    return (xs > x0) & (xs < x1) & (ys > y0) & (ys < y1)


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def _cell(values: dict[str, Any], kind: str) -> str:
    """75.1  ( 60.2 /  80.0 /  85.3)."""
    text: Sequence[str] = [f"{_percent(values.get(f'{kind}/{n}')):>5}" for n in ("miou", "miou_s", "miou_m", "miou_l")]
    return f"{text[0]}  ({text[1]} / {text[2]} / {text[3]})"
