"""Prepared data: sources (sa1b, bsds500, synthetic, embed) and the runner that turns them into shards."""
