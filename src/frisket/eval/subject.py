"""What is timed: photographs made ready, one model's parts as calls, the clocks.

Use     subject = Subject(sam, [photo(pixels, 1024, sam.device, seed=0)], precision="bf16-true")
        subject.check(0.99); subject.time("encoder", warmup=50, repeats=200); subject.sweep([1, 2, 4], calls=100)
Source  our choice; `frisket.eval.latency` says what each part holds and how it is measured.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frisket.data.annotated import open_annotated
from frisket.eval.clock import switched, timer
from frisket.eval.cost import reduced
from frisket.everything.candidates import Filters
from frisket.everything.generator import everything
from frisket.geometry import Frame, mask_iou, pad_square, resize_image, upscale_logits
from frisket.models.sam import Sam
from frisket.predict.predictor import PICTURES, Predictor, read_image
from frisket.sample import Prompts

NOISE = (1500, 2250)  # (h, w) of made photographs: SA-1B's usual size
PLATEAU = 1.03  # a larger batch must bring this much more, twice, or the sweep ends


@dataclass
class Photo:
    """One input: the photograph as people hold it, and as the model takes it.

    pixels: uint8 (H, W, 3); image: uint8 (1, 3, S, S) and sizes (1, 2) on the device; box (1, 4), point (1, 1, 2) and
    points (64, 1, 2) in input pixels, there too.
    """

    pixels: np.ndarray
    frame: Frame
    image: Tensor
    sizes: Tensor
    box: Tensor
    point: Tensor
    points: Tensor


class Subject:
    """One model made ready: its fast form, the eager fp32 one to agree with, and a call for each part."""

    def __init__(
        self,
        sam: Sam,
        photos: Sequence[Photo],
        *,
        precision: str = "32-true",
        compiled: str = "",
        tf32: bool = False,
        filters: Filters | None = None,
    ) -> None:
        self.plain, self.photos, self.filters = sam, photos, filters
        self.kept: list[int] = []
        self.changed = precision != "32-true" or bool(compiled) or tf32
        self.sam = reduced(sam, precision)
        if compiled:
            self.sam = sharing(self.sam)
            self.sam.image_encoder = torch.compile(self.sam.image_encoder, mode=compiled)  # type: ignore[assignment]
        self.agrees = True
        self.predictor = Predictor(self.sam, image_size=photos[0].frame.side)
        self.embeddings = [self.sam.encode(photo.image, photo.sizes).clone() for photo in photos]
        self.ones = torch.ones(64, 1, dtype=torch.long, device=sam.device)
        self.index = torch.zeros(64, dtype=torch.long, device=sam.device)
        self.low = self.decode(0, Prompts(boxes=photos[0].box), False).logits[:, 0]

    def decode(self, number: int, prompts: Prompts, multimask: bool) -> Any:
        """The decoder's answer about photograph `number`."""
        return self.sam.decode(self.embeddings[number], self.index[: len(prompts)], prompts, multimask)

    def call(self, part: str) -> Callable[[int], Any]:
        """What one timed call of `part` does with input `number`."""
        photos, sam = self.photos, self.sam
        calls: dict[str, Callable[[int], Any]] = {
            "encoder": lambda i: sam.encode(photos[i].image, photos[i].sizes),
            "box": lambda i: self.decode(i, Prompts(boxes=photos[i].box), False),
            "point": lambda i: self.decode(i, Prompts(photos[i].point, self.ones[:1]), True),
            "points64": lambda i: self.decode(i, Prompts(photos[i].points, self.ones), True),
            "post": lambda i: upscale_logits(self.low, photos[i].frame) > 0,
            "end_to_end": self.end_to_end,
            "everything": self.everything,
        }
        return calls[part]

    def end_to_end(self, number: int) -> Tensor:
        """Photograph in memory to mask in memory."""
        self.predictor.set_image(self.photos[number].pixels)
        box = self.predictor.frame.boxes_to_original(self.photos[number].box.cpu())
        return self.predictor.predict(boxes=box, multimask=False).masks.cpu()

    def everything(self, number: int) -> None:
        """All masks of a photograph in memory, by SAM's generator."""
        self.predictor.set_image(self.photos[number].pixels)
        self.kept.append(len(everything(self.predictor, self.filters)))

    def check(self, least: float) -> dict[str, Any]:
        """Mean IoU of the fast form's masks with eager fp32's, every output of 17 prompts; sets `agrees`.

        Compared on the decoder's grid: what follows is the same for both. fp32 eager is compared with itself, which
        leaves the test for finite values.
        """
        ious, finite = [], True
        for photo in self.photos:
            prompts = [Prompts(boxes=photo.box), Prompts(photo.points[::4], self.ones[:16])]
            for prompt in prompts:
                fast = self._answer(self.sam, photo, prompt)
                with switched(tf32=False):
                    exact = self._answer(self.plain, photo, prompt) if self.changed else fast
                finite &= bool(fast.isfinite().all())
                ious.append(mask_iou((fast > 0).flatten(0, 1), (exact > 0).flatten(0, 1)).cpu())
        mean = float(torch.cat(ious).mean())
        self.agrees = finite and mean >= least
        return {"miou": mean, "finite": float(finite), "ok": float(self.agrees)}

    def _answer(self, sam: Sam, photo: Photo, prompts: Prompts) -> Tensor:
        embedding = sam.encode(photo.image, photo.sizes)
        return sam.decode(embedding, self.index[: len(prompts)], prompts, multimask=True).logits

    def time(self, part: str, warmup: int, repeats: int) -> dict[str, Any]:
        """`repeats` calls of one part, timed one by one, inputs in rotation. ms."""
        call, clock, number = self.call(part), timer(self.plain.device), len(self.photos)
        try:
            for i in range(warmup):
                call(i % number)
            taken = [1e3 * clock(lambda i=i: call(i % number)) for i in range(repeats)]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return {"error": "out of memory"}
        told = {"ms": float(np.median(taken)), "n": len(taken), "samples": taken}
        return told | ({"masks": float(np.mean(self.kept[-repeats:]))} if part == "everything" else {})

    def sweep(self, batches: Sequence[int], calls: int) -> dict[str, Any]:
        """Images a second through the encoder for each batch, until memory or a plateau."""
        clock = timer(self.plain.device)
        rates: list[float] = []
        stalled, stopped = 0, "all batches ran"
        for batch in batches:
            picks = [self.photos[i % len(self.photos)] for i in range(batch)]
            try:
                images = torch.cat([photo.image for photo in picks])
                sizes = torch.cat([photo.sizes for photo in picks])
                call = partial(self.sam.encode, images, sizes)
                clock(call, min(calls, 3))
                rates.append(batch * calls / clock(call, calls))
            except torch.OutOfMemoryError:
                stopped = f"out of memory at batch {batch}"
                torch.cuda.empty_cache()
                break
            best = max(rates[:-1], default=0.0)
            stalled = 0 if rates[-1] > PLATEAU * best else stalled + 1
            if stalled == 2:
                stopped = f"plateau at batch {batch}"
                break
        ran = [float(batch) for batch in batches[: len(rates)]]
        if not rates:
            return {"stopped": stopped}
        best = int(np.argmax(rates))
        return {
            "best_images_per_second": rates[best], "best_batch": ran[best], "images_per_second": rates, "batch": ran,
            "stopped": stopped,
        }  # fmt: skip


