"""Numbers that others have published, each table with its protocol, data and source; no two protocols in one table.

Use     for table in TABLES: table.task, table.rows["SAM ViT-H"]["box/miou"]       # fractions, like ours
Source  the papers and repositories named in each table. Keys are those our own tasks write into eval.json, so that a
        table with the same preset and data stands beside ours. A "-" was not printed. Times are as printed: no two
        sources measured alike, so each has a table of its own.
"""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Table:
    """One printed table. `text`: its rows, "model | value | …"; `preset`: our name of its protocol, see
    `frisket.report.results.known_as` ("": we have none, so that it never joins a table of ours)."""

    task: str
    data: str
    protocol: str
    source: str
    columns: tuple[str, ...]
    text: str
    preset: str = ""
    percent: bool = True

    @cached_property
    def words(self) -> dict[str, dict[str, str]]:
        """{model: {key: as printed}}. Raises ValueError for a row of another length and for a model twice."""
        found: dict[str, dict[str, str]] = {}
        for line in self.text.strip().splitlines():
            name, *cells = (cell.strip() for cell in line.split("|"))
            if len(cells) != len(self.columns) or name in found:
                raise ValueError(f"{self.source}: '{line}' does not fit the columns {self.columns}")
            found[name] = {key: cell for key, cell in zip(self.columns, cells) if cell != "-"}
        return found

    @cached_property
    def rows(self) -> dict[str, dict[str, float]]:
        """{model: {key: value}}, percent as fractions."""
        scale = 100 if self.percent else 1
        return {name: {k: float(v) / scale for k, v in cells.items()} for name, cells in self.words.items()}


COCO, LVIS, BSDS = "COCO val2017", "LVIS v1 val", "BSDS500 test"
SIZES = ("", "_s", "_m", "_l")
BOX = tuple(f"box/miou{size}" for size in SIZES)
CLICK = tuple(f"click1/miou{size}" for size in SIZES)
AP = ("ap", "ap_s", "ap_m", "ap_l")
AR = ("ar1000", "ar1000_s", "ar1000_m", "ar1000_l")

EDGESAM = "EdgeSAM, arXiv 2312.06660"
EDGESAM_MIOU = "EdgeSAM's script: all non-crowd masks, single-mask output, truth round-tripped through 1024 px"
EFFICIENTSAM = "EfficientSAM, arXiv 2312.00863"
EFFICIENTSAM_MIOU = "EfficientSAM: ground-truth box, or clicks drawn uniformly in the mask; highest predicted IoU"
EVIT = "EfficientViT-SAM, README of its repository"
EVIT_MIOU = (
    "EfficientViT-SAM's script: every annotation, crowds included; highest predicted IoU; first maximum as click"
)
TINYSAM = "TinySAM, arXiv 2312.13789, table 1"
TINYSAM_AP = "boxes of ViTDet-H, three masks, highest predicted IoU, no refinement; score and class of the detector"
LITESAM = "Lite-SAM, arXiv 2407.08965, ECCV 2024 poster"
LITESAM_AP = "ground-truth boxes as prompts, score is the predicted IoU: not comparable with detector boxes"
LITESAM_AR = "Lite-SAM: mask AR@1000 on COCO; GS is a 32 x 32 grid, 256 pts are AutoPPN's proposals"

