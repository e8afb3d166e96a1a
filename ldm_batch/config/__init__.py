"""The typed document that describes a job; a check stands beside the dataclass it checks.

This is what the rest of the program uses of it; ranges and closed lists stand beside their fields.
"""

from ldm_batch.config.call import CallConfig, with_size
from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.config.job import ImageConfig, JobConfig, SinkConfig, shard_ranges
from ldm_batch.config.loras import LoraConfig, parse_loras
from ldm_batch.config.model import ModelConfig, SchedulerConfig
from ldm_batch.config.s3 import S3Config
from ldm_batch.config.source import SourceConfig, source_uris
from ldm_batch.config.upscale import UPSCALE, UpscaleConfig

__all__ = [
    "UPSCALE",
    "CallConfig",
    "ClusterConfig",
    "ImageConfig",
    "JobConfig",
    "LoraConfig",
    "ModelConfig",
    "S3Config",
    "SchedulerConfig",
    "SinkConfig",
    "SourceConfig",
    "UpscaleConfig",
    "parse_loras",
    "shard_ranges",
    "source_uris",
    "with_size",
]
