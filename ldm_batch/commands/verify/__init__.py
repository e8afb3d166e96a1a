"""`verify`: every object, row, seed, hash and sum of a dataset, and images made again."""
