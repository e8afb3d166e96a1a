"""Synthetic image datasets with latent diffusion: plan -> read -> generate -> encode -> write.

plan/ cuts the input into shards, read/ turns one shard into rows and rejections, generate/ rows
into pixels, write/ pixels into one object that appears whole or not at all; worker.py is that line
for one shard, README.md the map of the rest. Importing this package imports nothing else: what is
named below is loaded when it is first used. No module of the package imports this face of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm_batch.commands.dataset_view import open_dataset as open_dataset
    from ldm_batch.config import JobConfig as JobConfig
    from ldm_batch.diffusion.noise import make_generator as make_generator
    from ldm_batch.diffusion.super_resolution import SuperResolution as SuperResolution
    from ldm_batch.diffusion.text_to_image import TextToImage as TextToImage
    from ldm_batch.errors import LdmBatchError as LdmBatchError
    from ldm_batch.run import run_job as run_job
    from ldm_batch.versions import __version__ as __version__

_EXPORTS = {
    "__version__": "ldm_batch.versions",
    "JobConfig": "ldm_batch.config",
    "LdmBatchError": "ldm_batch.errors",
    "SuperResolution": "ldm_batch.diffusion.super_resolution",
    "TextToImage": "ldm_batch.diffusion.text_to_image",
    "make_generator": "ldm_batch.diffusion.noise",
    "open_dataset": "ldm_batch.commands.dataset_view",
    "run_job": "ldm_batch.run",
}
__all__ = [
    "JobConfig",
    "LdmBatchError",
    "SuperResolution",
    "TextToImage",
    "__version__",
    "make_generator",
    "open_dataset",
    "run_job",
]


def __getattr__(name: str) -> Any:
    """Load an exported name, and torch where it needs torch, when it is first used."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ldm_batch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    """What is there, loaded or not."""
    return sorted({*globals(), *_EXPORTS})
