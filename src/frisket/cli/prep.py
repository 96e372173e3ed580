"""frisket prep YAML… key=value…: turn photographs and masks into checked, indexed shards (or store embeddings).

    frisket prep configs/prep_bsds500.yaml inputs=/data/BSDS500 split=val out=data/bsds500/val

Everything it does is in `frisket.prep.run`; here the configuration is read.
"""

from collections.abc import Sequence

from frisket import config
from frisket.prep.records import PrepConfig
from frisket.prep.run import prep


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[PrepConfig]:
    """The config dataclass that these sources fill."""
    return PrepConfig


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Load PrepConfig from YAML `files` and `key=value` overrides and run it. Returns 0; raises UserError."""
    prep(config.load(PrepConfig, files, overrides))
    return 0
