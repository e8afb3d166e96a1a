"""What the fields of a job are for, in words: read from where they are declared.

Pure. A field's meaning is the docstring under it, a section's that of its class; must not know who
shows them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ldm_batch.config.cluster import EXECUTORS, PLACEMENTS
from ldm_batch.config.job import IMAGE_FORMATS, JobConfig
from ldm_batch.config.model import ATTENTIONS, DEVICES, DTYPES, OFFLOADS
from ldm_batch.config.places import is_place
from ldm_batch.config.source import LONG_PROMPT_POLICIES
from ldm_batch.config.text import ENCODINGS
from ldm_batch.config.upscale import ALPHA_POLICIES

IN_WORDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "None": "null",
    "list[str]": "list of texts",
    "list[int]": "list of whole numbers",
    "list[float]": "list of numbers",
}
OPEN_TYPES = {
    "JobConfig.shards": "whole number, range as `3-9`, or list of these",
    "JobConfig.batch_size": "whole number or auto",
    "JobConfig.rows_per_shard": "whole number or auto",
    "SourceConfig.uri": "text or list of texts",
    "ModelConfig.loras": "list of LoRAs",
}
"""What `Any` stands for."""
CLOSED: Mapping[str, tuple[str, ...]] = {
    "ModelConfig.dtype": DTYPES,
    "ModelConfig.decode_dtype": DTYPES,
    "ModelConfig.text_encoder_dtype": DTYPES,
    "ModelConfig.attention": ATTENTIONS,
    "ModelConfig.device": DEVICES,
    "SourceConfig.encoding": ENCODINGS,
    "ModelConfig.offload": OFFLOADS,
    "SourceConfig.long_prompts": LONG_PROMPT_POLICIES,
    "UpscaleConfig.alpha": ALPHA_POLICIES,
    "ImageConfig.format": IMAGE_FORMATS,
    "ClusterConfig.executor": EXECUTORS,
    "ClusterConfig.placement": PLACEMENTS,
}
"""Fields of a closed list, by class, and its values."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a job, or a section of it."""

    path: str
    """Dotted, e.g. `source.s3.region`."""
    owner: str
    """Class that declares it."""
    kind: str
    """Its type in words; empty of a section."""
    default: str
    """As YAML says it; empty of a section."""
    about: str
    """What it is for, on one line; of a section what its class says."""
    is_place: bool = False
    """Whether it names a file or a folder."""

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]

    @property
    def section(self) -> str:
        """The section that it stands in; empty for the job's own fields."""
        return self.path.rpartition(".")[0]

    @property
    def is_section(self) -> bool:
        """Tell whether other fields stand in it."""
        return not self.kind

    @property
    def values(self) -> tuple[str, ...]:
        """All that it may be, where that is a closed list; else nothing."""
        if self.kind == IN_WORDS["bool"]:
            return ("true", "false")
        return CLOSED.get(f"{self.owner}.{self.name}", ())


@cache
def job_fields() -> Mapping[str, Field]:
    """Every field and section of a job, by path, in the order of their declaration."""
    return {field.path: field for field in _fields_below(JobConfig(), "")}


def section_about(name: str) -> str:
    """What a section is for: the docstring of its class."""
    return class_docstring(type(getattr(JobConfig(), name)).__name__)


@cache
def class_docstring(name: str) -> str:
    """The docstring of a class of the configuration."""
    return next(ast.get_docstring(node) or "" for node in _classes() if node.name == name)


def _fields_below(node: Any, prefix: str) -> Iterator[Field]:
    owner = type(node).__name__
    for field in fields(node):
        annotation, about = _declared()[owner, field.name]
        value, path = getattr(node, field.name), prefix + field.name
        if is_dataclass(value):
            about = " ".join((about or class_docstring(type(value).__name__)).split())
            yield Field(path, owner, "", "", about)
            yield from _fields_below(value, f"{path}.")
        else:
            kind = OPEN_TYPES.get(f"{owner}.{field.name}") or _in_words(annotation)
            yield Field(path, owner, kind, _as_yaml(value), about, is_place(field))


@cache
def _classes() -> list[ast.ClassDef]:
    paths = sorted(Path(__file__).parent.glob("*.py"))
    nodes = [node for path in paths for node in ast.parse(path.read_text(encoding="utf-8")).body]
    return [node for node in nodes if isinstance(node, ast.ClassDef)]


@cache
def _declared() -> dict[tuple[str, str], tuple[str, str]]:
    """Class and field -> annotation and the docstring under the field, on one line."""
    return {key: value for node in _classes() for key, value in _declared_in(node)}


def _declared_in(node: ast.ClassDef) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            about = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                about = " ".join(str(after.value.value).split())
            yield (node.name, statement.target.id), (ast.unparse(statement.annotation), about)


def _in_words(annotation: str) -> str:
    if annotation.startswith("dict["):
        return "mapping"
    return " or ".join(IN_WORDS[part] for part in annotation.split(" | "))


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
