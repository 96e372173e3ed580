"""Results made by hand: the content of an eval.json, and a label that would hurt a careless page."""

import hashlib
from typing import Any

EVIL = "<script>alert(1)</script>\"'&"

NAMES = {"miou": "prompted_miou", "instance": "instance_ap"}
COCO = {"name": "coco", "split": "val2017", "images": 5000, "objects": 36781, "digest": "c0" * 32}
LVIS = {"name": "lvis", "split": "v1_val", "images": 19809, "objects": 244707, "digest": "1f" * 32}
BSDS = {"name": "bsds500", "split": "test", "images": 200, "objects": None, "digest": "b5" * 32}
SHARDS = {"name": "shards", "split": None, "images": 3, "objects": None, "digest": "5a" * 32}


def evaluation(
    task: str,
    models: dict[str, dict[str, Any]],
    *,
    arguments: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    strategy: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The content of an eval.json of schema 2; `old` makes one of schema 1."""
    protocol = {"name": NAMES.get(task, task), "arguments": arguments or {}, "sentence": f"how {task} is measured"}
    return {
        "schema": 2,
        "task": task,
        "protocol": protocol,
        "dataset": dataset or SHARDS,
        "strategy": strategy,
        "image_size": 128,
        "data": "sets/val",
        "models": models,
        "weights": {label: hashlib.sha256(label.encode()).hexdigest() for label in models},
        "parameters": {label: 6_650_000 for label in models},
        "settings": {"task": task, "data": "sets/val", "limit": None},
        "environment": {"date": "2026-01-02T03:04:05+00:00", "commit": "c0ffee", "cpu": "Some CPU", "gpu": None,
                        "command": ["eval", f"configs/eval_{task}.yaml", "out=a b"]},
    } | more  # fmt: skip


def old(task: str, models: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The content of an eval.json as it was before results named themselves."""
    report = evaluation(task, models) | {"schema": 1, "protocol": f"how {task} is measured"} | more
    return {key: value for key, value in report.items() if key not in ("dataset", "strategy")}
