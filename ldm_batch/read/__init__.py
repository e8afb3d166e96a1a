"""One shard of the input -> rows and rejections: Parquet, cells, images of any origin."""
