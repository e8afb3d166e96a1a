"""Models of the paper's own code, a checkpoint and its yaml, become folders in diffusers' layout.

The key maps and numbers are those of CompVis/latent-diffusion; none of its classes is ever built.
Must not know the command line.
"""
