"""Rows -> pixels: which images a shard needs, in which batches, and who draws them."""
