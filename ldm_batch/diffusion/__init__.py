"""Latent diffusion: the only part of ldm_batch that knows torch, diffusers and transformers.

files.py finds and locks a model's files without torch; load.py turns them into components;
sampler.py is the denoising loop; text_to_image.py is the pipeline the worker calls.
"""
