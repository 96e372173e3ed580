"""`frisket bench [YAML …] [key=value …]`: speed as ratios against a baseline in the same process, each with a guard.

frisket bench configs/bench.yaml rows=[rle_fill,sa1b_raw] out=runs/bench.json
frisket bench quick=true                                  (does it work here; the numbers mean nothing)
"""

from collections.abc import Sequence

from frisket import config as settings
from frisket.bench import harness


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[harness.BenchConfig]:
    """The config dataclass that these sources fill."""
    return harness.BenchConfig


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Measure, print and write; return 0, or 1 when a guard failed."""
    return harness.run(settings.load(harness.BenchConfig, files, overrides), harness.all_rows())
