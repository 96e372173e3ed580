"""frisket prep YAML… key=value…: turn photographs and masks into checked, indexed shards (or store embeddings).

    frisket prep configs/prep_bsds500.yaml inputs=/data/BSDS500 split=val out=data/bsds500/val

The YAML names the source (see frisket.prep.records). Everything it does is in `frisket.prep.run`; here the
configuration is read.
"""

from collections.abc import Sequence

from frisket import config as settings
from frisket.errors import UserError
from frisket.prep.records import SOURCES, PrepConfig
from frisket.prep.run import prep


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Prepare what YAML `files` and `key=value` overrides say. Returns 0; raises UserError."""
    prep(settings.load(schema(files, overrides), files, overrides))
    return 0


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[PrepConfig]:
    """The config dataclass of the source that these words name. Raises UserError for an unknown name."""
    name = settings.peek(files, overrides, "source")
    if not name:
        raise UserError(f"no source is named: give a YAML, e.g. configs/prep_{SOURCES.names()[0]}.yaml")
    return SOURCES.find(str(name)).Config
