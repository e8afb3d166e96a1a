"""Packages that only some jobs need: which, and what is to be installed.

Imports none of them. Must not know what they do.
"""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

from ldm_batch.config import ModelConfig
from ldm_batch.errors import JobError

SENTENCEPIECES = ("spiece.model", "tokenizer.model")
"""Vocabularies that only one package reads, where no tokenizer.json is beside them."""


def check_extras(model: ModelConfig) -> None:
    """Refuse what a model asks of packages that are not installed here.

    Raises:
        JobError: names the field, the package and the command that installs it.
    """
    needed = {
        "model.loras": (bool(model.loras), "peft", "lora"),
        f"model.offload={model.offload}": (model.offload != "none", "accelerate", "offload"),
    }
    for field, (is_asked, package, extra) in needed.items():
        if is_asked and importlib.util.find_spec(package) is None:
            raise JobError(
                f"{field}: needs {package}, which is not installed on {socket.gethostname()}: "
                f"pip install 'ldm-batch[{extra}]'"
            )


def check_vocabulary(tokenizer: Path) -> None:
    """Refuse a tokenizer of which no package here can read the vocabulary.

    Raises:
        JobError: names the file, the package and the command that installs it.
    """
    if (tokenizer / "tokenizer.json").is_file():
        return
    for name in SENTENCEPIECES:
        if (tokenizer / name).is_file() and importlib.util.find_spec("sentencepiece") is None:
            raise JobError(
                f"model file {tokenizer / name} needs sentencepiece, which is not installed on "
                f"{socket.gethostname()}: pip install sentencepiece"
            )
