"""Results made by hand: the content of an eval.json, and a label that would hurt a careless page."""

import hashlib
from typing import Any

EVIL = "<script>alert(1)</script>\"'&"


def evaluation(task: str, models: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The content of an eval.json."""
    return {
        "schema": 1,
        "task": task,
        "protocol": f"how {task} is measured",
        "image_size": 128,
        "data": "sets/val",
        "models": models,
        "weights": {label: hashlib.sha256(label.encode()).hexdigest() for label in models},
        "parameters": {label: 6_650_000 for label in models},
        "settings": {"task": task, "data": "sets/val", "limit": None},
        "environment": {"date": "2026-01-02T03:04:05+00:00", "commit": "c0ffee", "cpu": "Some CPU", "gpu": None,
                        "command": ["eval", f"configs/eval_{task}.yaml", "out=a b"]},
    } | more  # fmt: skip