# ---------------------------------------------------------------- inputs


def photographs(data: str, number: int, seed: int, *, images: str = "", split: str = "val") -> list[np.ndarray]:
    """`number` photographs, uint8 (H, W, 3), spread over `data` (fewer when it holds fewer); noise when it is empty.

    data: one picture, a folder of pictures, or any annotated set (shards, COCO or LVIS JSON with `images`, a BSDS500
    folder with `split`). Raises UserError.
    """
    if not data:
        random = np.random.default_rng(seed)
        return [random.integers(0, 256, (*NOISE, 3), dtype=np.uint8) for _ in range(number)]
    path = Path(data)
    files = [path] if path.suffix.lower() in PICTURES else []
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES)
    if files:
        return [read_image(files[i]) for i in spread(len(files), number)]
    opened = open_annotated(data, images or None, split)
    return [opened[i].image for i in spread(len(opened), number)]


def spread(total: int, number: int) -> list[int]:
    """At most `number` indices, evenly over 0 … total - 1."""
    return sorted(set(np.linspace(0, total - 1, min(number, total)).round().astype(int).tolist()))


def photo(pixels: np.ndarray, side: int, device: torch.device, seed: int) -> Photo:
    """An input made ready for side S: its box is about the middle of the picture, its points a jittered grid."""
    frame = Frame.fit((pixels.shape[0], pixels.shape[1]), side)
    image = pad_square(resize_image(torch.from_numpy(pixels).permute(2, 0, 1), frame.size), side)[None]
    random = np.random.default_rng(seed)
    reach = torch.tensor([frame.size[1], frame.size[0]], dtype=torch.float32)
    shift = torch.from_numpy(random.uniform(-0.1, 0.1, 2).astype(np.float32))
    corners = torch.tensor([[0.25, 0.25], [0.75, 0.75]]) + shift
    steps = (np.arange(8) + 0.5) / 8
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(64, 1, 2) + random.uniform(-0.05, 0.05, (64, 1, 2))
    points = (torch.from_numpy(grid.astype(np.float32)) * reach).to(device)
    return Photo(
        pixels=pixels,
        frame=frame,
        image=image.to(device),
        sizes=torch.tensor([frame.size], device=device),
        box=(corners * reach).reshape(1, 4).to(device),
        point=points[27:28],
        points=points,
    )


def sharing(sam: Sam) -> Sam:
    """A second Sam of the same parts, of which one can be replaced without touching the first."""
    made = copy.copy(sam)
    made._modules = dict(sam._modules)
    return made
