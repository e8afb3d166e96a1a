"""The files of LoRAs: where they are, whether they may be read at all, and their digests.

A file is judged by its header, which says every weight's shape, before any weight is read. Imports
no torch, so that a driver can plan a job on a machine that has none of it in memory. Must not know
how weights are fused (family/lora.py).
"""

from __future__ import annotations

import dataclasses
import glob
import json
import re
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_batch.config import LoraConfig, ModelConfig, parse_loras
from ldm_batch.config.loras import ENDING
from ldm_batch.config.places import with_home
from ldm_batch.diffusion.models.cache import remembered_sha256, sha256
from ldm_batch.diffusion.models.fetch import fetch_snapshot
from ldm_batch.errors import JobError

SECTION = "loras/"
"""Before the places of LoRAs among the files of a model: `loras/0` is the first."""
USUAL_NAME = "pytorch_lora_weights.safetensors"
MAX_BYTES = 8 * 1024**3
"""The largest LoRAs of today have 2.5 GB; a hostile one must not fill memory."""
MAX_WEIGHTS, MAX_NAME = 100_000, 500
FLOATS = ("F64", "F32", "F16", "BF16")
OTHER_KINDS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "lora_embedding": "LoRA of embeddings",
}
"""Parts of the names of weights -> what brings them: diffusers leaves it out, or misreads it."""
ADAPTER = "lora_adapter_metadata"
"""Entry of a file's header in which diffusers keeps how peft was set."""
ADAPTER_MAY = {
    "r": int,
    "lora_alpha": int | float,
    "use_rslora": bool,
    "lora_bias": bool,
    "target_modules": list | str,
    "rank_pattern": dict,
    "alpha_pattern": dict,
}
"""Settings of peft that say how weights are fused, and their types: the only ones that are read."""
ADAPTER_NOTHING = (
    *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "auto_mapping", "exclude_modules", "qalora_group_size"),
    *("loftq_config", "runtime_config", "megatron_core"),
)
"""Settings that change nothing of weights that are read from a file: never handed on."""
INITIALIZED = ("gaussian", "orthogonal")
"""How weights may have begun, beside peft's own way: others change the model, too."""
PAIRS = (("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up"))
"""The two weights of a module, in the names that people give them: one alone changes nothing."""
MODULE = re.compile(r"[\w.^$-]{1,300}")
"""Names of modules, which peft takes for regular expressions: none with more than these."""


@dataclass(frozen=True)
class LoraFile:
    """One LoRA, found on this machine and judged."""

    field: str
    """Of the job, for messages."""
    path: Path
    scale: float
    sha256: str
    adapter: Mapping[str, Any] | None
    """Settings of peft by component and name, as `transformer.r`; None: the weights say it."""

    @property
    def named(self) -> str:
        """The field and the file, for messages."""
        return f"{self.field}: {self.path}"


def lock_loras(model: ModelConfig) -> dict[str, str]:
    """Return the SHA-256 of a model's LoRAs by their place: by `loras/0` of the first.

    Raises:
        JobError: one is not there, or no file of weights.
    """
    found = find_loras(model, is_remembered=True)
    return {f"{SECTION}{number}": one.sha256 for number, one in enumerate(found)}


