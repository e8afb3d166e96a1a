"""What of a section identifies images: what a fingerprint holds of it.

A field that there was from the first always stands in it; one that was added later only where it is
not at its default, so that plans from before it keep their fingerprint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ldm_batch.config.call import CallConfig
from ldm_batch.config.job import ImageConfig
from ldm_batch.config.loras import parse_loras
from ldm_batch.config.model import ModelConfig, SchedulerConfig
from ldm_batch.config.source import SourceConfig
from ldm_batch.config.text import delimiter_of

MODEL_FIELDS = ("dtype", "decode_dtype", "channels_last", "attention", "compile")
MODEL_NAMES = ("engine", "pipeline", "path", "repo_id", "revision", "variant", "device", "loras")
"""Who the model is and where: its files say that better, and those of its LoRAs."""
SCHEDULER_FIELDS = (
    "name",
    "settings",
    "guidance_interval",
    "guidance_rescale",
    "cache_interval",
)
CALL_FIELDS = (
    "num_inference_steps",
    "guidance_scale",
    "eta",
    "height",
    "width",
    "negative_prompt",
)
ENCODING_FIELDS = ("format", "mark")
TEXT_FIELDS = ("types", "encoding", "delimiter")


def identify_model(model: ModelConfig, files: Mapping[str, str], pipeline: str) -> dict[str, Any]:
    """A model: its switches and its files.

    Args:
        files: SHA-256 by path, of LoRAs by their place.
        pipeline: what the form calls whoever draws by it.
    """
    section = _identify(model, MODEL_FIELDS, MODEL_NAMES)
    if scales := [lora.scale for lora in parse_loras("model.loras", model.loras)]:
        section["lora_scales"] = scales
    return section | {"pipeline": pipeline, "files": dict(files)}


def identify_scheduler(scheduler: SchedulerConfig) -> dict[str, Any]:
    """A scheduler, and the options of the denoising loop."""
    return _identify(scheduler, SCHEDULER_FIELDS)


def identify_call(call: CallConfig) -> dict[str, Any]:
    """The defaults of the call."""
    return _identify(call, CALL_FIELDS)


def identify_encoding(image: ImageConfig) -> dict[str, Any]:
    """How images are stored."""
    return _identify(image, ENCODING_FIELDS)


def identify_text(source: SourceConfig) -> dict[str, Any]:
    """How rows are read that are text in the input, where the job says it."""
    default = SourceConfig()
    given = {name: getattr(source, name) for name in TEXT_FIELDS}
    given["delimiter"] = delimiter_of(source.delimiter)
    return {name: value for name, value in given.items() if value != getattr(default, name)}


def _identify(section: Any, always: Sequence[str], never: Sequence[str] = ()) -> dict[str, Any]:
    default = type(section)()
    added = [
        field.name
        for field in dataclasses.fields(section)
        if field.name not in (*always, *never)
        and getattr(section, field.name) != getattr(default, field.name)
    ]
    values = dataclasses.asdict(section)
    return {name: values[name] for name in (*always, *added)}
