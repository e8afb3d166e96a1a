"""The typed document that describes a job, and its checks; where it comes from is run.py's.

This is what the rest of the program uses of it; limits and closed lists stand in job.py.
"""

from ldm_batch.config.cluster import ClusterConfig
from ldm_batch.config.job import (
    CallConfig,
    ImageConfig,
    JobConfig,
    ModelConfig,
    S3Config,
    SchedulerConfig,
    SinkConfig,
    SourceConfig,
    UpscaleConfig,
    has_second_stage,
)

__all__ = [
    "CallConfig",
    "ClusterConfig",
    "ImageConfig",
    "JobConfig",
    "ModelConfig",
    "S3Config",
    "SchedulerConfig",
    "SinkConfig",
    "SourceConfig",
    "UpscaleConfig",
    "has_second_stage",
]
