"""The plan: which files, cut into which shards, and what identifies the images."""
