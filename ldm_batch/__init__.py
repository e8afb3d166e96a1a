"""Synthetic image datasets with latent diffusion: plan -> read -> generate -> encode -> write.

plan.py cuts the input into shards, read.py turns one shard into rows and rejections,
generate.py turns rows into pixels, encode.py pixels into bytes, write.py bytes into one object,
which storage.py commits whole or not at all; worker.py is that line for one shard, cluster.py
runs workers, run.py is the command. Importing this package imports nothing else.
"""

__version__ = "0.1.0"
