"""The 77-token text path computed exactly on 21 tokens.

No caption of the demo world reaches past token 20, so tokens 20 to 76 are all padding. With one
position embedding tied for all of them they stay equal through every layer, and 57 equal tokens
act in attention as one whose logit is raised by log 57.
"""

import math
from typing import Any

import torch
from diffusers.models.embeddings import TextTimeEmbedding
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
from torch import Tensor

MAX_TOKENS = 77
NUM_TOKENS = 21
NUM_MERGED = MAX_TOKENS - NUM_TOKENS + 1


@torch.no_grad()
def tie_padding(bert: LDMBertModel) -> None:
    """Give all padding positions past the captions one embedding; call after every change of it."""
    positions = bert.model.embed_positions.weight
    positions[NUM_TOKENS:] = positions[NUM_TOKENS - 1]


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """Token ids (N, 21) of captions; raises ValueError where a caption reaches past token 20."""
    encoded = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    if (ids[:, NUM_TOKENS - 1 :] != 0).any():
        raise ValueError(f"a caption has more than {NUM_TOKENS - 1} tokens")
    return ids[:, :NUM_TOKENS]


def encode_text(bert: LDMBertModel, ids: Tensor) -> Tensor:
    """Embed token ids (N, 21) as (N, 21, width), equal to the 77-token embedding's first 21."""
    body = bert.model
    hidden = body.embed_tokens(ids) + body.embed_positions(torch.arange(NUM_TOKENS))
    bias = torch.zeros(len(ids), 1, NUM_TOKENS, NUM_TOKENS)
    bias[..., -1] = math.log(NUM_MERGED)
    for layer in body.layers:
        hidden = layer(hidden, bias, None)[0]
    normed: Tensor = body.layer_norm(hidden)
    return normed


def cross_attention_mask(num: int) -> Tensor:
    """The UNet's `encoder_attention_mask` (N, 21) that adds log 57 to the last token's logit.

    diffusers turns a mask value m into the bias -10000 (1 - m).
    """
    mask = torch.ones(num, NUM_TOKENS)
    mask[:, -1] += math.log(NUM_MERGED) / 10000
    return mask


def expand(embeddings: Tensor) -> Tensor:
    """Embeddings (N, 21, width) as the (N, 77, width) that they stand for."""
    padding = embeddings[:, -1:].expand(-1, NUM_MERGED - 1, -1)
    return torch.cat([embeddings, padding], dim=1)


class CompactTextTimeEmbedding(TextTimeEmbedding):  # type: ignore[misc]
    """A UNet's pooled text embedding that takes 21 tokens for the 77 they stand for."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Pool (N, 21, width) or (N, 77, width) into (N, time embedding width)."""
        if hidden_states.shape[1] == NUM_TOKENS:
            hidden_states = expand(hidden_states)
        pooled: Tensor = super().forward(hidden_states)
        return pooled
