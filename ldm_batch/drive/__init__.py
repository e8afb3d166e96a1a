"""Drive a job: from a validated configuration to an exit code."""

from ldm_batch.drive.job import JobResult, drive_job, run_job

__all__ = ["JobResult", "drive_job", "run_job"]
