"""What a task is, and what an engine: one value of each kind for a module of this folder.

A task says what a row is and how it becomes a request; an engine says who draws it. The tables
stand in choose.py. Must not know any one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ldm_batch.columns import TaskColumns
from ldm_batch.config import JobConfig, ModelConfig, SchedulerConfig
from ldm_batch.generate.pipeline import Pipeline
from ldm_batch.identity import Form
from ldm_batch.read.rows import ParseRow
from ldm_batch.records import PlannedImage, PromptCount, Request, Row

OF_EVERY_IMAGE = (
    "scheduler",
    "model",
    "model_sha256",
    "image_format",
    "image_sha256",
    "pixel_sha256",
    "made_as",
    "input_file",
    "input_row",
)
"""What is recorded of every image that a model draws, in this order, after what it is made of."""
Lock = Mapping[str, str]
"""Path -> SHA-256 of every file that loading a job's models reads."""


class LoadImages(Protocol):
    """The images that the rows of a shard brought."""

    def load(self, slot: int) -> NDArray[np.uint8]:
        """The image of the row at a place of the shard: `[h, w, 3]`, or 4 with alpha."""

    def load_mask(self, slot: int) -> NDArray[np.bool_]:
        """Its mask: `[h, w]`, true where to repaint."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One model of a job."""

    section: str
    """Before the names of its fields: nothing, or `upscale.`."""
    model: ModelConfig
    scheduler: SchedulerConfig
    model_class: str
    """diffusers' class of the pipelines that it may be, in `model_index.json`; empty where our own
    loop does not draw the task."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a row is, and how it becomes an image."""

    name: str
    columns: TaskColumns
    check: Callable[[JobConfig], Iterator[str]]
    """Problems of a job's fields that only this task knows of, a line each."""
    stages: Callable[[JobConfig], list[Stage]]
    """The models that it needs, in the order of their work."""
    identify: Callable[[JobConfig, Lock], dict[str, Any]]
    """What of a job identifies its images beside what every task has; enters the fingerprint."""
    parse_row: ParseRow
    plan_image: Callable[[Row, int, int, Form], PlannedImage]
    """(row, number of the image, job seed, form) -> the image with its seeds."""
    seed_of: Callable[[Form], Callable[..., int]]
    """How the seed of an image is derived."""
    make_request: Callable[[PlannedImage, LoadImages | None], Request]
    """What a pipeline is told of an image."""
    request_again: Callable[[Mapping[str, Any], TaskColumns], Request] | None
    """The request of an image from its own record, by the columns of the chosen task (others are
    carried, whatever they are called); None: its row must be read again."""
    load: Callable[[JobConfig, Lock], Pipeline] | None
    """The models, by our own loop; None: it has none for this task. See the engine `ldm`."""
    origin: Callable[[JobConfig, Lock, Mapping[str, Any], Mapping[str, str]], dict[str, Any]]
    """(job, lock, what the pipeline says of itself, model names by section) -> columns that all
    images of the job have in common, beside those of every task."""
    record: Callable[[PlannedImage, PromptCount, str | None], dict[str, Any]]
    """(image, tokens of its prompt, SHA-256 of the first stage's pixels) -> the columns that only
    this task has."""
    strength: float | None = None
    """How far images are turned to noise where neither row nor job says; None: they are not."""


@dataclass(frozen=True, slots=True)
class FoundModels:
    """The models of a job, as they were found on this machine."""

    lock: dict[str, str]
    """SHA-256 of every file that they are made of, those of a second stage with its section before
    their paths."""
    native_size: tuple[int, int]
    """The first one's own height and width in pixels."""
    converted: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by path of what pickled weights became here; identifies nothing."""


@dataclass(frozen=True, slots=True)
class Engine:
    """Who draws the images of a task."""

    name: str
    has_models: bool
    """Whether it draws by the models that a job names."""
    check: Callable[[JobConfig, Task], Iterator[str]]
    """Problems of a job that it cannot draw, a line each."""
    find: Callable[[JobConfig, Task], FoundModels]
    """Finds the models of a job; loads nothing."""
    check_models: Callable[[JobConfig, Task], list[str]]
    """Looks into the models, without weights; what a user should know of them. Raises a JobError
    that names the field."""
    load: Callable[[JobConfig, Task, Lock], Pipeline]
    measure_batch_size: Callable[[JobConfig, tuple[int, int]], int]
    """The batch size that suits the model on this machine."""


def nothing_to_check(_job: JobConfig) -> Iterator[str]:
    """The check of a task, or an engine, that takes every job."""
    yield from ()
