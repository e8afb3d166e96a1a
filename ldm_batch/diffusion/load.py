"""Turn a model's folder into components: safetensors only, nothing missing, nothing unexpected.

Must not know how the components are used; the classes that may be built are a closed list, and no
code of a model's repository is ever run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from ldm_batch.config.model import DEVICES, ModelConfig
from ldm_batch.diffusion.models.blueprint import refuse_larger
from ldm_batch.diffusion.models.conversion import read_conversion
from ldm_batch.diffusion.models.files import (
    LDM_SUPER_RESOLUTION,
    LDM_TEXT_TO_IMAGE,
    WeightFiles,
    find_weights,
    read_index,
    read_json,
    verify_lock,
)
from ldm_batch.diffusion.models.headers import read_headers
from ldm_batch.diffusion.models.side_file import set_num_heads
from ldm_batch.diffusion.models.untrusted import (
    refuse_endless,
    refuse_foreign_code,
    told_as_not_loading,
)
from ldm_batch.errors import JobError

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
    from transformers import BertTokenizer

os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")

Component: TypeAlias = "ModelMixin | LDMBertModel | BertTokenizer"
"""A part of a pipeline: a UNet or first stage, a text encoder, a tokenizer."""
COMPONENT_CLASSES = {
    "bert": ("LDMBertModel",),
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "vqvae": ("AutoencoderKL", "AutoencoderTiny", "VQModel"),
    "tokenizer": ("BertTokenizer", "BertTokenizerFast"),
}
PIPELINE_COMPONENTS = {
    LDM_TEXT_TO_IMAGE: ("bert", "tokenizer", "unet", "vqvae", "scheduler"),
    LDM_SUPER_RESOLUTION: ("unet", "vqvae", "scheduler"),
}
TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Components:
    """The parts of one pipeline, ready for use; modules may be shared between pipelines."""

    folder: Path
    pipeline: str
    """The pipeline's class name in `model_index.json`."""
    modules: dict[str, Component] = field(repr=False)
    """`bert`, `tokenizer`, `unet`, `vqvae`: in evaluation mode, without gradients."""
    scheduler_settings: dict[str, Any] = field(repr=False)
    """How the model was trained: its `scheduler_config.json`, corrected where the user does."""
    variant: str | None = None
    """Which weights of several."""
    lock: Mapping[str, str] | None = field(default=None, repr=False)
    """What the files were when they were loaded: `{path: sha256}`; None: not known."""
    model: ModelConfig | None = field(default=None, repr=False)
    """What a job says of the model, its switches among it; None: it was loaded without any."""

    def __getitem__(self, name: str) -> Component:
        return self.modules[name]


def load(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    decode_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    lock: Mapping[str, str] | None = None,
    variant: str | None = None,
    shared: Mapping[str, Component] | None = None,
) -> Components:
    """Load every component of the pipeline in `folder`.

    Args:
        folder: a pipeline in diffusers' layout.
        dtype: of the weights; latents and scheduler arithmetic stay in float32 all the same.
        decode_dtype: of the first stage's weights, where it differs.
        lock: `{path: sha256}`; the files are checked against it before anything is loaded.
        variant: which weights of several, e.g. `fp16`; None: the usual ones.
        shared: components that are loaded already, by name; used in place of the folder's own.

    Raises:
        JobError: a file differs from the lock, a class is not of the closed list, weights are
            missing, unexpected, of the wrong shape or not finite.
    """
    if lock is not None:
        verify_lock(folder, lock, variant)
    pipeline = str(read_json(folder / "model_index.json").get("_class_name"))
    if pipeline not in PIPELINE_COMPONENTS:
        raise JobError(f"{folder}: pipeline {pipeline} is none of {', '.join(PIPELINE_COMPONENTS)}")
    index = read_index(folder)
    missing = set(PIPELINE_COMPONENTS[pipeline]) - set(index)
    if missing:
        raise JobError(f"{folder}: {pipeline} lacks the component {', '.join(sorted(missing))}")
    made = read_conversion(folder)
    weights = find_weights(folder, variant if made is None else None)
    if pickled := [one.paths[0] for one in weights.values() if one.is_pickled]:
        raise JobError(f"{folder}: {pickled[0]} is pickled; only safetensors are loaded")
    modules = dict(shared or {})
    for name in PIPELINE_COMPONENTS[pipeline]:
        if name != "scheduler" and name not in modules:
            as_dtype = decode_dtype or dtype if name == "vqvae" else dtype
            one = weights.get(name)
            modules[name] = _load_component(folder, name, index[name], as_dtype, device, one)
    settings = read_json(folder / "scheduler" / "scheduler_config.json")
    return Components(folder, pipeline, modules, settings, variant, lock)


