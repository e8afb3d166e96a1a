"""Prompts to embeddings: each distinct text once, in batches of one fixed shape.

Must not know what the embeddings condition. Embeddings are kept up to a bound of bytes, least
recently used first out; a text has the same bits whatever it was encoded beside.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

import torch

from ldm_batch.records import PromptCount

if TYPE_CHECKING:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
    from transformers import BertTokenizer

MAX_CACHE_BYTES = 64 * 1024 * 1024
"""170 texts of the paper's model (77 tokens of 1280 float32 each): the null prompt and negative
prompts are asked for with every batch, most others only once."""


class TextEncoder:
    """The tokenizer and LDMBert of one pipeline, with its embeddings of recent texts."""

    def __init__(self, tokenizer: BertTokenizer, bert: LDMBertModel, *, batch_size: int) -> None:
        self.num_encoded = 0
        """Texts encoded so far, for tests and reports."""
        self._tokenizer = tokenizer
        self._bert = bert
        self._batch_size = batch_size
        self._max_tokens = int(bert.config.max_position_embeddings)
        self._cache: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._tokenizer_lock = Lock()

    def count(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Count each prompt's tokens, special ones included; safe from any thread."""
        if not prompts:
            return []
        with self._tokenizer_lock:
            ids = self._tokenizer(
                list(prompts), padding=False, truncation=False, verbose=False
            ).input_ids
        return [PromptCount(len(row), len(row) > self._max_tokens) for row in ids]

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings of texts, `[len(texts), tokens, width]`, in the model's dtype."""
        rows = {text: self._cache[text] for text in texts if text in self._cache}
        missing = [text for text in dict.fromkeys(texts) if text not in rows]
        for start in range(0, len(missing), self._batch_size):
            some = missing[start : start + self._batch_size]
            rows.update(zip(some, self._run(some), strict=True))
        self._remember(rows)
        return torch.stack([rows[text] for text in texts])

    def _run(self, texts: list[str]) -> list[torch.Tensor]:
        padded = texts + [""] * (self._batch_size - len(texts))
        with self._tokenizer_lock:
            ids = self._tokenizer(
                padded,
                padding="max_length",
                max_length=self._max_tokens,
                truncation=True,
                return_tensors="pt",
            ).input_ids
        self.num_encoded += len(texts)
        embeddings = self._bert(ids.to(self._bert.device), return_dict=False)[0]
        return [row.clone() for row in embeddings[: len(texts)]]

    def _remember(self, rows: dict[str, torch.Tensor]) -> None:
        for text, row in rows.items():
            self._cache[text] = row
            self._cache.move_to_end(text)
        total = sum(row.nbytes for row in self._cache.values())
        while total > MAX_CACHE_BYTES:
            total -= self._cache.popitem(last=False)[1].nbytes
