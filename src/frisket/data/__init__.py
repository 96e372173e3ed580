"""SA-1B style records on disk and on their way to a batch: shards, index, elastic order, decoding, stored embeddings."""
