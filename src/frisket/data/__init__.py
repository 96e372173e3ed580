"""SA-1B style records on disk and on their way to a batch: index, shards, elastic order, decoding, embeddings."""
