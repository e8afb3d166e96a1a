"""Hydra: a command line, or the settings that Python gives, becomes a job.

The only user of Hydra, and of that only its parser and its composition: nothing of its own that
runs, logs or makes folders. Defines nothing that travels to workers.
"""

from ldm_batch.run.command import main
from ldm_batch.run.compose import OPEN_FIELDS, compose_job
from ldm_batch.run.folder import config_folder
from ldm_batch.run.from_python import run_job

__all__ = ["OPEN_FIELDS", "compose_job", "config_folder", "main", "run_job"]
