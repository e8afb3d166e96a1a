"""Drive a job: from a validated configuration to an exit code."""

from ldm_batch.drive.job import run_job

__all__ = ["run_job"]