TABLES = (
    # ---------------------------------------------------------------- box and click mIoU
    Table("miou", COCO, EDGESAM_MIOU, EDGESAM, ("box/miou", "click1/miou"), preset="edgesam", text="""
        SAM ViT-H | 77.3 | 53.6
        MobileSAM | 74.4 | 50.9
        EdgeSAM   | 76.7 | 48.0
    """),
    Table("miou", LVIS, EDGESAM_MIOU, EDGESAM, ("box/miou", "click1/miou"), preset="edgesam", text="""
        SAM ViT-H | 77.8 | 60.5
        MobileSAM | 73.1 | 52.1
        EdgeSAM   | 76.2 | 53.7
    """),
    Table("miou", COCO, EFFICIENTSAM_MIOU, EFFICIENTSAM, ("box/miou", "click1/miou", "click3/miou"),
        preset="efficientsam", text="""
        SAM ViT-H       | 78.4 | 55.6 | 74.1
        MobileSAM       | 74.2 | 43.7 | 59.7
        EfficientSAM-Ti | 75.7 | 45.5 | 67.2
        EfficientSAM-S  | 76.9 | 50.0 | 69.8
    """),
    Table("miou", LVIS, EFFICIENTSAM_MIOU, EFFICIENTSAM, ("box/miou", "click1/miou", "click3/miou"),
        preset="efficientsam", text="""
        SAM ViT-H       | 78.9 | 59.8 | 75.2
        MobileSAM       | 73.8 | 51.0 | 54.4
        EfficientSAM-Ti | 74.3 | 52.7 | 66.8
        EfficientSAM-S  | 75.4 | 56.2 | 68.7
    """),
    Table("miou", COCO, EVIT_MIOU, EVIT, (*BOX, *CLICK), preset="evit", text="""
        EfficientViT-SAM-XL1 | 79.927 | 75.833 | 82.210 | 83.748 | 59.757 | 55.029 | 63.837 | 62.132
    """),
    Table("miou", LVIS, EVIT_MIOU, EVIT, (*BOX, *CLICK), preset="evit", text="""
        EfficientViT-SAM-XL1 | 79.886 | 74.412 | 88.447 | 91.577 | 56.624 | 47.750 | 71.796 | 72.442
    """),
    Table("miou", COCO, "segment-anything-fast: one point near the centre of mass, three masks, highest predicted IoU, "
        "fp32, 4,952 images", "segment-anything-fast, its repository", ("click1/miou",), preset="fast", text="""
        SAM ViT-H | 58.42
        SAM ViT-B | 53.36
    """),
    Table("miou", COCO, "NanoSAM's evaluation with ground-truth boxes", "NanoSAM, README of its repository", BOX,
        text="""
        MobileSAM | 72.8 | 65.8 | 75.9 | 80.4
        NanoSAM   | 70.6 | - | - | -
    """),
    Table("miou", COCO, "Lite-SAM: one ground-truth box, one point", LITESAM, ("box/miou", "click1/miou"), text="""
        SAM-B               | 75.0 | 52.2
        SAM-L               | 76.4 | 56.8
        SAM-H               | 76.5 | 57.4
        Semantic-SAM-L      | -    | 54.7
        FastSAM             | 72.8 | 50.2
        EfficientViT-L0-SAM | 74.5 | 51.3
        EfficientViT-L1-SAM | 75.2 | 51.5
        MobileSAM           | 72.8 | 50.5
        EdgeSAM             | 74.0 | 51.9
        Lite-SAM, 640 px    | 74.8 | 55.8
        Lite-SAM, 1024 px   | 76.3 | 56.9
    """),
    Table("miou", LVIS, "Lite-SAM: one ground-truth box, one point", LITESAM, ("box/miou", "click1/miou"), text="""
        SAM-B               | 73.5 | 55.2
        SAM-L               | 75.0 | 55.8
        SAM-H               | 75.3 | 56.4
        Semantic-SAM-L      | -    | 34.8
        FastSAM             | 67.3 | 46.8
        EfficientViT-L0-SAM | 73.1 | 52.9
        EfficientViT-L1-SAM | 73.9 | 54.8
        MobileSAM           | 67.7 | 42.4
        EdgeSAM             | 69.4 | 43.8
        Lite-SAM, 640 px    | 73.2 | 54.4
        Lite-SAM, 1024 px   | 75.7 | 57.3
    """),
    Table("miou", COCO, "Lite-SAM, light backbones: one ground-truth box, one point", LITESAM,
        ("box/miou", "click1/miou"), text="""
        MobileNetV2  | 69.6 | 48.5
        ShuffleNetV2 | 70.6 | 49.6
        MobileViT    | 72.1 | 53.8
        EfficientViT | 73.6 | 53.1
        FastViT      | 70.0 | 48.0
        TinyViT      | 73.4 | 52.6
        LiteViT      | 74.8 | 55.3
    """),
    # ---------------------------------------------------------------- box-prompted AP
    Table("instance", COCO, "boxes of ViTDet-H, then one pass more with the first mask and the box",
        "Segment Anything, arXiv 2304.02643, appendix D.4", AP, preset="refine", text="""
        SAM ViT-H | 46.5 | 30.8 | 51.0 | 61.7
        ViTDet-H (its own masks) | 51.0 | - | - | -
    """),
    Table("instance", LVIS, "boxes of ViTDet-H, then one pass more with the first mask and the box",
        "Segment Anything, arXiv 2304.02643, appendix D.4", AP, preset="refine", text="""
        SAM ViT-H | 44.7 | 32.5 | 57.6 | 65.5
        ViTDet-H (its own masks) | 46.6 | - | - | -
    """),
    Table("instance", COCO, TINYSAM_AP, TINYSAM, AP, preset="multimask", text="""
        ViTDet-H (its own masks) | 51.0 | 32.0 | 54.3 | 68.9
        SAM-H           | 46.6 | 30.8 | 51.0 | 61.7
        SAM-L           | 46.2 | 30.2 | 50.1 | 60.5
        SAM-B           | 43.4 | 28.5 | 45.5 | 53.4
        FastSAM         | 37.9 | 23.9 | 43.4 | 50.0
        EfficientSAM-Ti | 42.3 | 26.7 | 46.2 | 57.4
        SlimSAM-77      | 41.3 | 25.7 | 44.9 | 57.4
        MobileSAM       | 41.0 | 24.4 | 44.5 | 58.6
        TinySAM         | 42.3 | 26.3 | 45.8 | 58.8
        Q-TinySAM W8A8  | 41.4 | 25.6 | 45.1 | 57.9
    """),
    Table("instance", LVIS, TINYSAM_AP, TINYSAM, AP, preset="multimask", text="""
        ViTDet-H (its own masks) | 46.6 | 35.0 | 58.0 | 66.3
        SAM-H           | 44.7 | 32.5 | 57.6 | 65.5
        SAM-L           | 43.5 | 31.1 | 56.3 | 65.1
        SAM-B           | 40.8 | 29.1 | 52.8 | 60.7
        FastSAM         | 34.5 | 24.6 | 46.2 | 50.8
        EfficientSAM-Ti | 39.9 | 28.9 | 51.0 | 59.9
        SlimSAM-77      | 38.3 | 26.7 | 49.7 | 59.0
        MobileSAM       | 37.0 | 24.7 | 47.8 | 59.1
        TinySAM         | 38.9 | 27.0 | 50.3 | 60.2
        Q-TinySAM W8A8  | 38.5 | 26.6 | 49.8 | 59.8
    """),
    Table("instance", COCO, "boxes of ViTDet-H, single-mask output, no refinement", "TinySAM, README of its repository",
        ("ap",), preset="single", text="""
        SAM-H | 46.5
        SAM-L | 45.5
        SAM-B | 41.0
    """),
    Table("instance", COCO, "boxes of ViTDet-H (box AP 58.7), single-mask output, no refinement",
        "EdgeSAM, README of its repository", AP, preset="single", text="""
        SAM ViT-H   | 46.1 | 33.6 | 51.9 | 57.7
        FastSAM     | 37.9 | 23.9 | 43.4 | 50.0
        MobileSAM   | 39.4 | 26.9 | 44.4 | 52.2
        EdgeSAM     | 42.2 | 29.6 | 47.6 | 53.9
        EdgeSAM-3x  | 42.7 | - | - | -
        EdgeSAM-10x | 43.0 | 30.3 | 48.9 | 55.1
    """),
    Table("instance", COCO, "boxes of ViTDet-H, the mask with the largest IoU with the prompt box", EFFICIENTSAM, AP,
        preset="box_iou", text="""
        MobileSAM       | 38.7 | - | - | -
        FastSAM         | 37.9 | - | - | -
        EfficientSAM-Ti | 42.3 | 26.7 | 46.2 | 57.4
        EfficientSAM-S  | 44.4 | - | - | -
    """),
    Table("instance", LVIS, "boxes of ViTDet-H, the mask with the largest IoU with the prompt box", EFFICIENTSAM, AP,
        preset="box_iou", text="""
        MobileSAM       | 34.4 | - | - | -
        FastSAM         | 34.5 | - | - | -
        EfficientSAM-Ti | 39.9 | 28.9 | 51.0 | 59.9
        EfficientSAM-S  | 42.3 | - | - | -
    """),
    Table("instance", COCO, "boxes of ViTDet-H, EfficientViT-SAM's script", EVIT, ("ap",), text="""
        EfficientViT-SAM-L0  | 45.7
        EfficientViT-SAM-L1  | 46.2
        EfficientViT-SAM-L2  | 46.6
        EfficientViT-SAM-XL0 | 47.5
        EfficientViT-SAM-XL1 | 47.8
    """),
    Table("instance", LVIS, "boxes of ViTDet-H, EfficientViT-SAM's script", EVIT, ("ap",), text="""
        EfficientViT-SAM-L0  | 41.8
        EfficientViT-SAM-L1  | 42.1
        EfficientViT-SAM-L2  | 42.7
        EfficientViT-SAM-XL0 | 43.9
        EfficientViT-SAM-XL1 | 44.4
    """),
    Table("instance", COCO, LITESAM_AP, LITESAM, AP, preset="gt", text="""
        SAM-B               | 56.6 | 47.4 | 60.3 | 68.0
        SAM-L               | 59.4 | 48.8 | 65.3 | 72.1
        SAM-H               | 59.8 | 49.4 | 63.8 | 71.9
        FastSAM             | 47.5 | 37.9 | 48.1 | 56.4
        EfficientViT-L0-SAM | 56.1 | 44.3 | 59.7 | 70.8
        EfficientViT-L1-SAM | 57.1 | 45.4 | 60.8 | 71.5
        MobileSAM           | 51.4 | 41.6 | 55.1 | 64.1
        EdgeSAM             | 52.5 | 42.7 | 56.0 | 65.3
        Lite-SAM, 640 px    | 55.8 | 46.7 | 59.6 | 69.6
        Lite-SAM, 1024 px   | 56.5 | 47.4 | 61.0 | 70.7
    """),
    Table("instance", LVIS, LITESAM_AP, LITESAM, AP, preset="gt", text="""
        SAM-B               | 61.1 | 50.3 | 71.6 | 76.7
        SAM-L               | 64.9 | 53.5 | 76.1 | 81.9
        SAM-H               | 65.2 | 53.6 | 76.5 | 82.1
        FastSAM             | 43.8 | 35.1 | 45.6 | 59.7
        EfficientViT-L0-SAM | 59.8 | 46.8 | 70.2 | 80.1
        EfficientViT-L1-SAM | 61.4 | 48.0 | 72.5 | 81.6
        MobileSAM           | 52.8 | 42.2 | 63.2 | 69.6
        EdgeSAM             | 54.1 | 43.5 | 63.9 | 70.7
        Lite-SAM, 640 px    | 58.4 | 45.9 | 66.9 | 77.5
        Lite-SAM, 1024 px   | 60.7 | 49.3 | 71.9 | 79.8
    """),
    # ---------------------------------------------------------------- segment everything
    Table("everything", LVIS, "class-agnostic mask AR@1000: 64 x 64 grid, no crops, no filters, NMS 0.9",
        "Segment Anything, arXiv 2304.02643, appendix D.3", (*AR, "ar1000_f", "ar1000_c", "ar1000_r"), preset="ar1000",
        text="""
        SAM ViT-H               | 59.3 | 45.5 | 81.6 | 86.9 | 59.1 | 63.9 | 65.8
        SAM ViT-H, single mask  | 54.9 | - | - | - | - | - | -
        ViTDet-H                | 63.0 | - | - | - | - | - | -
    """),
    Table("everything", "LVIS, 100 random images", "MobileSAMv2: class-agnostic mask AR@1000",
        "MobileSAMv2, arXiv 2312.09579", AR, text="""
        SAM ViT-H, 64 x 64 grid | 59.2 | 46.6 | 78.7 | 82.4
        SAM ViT-H, 32 x 32 grid | 57.2 | - | - | -
        SAM ViT-H, 16 x 16 grid | 40.0 | - | - | -
        MobileSAMv2             | 59.3 | - | - | -
        FastSAM                 | 49.6 | - | - | -
    """),
    Table("everything", COCO, "FastSAM: BOX AR@1000, another measure than mask AR",
        "FastSAM, README of its repository", ("box_ar1000",), text="""
        SAM ViT-H, 64 x 64 grid | 67.7
        SAM ViT-H, 32 x 32 grid | 62.5
        FastSAM                 | 63.7
    """),
    Table("everything", "LVIS", "FastSAM: BOX AR@1000, another measure than mask AR",
        "FastSAM, README of its repository", ("box_ar1000",), text="""
        SAM ViT-H, 64 x 64 grid | 52.1
        SAM ViT-H, 32 x 32 grid | 50.3
        FastSAM                 | 57.1
    """),
    Table("everything", COCO, LITESAM_AR, f"{LITESAM}, table of models", ("ar1000",), text="""
        SAM-B               | 55.1
        SAM-L               | 56.6
        SAM-H               | 58.7
        Semantic-SAM        | 55.0
        EfficientViT-L0-SAM | 56.7
        FastSAM             | 53.3
        MobileSAM           | 53.2
        EdgeSAM             | 51.9
        MobileSAMv2         | 53.6
        LiteViT, GS         | 53.4
        Lite-SAM, 640 px    | 52.8
        Lite-SAM, 1024 px   | 54.1
        SAM-B, 256 pts      | 54.7
        MobileSAM, 256 pts  | 52.6
    """),
    Table("everything", "COCO val2017, first 100 images", "TinySAM: everything-mode mIoU against the ground truth",
        "TinySAM, arXiv 2312.13789, table 2", ("miou",), text="""
        SAM-H, 32 x 32 grid     | 70.47
        SAM-H, hierarchical     | 70.55
        MobileSAM, 32 x 32 grid | 59.63
        MobileSAM, hierarchical | 59.58
        TinySAM, 32 x 32 grid   | 61.37
        TinySAM, hierarchical   | 60.61
    """),
    # ---------------------------------------------------------------- edges
    Table("edges", BSDS, "zero-shot edges, 200 test images; edge NMS before the benchmark where the source says so",
        "Segment Anything, arXiv 2304.02643, table 3; FastSAM, arXiv 2306.12156; ymgw55's public reproduction",
        ("ods", "ois", "ap", "r50"), preset="sam", percent=False, text="""
        SAM ViT-H                         | .768 | .786 | .794 | .928
        SAM ViT-H, public reproduction    | .746 | .776 | .769 | .925
        FastSAM                           | .750 | .790 | .793 | .903
        EDETR (trained on BSDS500)        | .840 | .858 | .896 | .930
        HED (trained on BSDS500)          | .788 | .808 | .840 | .923
        Canny                             | .600 | .640 | .580 | -
        Sobel filter                      | .539 | - | - | -
    """),
    # ---------------------------------------------------------------- cost: never two sources in one table
    Table("latency", "1024 px", "A100-40GB, fresh processes, encoder and one point; batch 1 unless said",
        "segment-anything-fast, its repository", ("ms", "peak_mib"), percent=False, text="""
        SAM ViT-H, fp32                | 376.1 | 5758
        SAM ViT-H, bf16                | 74.3 | 2886
        SAM ViT-H, bf16, compiled      | 54.1 | -
        SAM ViT-H, + SDPA              | 49.3 | 2517
        SAM ViT-H, + Triton kernel     | 48.2 | -
        SAM ViT-H, int8, batch 8       | 40.0 | 4167
        SAM ViT-B, fp32                | 90.4 | 2789
        SAM ViT-B, SDPA                | 15.0 | 1104
        SAM ViT-B, batch 32            | 10.5 | -
    """),
    Table("latency", "1024 px", "one GPU, model not given", "MobileSAM, arXiv 2306.14289",
        ("encoder/ms", "decoder/ms"), percent=False, text="""
        SAM ViT-H | 452 | 4
        MobileSAM | 8 | 4
    """),
    Table("latency", "1024 px", "RTX 3090; memory in MB as printed", "FastSAM, arXiv 2306.12156",
        ("one_click/ms", "everything32/ms", "everything64/ms", "memory_mb"), percent=False, text="""
        SAM ViT-H | 446 | 2099 | 6972 | 7060
        SAM ViT-B | - | - | - | 4670
        FastSAM   | - | - | - | 2608
    """),
    Table("latency", "1024 px", "T4 with TensorRT; MACs as the paper counts them", TINYSAM, ("ms", "macs/total_g"),
        percent=False, text="""
        SAM-H           | 2392 | 2976
        SAM-L           | 1146 | 1491
        SAM-B           | 368.8 | 487
        FastSAM         | 153.6 | 443
        EfficientSAM-Ti | 81.0 | 106
        SlimSAM-77      | 110 | 51.7
        MobileSAM       | 38.4 | 42.0
        TinySAM         | 38.4 | 42.0
        Q-TinySAM W8A8  | 24.0 | 20.3
    """),
    Table("latency", "first 100 images of COCO val2017", "V100, segment everything",
        "TinySAM, arXiv 2312.13789, table 2",
        ("everything/s",), percent=False, text="""
        SAM-H, 32 x 32 grid     | 2.4549
        SAM-H, hierarchical     | 1.3537
        MobileSAM, 32 x 32 grid | 1.6719
        MobileSAM, hierarchical | 0.8462
        TinySAM, 32 x 32 grid   | 1.7790
        TinySAM, hierarchical   | 0.9303
    """),
    Table("latency", "1024 px", "encoder and decoder, one prompt; RTX 2080 Ti (ONNX) and iPhone 14 (CoreML)", EDGESAM,
        ("gpu/images_per_second", "phone/images_per_second"), percent=False, text="""
        SAM ViT-H | 4.3 | -
        MobileSAM | 103.5 | 4.9
        EdgeSAM   | 164.3 | 38.7
    """),
    Table("latency", "images", "TensorRT fp16, transfer included; Jetson Orin at batch 1, A100 at batch 16", EVIT,
        ("orin/ms", "a100/images_per_second"), percent=False, text="""
        EfficientViT-SAM-L0  | 8.2 | 762
        EfficientViT-SAM-XL1 | 37.2 | 182
    """),
    Table("latency", "1024 px", "A100, one box prompt", EFFICIENTSAM, ("images_per_second",), percent=False, text="""
        SAM ViT-H       | 2
        EfficientSAM-Ti | 54
        EfficientSAM-S  | 47
    """),
    Table("latency", "1024 px", "hardware, dtype, batch and what is inside the time are not given; MB as printed",
        "SAM-Lightening, arXiv 2403.09195, abstract", ("ms", "memory_mb"), percent=False, text="""
        SAM-Lightening | 7 | 244
    """),
    Table("latency", COCO, "segment everything; GPU not given; GS is a grid, 256 pts are AutoPPN's", LITESAM,
        ("parameters_m", "macs/total_g", "everything/s"), percent=False, text="""
        SAM-B               | 90 | 371 | 2.1
        SAM-L               | 308 | 1300 | 3.3
        SAM-H               | 635 | 2700 | 3.5
        Semantic-SAM        | 202 | 1400 | 2.6
        EfficientViT-L0-SAM | 31 | 109 | 1.7
        FastSAM             | 72.2 | 443 | 0.04
        MobileSAM           | 9.7 | 39.6 | 2.5
        EdgeSAM             | 9.7 | 23.4 | 1.6
        MobileSAMv2         | 43 | 470 | 0.13
        Lite-SAM, 640 px    | 4.2 | 12.7 | 0.08
        Lite-SAM, 1024 px   | 4.2 | 32.5 | 0.10
    """),
)  # fmt: skip
