"""What a component must not bring: code from elsewhere, networks without end, errors of any kind.

Imports no torch. Must not know which component it is of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm_batch.diffusion.models.files import read_json
from ldm_batch.errors import JobError, LdmBatchError, one_line

FORBIDDEN_SETTINGS = ("auto_map", "quantization_config", "fast_tokenizer_files", "gguf_file")
"""Keys that would bring in code, or files that no lock holds."""
ATTENTION_SETTINGS = ("attn_implementation", "experts_implementation")
"""Keys, also after an underscore, that may name code of the hub."""
OWN_ATTENTION = (None, "eager", "sdpa")
LAYERS = (
    *("num_layers", "num_hidden_layers", "num_single_layers", "num_decoder_layers", "n_layers"),
    *("n_refiner_layers", "layers_per_block", "transformer_layers_per_block", "num_res_blocks"),
    *(
        "reverse_transformer_layers_per_block",
        "encoder_layers_per_block",
        "depth",
        "encoder_layers",
    ),
    *("decoder_layers_per_block", "num_encoder_blocks", "num_decoder_blocks", "decoder_layers"),
)
"""Keys of how often a network repeats something that has weights, as numbers or lists of them."""
MAX_NUMBER = 2**27
"""No side of a weight, no length and no token's number is larger."""
MAX_ITEMS = 4096
"""Of a list; a language model's largest has one for each layer."""


def refuse_foreign_code(path: Path) -> None:
    """Refuse a configuration that would bring in code or files from elsewhere, at any depth.

    Raises:
        JobError: names the file and the key.
    """
    for key, value in _settings(read_json(path)):
        if key in FORBIDDEN_SETTINGS:
            raise JobError(f"{path}: {key} is not supported")
        if key.removeprefix("_") in ATTENTION_SETTINGS and not _is_own(value):
            raise JobError(f"{path}: {key}={value!r:.100} is not supported; leave it out")


def refuse_endless(path: Path, num_weights: int) -> None:
    """Refuse a configuration whose numbers would build a network without end.

    Args:
        num_weights: that are stored for it: no layer is without one.

    Raises:
        JobError: names the file, the key and the number.
    """
    for key, value in _settings(read_json(path)):
        if isinstance(value, list) and len(value) > MAX_ITEMS:
            raise JobError(f"{path}: {key} has {len(value)} entries; at most {MAX_ITEMS} are taken")
        for number in _numbers(value):
            if abs(number) > MAX_NUMBER:
                raise JobError(f"{path}: {key} is {number}; at most {MAX_NUMBER} is taken")
            if key in LAYERS and number > num_weights:
                raise JobError(
                    f"{path}: {key} is {number}, but only {num_weights} weights are stored"
                )


def _is_own(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value in OWN_ATTENTION)


def _settings(settings: Any) -> Iterator[tuple[str, Any]]:
    """Every key and its value, at any depth."""
    open_ends = [settings]
    while open_ends:
        one = open_ends.pop()
        if isinstance(one, dict):
            yield from one.items()
            open_ends += one.values()
        elif isinstance(one, list):
            open_ends += one


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers of a value, in lists of any depth."""
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


@contextmanager
def told_as_not_loading(what: str) -> Iterator[None]:
    """Turn whatever two libraries, and what they read, raise while a part loads into our error.

    Args:
        what: the part and what it was to be, as in `FOLDER: unet does not load`.

    Raises:
        JobError: something was raised; an error of ours stays as it is.
    """
    try:
        yield
    except LdmBatchError:
        raise
    except Exception as error:  # of many kinds
        raise JobError(
            f"{what}: {type(error).__name__}: {one_line(error)}; where a file is damaged or cut "
            "off, take it anew from where the model came from"
        ) from error
