"""The incompatible ways papers prompt and score a mask, as one table. A result always names the one it used.

Use     PROTOCOLS["edgesam"].first; chosen(["sam", "evit"]); chosen(["all"]); PROTOCOLS["sam"].sentence
Source  the papers' texts and the evaluation scripts that their authors released (EdgeSAM evaluation/eval_mIoU.py,
        EfficientViT-SAM eval_efficientvit_sam_model.py, segment-anything-fast experiments/); what they leave open is
        said in the sentence. `sam` is our default: SAM's rules, on every mask with a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from frisket.errors import UserError, nearest


@dataclass(frozen=True)
class Protocol:
    """One way to prompt and score.

    first, later: rules of frisket.eval.clicks ("" for no later click); output and later_output: "multimask" (highest
    predicted IoU of three), "oracle" (highest true IoU of three) or "single" (the first token); feedback: whether the
    last logits go back in as a mask prompt with each later click; box: whether it has a box prompt; crowd: whether
    crowd regions count; by_annotation: sizes by the annotated area, else by the mask's pixels; shared_borders: an
    object at a size limit counts on both sides; round_trip: EdgeSAM's ground truth; epsilon: added to the union.
    """

    name: str
    first: str
    later: str
    sentence: str
    output: str = "multimask"
    later_output: str = "multimask"
    feedback: bool = False
    box: bool = True
    crowd: bool = False
    by_annotation: bool = False
    shared_borders: bool = False
    round_trip: bool = False
    epsilon: float = 0.0


_ORIGINAL = "IoU at the original size, mean over masks"
PROTOCOLS = {
    p.name: p
    for p in (
        Protocol(
            "sam",
            first="innermost",
            later="error",
            later_output="single",
            feedback=True,
            sentence="GT box or innermost pixel, multimask, highest predicted IoU; later clicks on the deepest wrong "
            f"pixel with the last logits fed back, single mask; non-crowd; {_ORIGINAL}",
        ),
        Protocol(
            "sam_oracle",
            first="innermost",
            later="error",
            output="oracle",
            later_output="oracle",
            feedback=True,
            sentence="as sam, but of three masks the one with the highest true IoU, at every click: an upper bound",
        ),
        Protocol(
            "edgesam",
            first="innermost_1024",
            later="error_uniform",
            output="single",
            later_output="single",
            round_trip=True,
            sentence="GT box or innermost pixel at longest side 1024 (exact distance), single mask; later clicks on "
            "random wrong cells of the low-resolution mask, nothing fed back; non-crowd; IoU at the original size with "
            "the GT taken to 1024 by nearest and back by bilinear sampling (> 0), so that 1 cannot be reached",
        ),
        Protocol(
            "efficientsam",
            first="uniform",
            later="uniform",
            sentence="GT box or random pixels of the mask (all foreground, seeded), multimask, highest predicted IoU, "
            f"nothing fed back; non-crowd (the paper does not say); {_ORIGINAL}",
        ),
        Protocol(
            "evit",
            first="innermost",
            later="clicker",
            crowd=True,
            by_annotation=True,
            shared_borders=True,
            epsilon=1e-7,
            sentence="annotated box or RITM clicker, multimask, highest predicted IoU, nothing fed back; area >= 1, "
            "crowd included; sizes by annotated area, borders in both; union + 1e-7; IoU at the original size",
        ),
        Protocol(
            "fast",
            first="mass",
            later="",
            box=False,
            crowd=True,
            sentence="one click at the centre of mass or, outside the mask, where the shortest run in four directions "
            f"is long; multimask, highest predicted IoU; crowd included; {_ORIGINAL}",
        ),
    )
}


def chosen(names: Sequence[str]) -> list[Protocol]:
    """The protocols of these names, each once; "all" is every one. Raises UserError for none."""
    names = list(PROTOCOLS) if "all" in names else list(dict.fromkeys(names))
    if not names:
        raise UserError(f"protocol is empty: name one or more, {nearest('', PROTOCOLS)}, or all")
    return [PROTOCOLS[name] for name in names]
