"""Make a folder of safetensors of a model: `python -m ldm_batch import SOURCE TARGET`.

SOURCE is an original checkpoint, a folder in diffusers' layout or a hub repository, with weights in
any form. Nothing of it is run; TARGET appears whole or not at all. Exit code 0, or 2 if it was
refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_batch.commands.ending import ends
from ldm_batch.commands.program import program
from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.diffusion.models.files import CHECKPOINTS, LDM_SUPER_RESOLUTION, LDM_TEXT_TO_IMAGE
from ldm_batch.errors import JobError
from ldm_batch.plan.command_line import shell_line, text_word

if TYPE_CHECKING:
    from ldm_batch.diffusion.models.model_folder import ModelFolder

FILES = (*CHECKPOINTS, ".safetensors")
COMMANDS = {
    LDM_TEXT_TO_IMAGE: "run model=local {} source.uri=PROMPTS sink.uri=DATASET",
    LDM_SUPER_RESOLUTION: (
        "run task=super_resolution model=local_upscale {} source.uri=IMAGES sink.uri=DATASET"
    ),
    **dict.fromkeys(
        FAMILIES,
        "run model=local model.engine=diffusers {} source.uri=PROMPTS sink.uri=DATASET",
    ),
}
"""How the models are used that jobs draw by."""


@dataclass(frozen=True)
class Import:
    """What the command line names."""

    source: str
    """A checkpoint, a folder in diffusers' layout, or a hub repository."""
    target: Path
    config: Path | None = None
    """The original's yaml; or a folder with the settings of diffusers' model."""
    tokenizer: Path | None = None
    revision: str | None = None
    """Of a hub repository; None: what its main is now."""
    variant: str | None = None


def import_model(wanted: Import) -> str:
    """Import a model and return what to tell of it, some lines.

    Raises:
        JobError: the source is no model that can be imported; nothing is left in `target` then.
    """
    from ldm_batch.diffusion.models.new_folder import check_target, new_folder

    check_target(wanted.target)
    source = Path(wanted.source)
    if source.suffix in FILES and not source.is_dir():
        model = _read_checkpoint(source, wanted)
        from ldm_batch.diffusion.models.model_folder import write_model

        with new_folder(wanted.target) as folder:
            write_model(model, folder)
        parts = [*model.parts, *model.conditions]
        return _report(wanted.target, model.class_name, parts, model.readme)
    return _import_folder(wanted)


def _read_checkpoint(source: Path, wanted: Import) -> ModelFolder:
    if not source.is_file():
        raise JobError(f"{source}: there is no such file")
    for option, value in (("--revision", wanted.revision), ("--variant", wanted.variant)):
        if value is not None:
            raise JobError(f"{option} {value}: is for a repository or a folder, not for a file")
    if wanted.config is not None and wanted.config.is_dir():
        if wanted.tokenizer is not None:
            raise JobError(f"--tokenizer {wanted.tokenizer}: the folder of --config has its own")
        from ldm_batch.diffusion.models.single_file import read_single_file

        return read_single_file(source, wanted.config)
    settings = wanted.config or _only_yaml(source)
    from ldm_batch.diffusion.models.original.model import Sources, read_model

    return read_model(Sources(source, settings, wanted.tokenizer))


def _only_yaml(source: Path) -> Path:
    """The yaml beside a checkpoint, as the original's archives have it."""
    try:
        found = sorted(p for p in source.parent.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError as error:
        raise JobError(f"{source.parent}: cannot be listed: {error.strerror or error}") from error
    if len(found) == 1:
        return found[0]
    raise JobError(
        f"{source}: {len(found)} yaml files beside it, one must say what the model is; name the "
        "original's with --config, or for Stable Diffusion a folder with the settings and the "
        "tokenizer of its diffusers model"
    )


def _import_folder(wanted: Import) -> str:
    from ldm_batch.diffusion.models.import_folder import import_folder

    for option, value in (("--config", wanted.config), ("--tokenizer", wanted.tokenizer)):
        if value is not None:
            raise JobError(f"{option} {value}: is for an original checkpoint; SOURCE has its own")
    made = import_folder(wanted.source, wanted.target, wanted.revision, wanted.variant)
    return _report(wanted.target, made.class_name, made.parts, made.readme)


def _report(target: Path, class_name: str, parts: Iterable[str], readme: str) -> str:
    place = shell_line([text_word("model.path", str(target.absolute()))])
    used = f"no job of this version draws by {class_name}; its parts can be loaded"
    if command := COMMANDS.get(class_name):
        used = f"to use it:\n  python -m ldm_batch {command.format(place)}"
    facts = [line for line in readme.splitlines() if line.startswith("- ")]
    return "\n".join([f"{target}: {class_name} of {', '.join(sorted(parts))}", *facts, used])


@ends
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, import the model, say what was made."""
    parser = argparse.ArgumentParser(prog=program("import"), description=__doc__)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a checkpoint such as model.ckpt, a folder in diffusers' layout, or a hub repository",
    )
    parser.add_argument("target", metavar="TARGET", type=Path, help="a folder that is not there")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="PLACE",
        help="the original's yaml, by default the only one beside SOURCE; for Stable Diffusion a "
        "folder in diffusers' layout, whose weights are not read",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        help="with vocab.txt or tokenizer.json, for a model of text",
    )
    parser.add_argument("--revision", metavar="SHA", help="of a repository; default: its main now")
    parser.add_argument("--variant", metavar="NAME", help="which weights of several, such as fp16")
    options = parser.parse_args(arguments)
    print(import_model(Import(**vars(options))))
