"""Latent diffusion: the only part of ldm_batch that knows torch, diffusers and transformers.

fetch.py brings a hub revision to this node, files.py finds and locks a model's files, both without
torch; load.py turns them into components; sampler.py is the denoising loop; text_to_image.py is
the pipeline the worker calls.
"""

import os

# Must stand before huggingface_hub is imported: every process of it would ask the hub for a list
# of the tools that may be running it, even one whose model is in the cache.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Must stand before cuBLAS is first asked for anything: its results do not repeat without it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
