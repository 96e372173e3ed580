"""`frisket bench [YAML …] [key=value …]`: speed as ratios against a baseline in the same process, each with a guard.

frisket bench configs/bench.yaml rows=[rle_fill,sa1b_raw] out=runs/bench.json
frisket bench quick=true                                  (does it work here; the numbers mean nothing)
"""

from frisket import config
from frisket.bench import harness


def run(files: list[str], overrides: list[str]) -> int:
    """Measure, print and write; return 0, or 1 when a guard failed."""
    return harness.run(config.load(harness.BenchConfig, files, overrides), harness.all_rows())
