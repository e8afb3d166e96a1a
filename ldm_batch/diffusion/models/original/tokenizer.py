"""The tokenizer that an original text model loads by name: bert-base-uncased, from a folder here.

Must not know the text encoder beyond the size of its vocabulary.
"""

from __future__ import annotations

from pathlib import Path

from ldm_batch.diffusion.models.files import MAX_JSON_BYTES, TOKENIZER_NAMES
from ldm_batch.errors import JobError


def check_tokenizer(folder: Path, vocabulary_size: int) -> tuple[Path, ...]:
    """Return the files of a tokenizer whose every token the text encoder knows.

    Raises:
        JobError: there is none, it does not load, or has more tokens.
    """
    files = tuple(path for name in TOKENIZER_NAMES if (path := folder / name).is_file())
    if not {"tokenizer.json", "vocab.txt"} & {path.name for path in files}:
        raise JobError(f"--tokenizer {folder}: has neither tokenizer.json nor vocab.txt")
    for path in files:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise JobError(
                f"--tokenizer {folder}: {path.name} is larger than {MAX_JSON_BYTES} bytes"
            )
    from transformers import BertTokenizer

    try:
        tokenizer = BertTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        num_tokens = 1 + max(tokenizer.get_vocab().values())
    except Exception as error:  # of many kinds, on what is no tokenizer
        said = (str(error).splitlines() or [""])[0][:200]
        raise JobError(f"--tokenizer {folder}: does not load: {said}") from error
    if num_tokens > vocabulary_size:
        raise JobError(
            f"--tokenizer {folder}: has {num_tokens} tokens, the text encoder "
            f"{vocabulary_size}; it is another model's"
        )
    return files