def split_loras(lock: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The files of a model itself, and those of its LoRAs."""
    own = {path: digest for path, digest in lock.items() if not path.startswith(SECTION)}
    return own, {path: digest for path, digest in lock.items() if path.startswith(SECTION)}


def verify_loras(found: list[LoraFile], lock: Mapping[str, str]) -> None:
    """Check that LoRAs are those that `lock` was made of, in its order.

    Raises:
        JobError: one is another, missing or added; the message names it.
    """
    if len(found) != len(lock):
        raise JobError(f"model.loras: {len(found)} of them, planned are {len(lock)}")
    for number, one in enumerate(found):
        planned = lock[f"{SECTION}{number}"]
        if one.sha256 != planned:
            raise JobError(
                f"{one.named} is not the planned one: sha256 {one.sha256[:16]}..., planned "
                f"{planned[:16]}..."
            )


def find_loras(model: ModelConfig, *, is_remembered: bool = False) -> list[LoraFile]:
    """Find and judge the LoRAs of a model, in their order; those of a hub are fetched.

    Args:
        is_remembered: take digests of large files from memory, see `remembered_sha256`.

    Raises:
        JobError: one is not there, no safetensors, too large, damaged, or no LoRA.
    """
    found = []
    for number, lora in enumerate(parse_loras("model.loras", model.loras)):
        field = f"model.loras[{number}].{'path' if lora.repo_id is None else 'file'}"
        path = _find(field, lora)
        adapter = _judge(f"{field}: {path}", path)
        digest = remembered_sha256(path) if is_remembered else sha256(path)
        found.append(LoraFile(field, path, lora.scale, digest, adapter))
    return found


def moved_loras(model: ModelConfig, lock: Mapping[str, str], paths: Sequence[str]) -> ModelConfig:
    """The model with planned LoRAs where they are now, each known by its SHA-256.

    Args:
        lock: as it was planned; see `lock_loras`.
        paths: files, or folders that hold one.

    Raises:
        JobError: one is not there, no LoRA, or none of the planned.
    """
    loras = parse_loras("model.loras", model.loras)
    for number, path in enumerate(paths):
        field = f"lora_path[{number}]"
        file = _find(field, LoraConfig(path))
        _judge(f"{field}: {file}", file)
        digest = sha256(file)
        places = [n for n in range(len(loras)) if lock.get(f"{SECTION}{n}") == digest]
        if not places:
            raise JobError(f"{field}: {file} is none of the {len(loras)} LoRAs that were planned")
        for place in places:
            loras[place] = LoraConfig(str(file), loras[place].scale)
    return dataclasses.replace(model, loras=loras) if paths else model


def _find(field: str, lora: LoraConfig) -> Path:
    if lora.path is None:
        hub = f"{field.removesuffix('file')}repo_id"
        repo_id, revision, file = str(lora.repo_id), str(lora.revision), str(lora.file)
        patterns, what = [glob.escape(file)], f"the files named {file}"
        path = fetch_snapshot(repo_id, revision, patterns=patterns, field=hub, what=what) / file
    else:
        path = Path(with_home(lora.path))
    if path.is_dir():
        path = _only_file(field, path)
    if path.suffix != ENDING:
        raise JobError(f"{field}: {path} is no {ENDING} file; only safetensors are loaded")
    if not path.is_file():
        raise JobError(
            f"{field}: no such file on {socket.gethostname()}: {path}; every node needs it, so "
            "name one on a file system that all share, or repo_id, revision and file"
        )
    return path


def _only_file(field: str, folder: Path) -> Path:
    """The LoRA of a folder: by its usual name, or the only one."""
    if (folder / USUAL_NAME).is_file():
        return folder / USUAL_NAME
    names = sorted(path.name for path in folder.glob(f"*{ENDING}"))
    if len(names) != 1:
        what = f"holds {', '.join(names[:3])}" if names else f"holds no {ENDING} file"
        raise JobError(f"{field}: the folder {folder} {what}; name one file")
    return folder / names[0]


def _judge(named: str, path: Path) -> dict[str, Any] | None:
    """Hold what a file says of its weights to what a LoRA may be; the settings it brings."""
    from safetensors import SafetensorError, safe_open

    if (size := path.stat().st_size) > MAX_BYTES:
        raise JobError(f"{named} has {size} bytes; a LoRA has at most {MAX_BYTES}")
    try:
        with safe_open(path, framework="np") as file:
            kept, names = file.metadata() or {}, [*file.keys()]
            if len(names) > MAX_WEIGHTS:
                raise JobError(
                    f"{named} has {len(names)} weights; a LoRA has at most {MAX_WEIGHTS}"
                )
            slices = {name: file.get_slice(name) for name in names}
            types = {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise JobError(f"{named} is damaged, or no safetensors: {error}") from error
    if not types:
        raise JobError(f"{named} holds no weights")
    if any(len(name) > MAX_NAME or not name.isprintable() for name in types):
        raise JobError(f"{named} names a weight in no printable text of {MAX_NAME} characters")
    for name, (dtype, shape) in types.items():
        if kind := next((kind for part, kind in OTHER_KINDS.items() if part in name), None):
            raise JobError(f"{named} holds {name}, which is {kind}; plain LoRA is taken only")
        if dtype not in FLOATS and shape:
            raise JobError(f"{named}: {name} is {dtype}; weights must be {', '.join(FLOATS)}")
    if alone := _without_partner(types):
        told = ", ".join(f"{name} without {other}" for name, other in alone[:3])
        raise JobError(
            f"{named}: {len(alone)} weights stand alone, as a LoRA's never do: {told}; was the "
            "file cut?"
        )
    largest = max((side for _, shape in types.values() for side in shape), default=1)
    return _adapter(named, kept[ADAPTER], largest) if ADAPTER in kept else None


def _without_partner(names: Collection[str]) -> list[tuple[str, str]]:
    """Weights whose module lacks the other one, and what it is called."""
    ways = [way for pair in PAIRS for way in (pair, pair[::-1])]
    return [
        (name, other)
        for one, two in ways
        for name in names
        if f".{one}" in name and (other := f".{two}".join(name.rsplit(f".{one}", 1))) not in names
    ]


def _adapter(named: str, text: str, largest: int) -> dict[str, Any] | None:
    """The settings of peft in a header, of a closed list: it would import what some of them name.

    Args:
        largest: side of a weight, which no rank exceeds.
    """
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JobError(f"{named}: its {ADAPTER} is no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise JobError(f"{named}: its {ADAPTER} is not a JSON object")
    taken = {}
    for full, value in settings.items():
        full = " ".join(full.split())[:MAX_NAME]
        name = full.rpartition(".")[2]
        if name in ADAPTER_MAY:
            limit = largest if name in ("r", "rank_pattern") else 1e6
            is_fit = isinstance(value, ADAPTER_MAY[name])
            if isinstance(value, bool) != (ADAPTER_MAY[name] is bool):  # to Python a bool is an int
                is_fit = False
            if not is_fit or not _is_plain(value, limit):
                raise JobError(f"{named}: {ADAPTER} says {full}={value!r:.100}, which is not taken")
            taken[full] = value
        elif name == "init_lora_weights" and (isinstance(value, bool) or value in INITIALIZED):
            continue
        elif name not in ADAPTER_NOTHING and value not in (None, False, {}, [], "none"):
            raise JobError(
                f"{named}: {ADAPTER} says {full}={value!r:.100}; plain LoRA is taken only"
            )
    return taken or None


def _is_plain(value: Any, limit: float) -> bool:
    """Whether a setting holds numbers and names of modules alone."""
    if isinstance(value, dict):
        return all(MODULE.fullmatch(k) and _is_number(one, limit) for k, one in value.items())
    if isinstance(value, list):
        return all(isinstance(one, str) and MODULE.fullmatch(one) for one in value)
    if isinstance(value, str):
        return MODULE.fullmatch(value) is not None
    return isinstance(value, bool) or _is_number(value, limit)


def _is_number(value: Any, limit: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= limit
