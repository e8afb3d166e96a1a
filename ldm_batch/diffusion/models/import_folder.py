"""Import a model that is in diffusers' layout already: its weights become safetensors, its noise
schedule what it was trained with.

Must not know original checkpoints (original/ does).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm_batch.config import ModelConfig
from ldm_batch.config.model import is_commit_sha, is_variant
from ldm_batch.config.places import with_home
from ldm_batch.diffusion.load import load
from ldm_batch.diffusion.models.convert import convert_folder
from ldm_batch.diffusion.models.files import find_weights, read_index, read_json, read_kind
from ldm_batch.diffusion.models.find import find_source, is_hub_id, todays_main
from ldm_batch.diffusion.models.model_folder import describe_sources, write_json
from ldm_batch.diffusion.models.new_folder import new_folder
from ldm_batch.diffusion.schedulers import PAPER_SETTINGS, find_beta_trouble
from ldm_batch.errors import JobError


@dataclass(frozen=True)
class ImportedFolder:
    """What was made."""

    class_name: str
    """Of the pipeline, in `model_index.json`."""
    parts: tuple[str, ...]
    readme: str


def import_folder(
    source: str, target: Path, revision: str | None, variant: str | None
) -> ImportedFolder:
    """Make a folder of safetensors of a folder or a hub repository.

    Args:
        revision: full commit sha of a repository; None: what its main is now.
        variant: which weights of several; they are the usual ones of what is made.

    Raises:
        JobError: it is no model that is drawn by, or holds anything but tensors.
    """
    model = _model(source, revision, variant)
    if variant is not None and not is_variant(variant):
        raise JobError(f"--variant {variant}: is no name of a variant, such as fp16")
    folder = find_source(model)
    weights = find_weights(folder, variant)
    facts = ["weights: values, names and dtypes as they were"]
    if model.path is None:
        facts.insert(0, f"{model.repo_id} at commit {model.revision}")
    if target.absolute().is_relative_to(folder.resolve()):
        raise JobError(f"{target}: is in {source}; name a TARGET outside of it")
    with new_folder(target) as made:
        convert_folder(folder, made, variant, store_tied_once=False)
        facts += _correct_schedule(made)
        _prove(made, source)
        sources = {path: folder / path for one in weights.values() for path in one.paths}
        what = "a hub repository" if model.path is None else "a folder in diffusers' layout"
        readme = describe_sources(read_kind(made), what, sources, facts)
        (made / "README.md").write_text(readme, encoding="utf-8")
        return ImportedFolder(read_kind(made), tuple(read_index(made)), readme)


def _model(source: str, revision: str | None, variant: str | None) -> ModelConfig:
    if is_hub_id(source):
        if revision is not None and not is_commit_sha(revision):
            raise JobError(
                f"--revision {revision}: must be a full commit sha, 40 hexadecimal digits; leave "
                "it out for what main is now"
            )
        pinned = revision or todays_main(source)
        return ModelConfig(repo_id=source, revision=pinned, variant=variant)
    if revision is not None:
        raise JobError(f"--revision {revision}: {source} is no repository of a hub")
    if not Path(with_home(source)).is_dir():
        what = "is no checkpoint" if Path(source).exists() else "there is no such folder"
        raise JobError(
            f"{source}: {what}; SOURCE is a checkpoint (.ckpt, .safetensors), a folder in "
            "diffusers' layout, or a hub repository such as ORG/NAME"
        )
    return ModelConfig(path=source, variant=variant)


def _prove(folder: Path, source: str) -> None:
    """Load all of what was made: a JobError, in words of the source, where it is not whole."""
    try:
        load(folder)
    except JobError as error:
        raise JobError(str(error).replace(str(folder), source)) from error


def _correct_schedule(folder: Path) -> list[str]:
    """Put a noise schedule right that is not the paper's, and say so."""
    path = folder / "scheduler" / "scheduler_config.json"
    settings = read_json(path)
    if find_beta_trouble(settings) is None:
        return []
    write_json(path, {**settings, **PAPER_SETTINGS})
    return [
        "scheduler_config.json said beta_schedule: linear, by which the paper's code means "
        "scaled_linear; put right: "
        + ", ".join(f"{name}: {value}" for name, value in PAPER_SETTINGS.items())
    ]
