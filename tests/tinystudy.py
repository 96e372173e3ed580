"""A study of seconds: four drawn scenes, two arms, two steps."""

from pathlib import Path

TINY = """
seeds: {seeds}
against: cascade
prepare:
  train: {{prep: prep_synthetic, count: 4, image_size: 64, samples_per_shard: 4, place: {{workers: 1}}}}
recipes:
  distill_lightening:
    teacher: {teacher}
    student: {{encoder: {{width: 48, depth: 2, heads: 3, segment: 4, dilation: 2}}}}
    data: {{train: "@train", val: null, image_size: 64, global_batch: 2, masks_per_image: 2}}
    trainer: {{max_steps: {steps}, log_every: 1, checkpoint_every: 5}}
    place: {{accelerator: cpu, devices: "1", precision: 32-true, threads: 1, workers: 0, images_per_device: null}}
    log: {{wandb: "off"}}
arms:
  cascade: {{train: distill_lightening}}
  neck: {{train: distill_lightening, distill: {{schedule: neck}}}}
judge: {{teacher: {teacher}, data: "@train"}}
"""


def write(path: Path, teacher: Path, seeds: str = "[0, 1]", steps: int = 2) -> Path:
    """Write the study to `path`, and return it."""
    path.write_text(TINY.format(teacher=teacher, seeds=seeds, steps=steps))
    return path