def _load_component(
    folder: Path,
    name: str,
    class_name: str,
    dtype: torch.dtype,
    device: torch.device | str,
    weights: WeightFiles | None,
) -> Component:
    supported = COMPONENT_CLASSES[name]
    if class_name not in supported:
        raise JobError(f"{folder}: {name} is a {class_name}; supported are {', '.join(supported)}")
    with told_as_not_loading(f"{folder}: {name} does not load"):
        if weights is None:
            return _load_tokenizer(folder / name)
        with quiet_libraries():
            module = _load_module(folder / name, class_name, weights)
            set_num_heads(folder, name, module)
            module = module.to(device=device, dtype=dtype)
    return module.eval().requires_grad_(False)


def _load_tokenizer(folder: Path) -> BertTokenizer:
    from transformers import BertTokenizer

    if (folder / "tokenizer_config.json").is_file():
        refuse_foreign_code(folder / "tokenizer_config.json")

    return BertTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _load_module(folder: Path, class_name: str, weights: WeightFiles) -> torch.nn.Module:
    """Load one torch module in float32 and check that its weights are whole."""
    module_class, header = _module_class(class_name), read_headers(folder.parent, weights)
    refuse_foreign_code(folder / "config.json")
    refuse_endless(folder / "config.json", len(header))
    refuse_larger(module_class, header, folder)
    options = loading_options(weights)
    if class_name != "LDMBertModel":
        options["low_cpu_mem_usage"] = False  # the other way needs the package accelerate
    with torch.random.fork_rng(devices=[]):
        module, info = module_class.from_pretrained(folder, **options)
    check_whole(module, info, folder)
    return module  # type: ignore[no-any-return]


def loading_options(weights: WeightFiles) -> dict[str, Any]:
    """How any module is loaded: of local safetensors alone, and told what did not fit, which
    `check_whole` takes."""
    return {
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # `check_whole` names them
        "variant": weights.variant,
    }


def check_whole(
    module: torch.nn.Module,
    info: dict[str, Any],
    folder: Path,
    kinds: Sequence[str] = ("missing_keys", "unexpected_keys", "mismatched_keys"),
) -> None:
    """Refuse a module whose weights are not whole, not its own or not finite; weights that are
    stored under another's name get their values first.

    Args:
        info: what loading it told.
        kinds: of what it told, that are refused.
    """
    info["missing_keys"] = _fill_tied(module, info["missing_keys"], folder)
    for kind in kinds:
        if info[kind]:
            names = ", ".join(sorted(map(_named, info[kind]))[:3])
            raise JobError(f"{folder}: {len(info[kind])} {kind.replace('_', ' ')}: {names}")
    for key, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise JobError(f"{folder}: weight {key} is not finite")


def _named(key: Any) -> str:
    """A weight that loading told of; of another shape, with the one that is stored and the one that
    the configuration makes it."""
    if isinstance(key, str):
        return key
    name, *shapes = key
    return f"{name} {' in place of '.join(str(tuple(shape)) for shape in shapes)}"


def _fill_tied(module: torch.nn.Module, missing: Iterable[str], folder: Path) -> list[str]:
    """Give weights that are stored under another's name its values; what is missing still."""
    made = read_conversion(folder.parent)
    tied = made.tied.get(folder.name, {}) if made else {}
    values = module.state_dict()
    for name in set(missing) & set(tied):
        values[name].copy_(values[tied[name]])
    return [name for name in missing if name not in tied]


def _module_class(class_name: str) -> Any:
    if class_name == "LDMBertModel":
        from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel

        return LDMBertModel
    import diffusers

    return getattr(diffusers, class_name)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence progress bars and weight reports: what matters of them is raised as an error."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    levels = (diffusers_logging.get_verbosity(), transformers_logging.get_verbosity())
    bar = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        if bar:
            transformers_logging.enable_progress_bar()


def pick_device(name: str) -> torch.device:
    """Turn `auto`, `cpu` or `cuda` into a device; JobError where CUDA is asked for and absent."""
    if name not in DEVICES:
        raise JobError(f"model.device={name}: must be auto, cpu or cuda")
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise JobError(
            "model.device=cuda: this worker has no CUDA device; where the machine has one, "
            "cluster.gpus_per_worker=1 gives it to the worker"
        )
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")
