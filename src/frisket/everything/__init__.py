"""Segment everything: candidates and filters, the generator, one file per strategy (the folder is the registry)."""
