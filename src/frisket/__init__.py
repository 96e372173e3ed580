"""frisket: train, compress and judge efficient Segment Anything models. Run `frisket --help`."""

__version__ = "0.1.0"
