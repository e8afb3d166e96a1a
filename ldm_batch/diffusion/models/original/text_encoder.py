"""The original text encoder (`BERTEmbedder`, x-transformers' Encoder) as diffusers' LDMBertModel.

Must not know tokenizers: what text is, or what else its tokens may mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ldm_batch.diffusion.models.original.settings import Section
from ldm_batch.diffusion.models.original.weights import Weights

TARGET = "ldm.modules.encoders.modules.BERTEmbedder"
NUM_HEADS, HEAD_DIM = 8, 64
"""Of x-transformers' attention, whatever the width."""
WIDENING = 4
"""Of its feed-forward layers."""


@dataclass(frozen=True)
class TextEncoderShape:
    """The numbers of a text encoder."""

    width: int
    num_layers: int
    vocabulary_size: int
    num_tokens: int
    has_tokenizer: bool
    """False where tokens are made otherwise, as layouts are."""


def read_text_encoder(section: Section) -> TextEncoderShape:
    """Read a text encoder's numbers from its section of the yaml.

    Raises:
        JobError: it has a setting that LDMBertModel has not.
    """
    section.target(TARGET)
    params = section.section("params")
    section.refuse_others()
    params.ignore(["embedding_dropout", "device"])
    encoder = TextEncoderShape(
        width=params.integer("n_embed"),
        num_layers=params.integer("n_layer", most=256),
        vocabulary_size=params.integer("vocab_size", 30522),
        num_tokens=params.integer("max_seq_len", 77),
        has_tokenizer=params.flag("use_tokenizer", True),
    )
    params.refuse_others()
    return encoder


def make_config(encoder: TextEncoderShape) -> dict[str, Any]:
    """The arguments of LDMBertConfig."""
    return {
        "vocab_size": encoder.vocabulary_size,
        "max_position_embeddings": encoder.num_tokens,
        "d_model": encoder.width,
        "encoder_layers": encoder.num_layers,
        "encoder_ffn_dim": WIDENING * encoder.width,
        "encoder_attention_heads": NUM_HEADS,
        "head_dim": HEAD_DIM,
        "dropout": 0.0,
    }


def rename(weights: Weights, encoder: TextEncoderShape) -> dict[str, torch.Tensor]:
    """Return the weights by diffusers' names.

    Raises:
        JobError: one is missing, or has no place.
    """
    made = {
        "model.embed_tokens.weight": weights.take("transformer.token_emb.weight"),
        "model.embed_positions.weight": weights.take("transformer.pos_emb.emb.weight"),
        **dict(weights.take_pair("transformer.norm", "model.layer_norm")),
        **dict(weights.take_pair("transformer.to_logits", "to_logits")),
    }
    for number in range(encoder.num_layers):
        # The original's layers are attention and feed-forward in turns, each a norm and a network.
        old, new = "transformer.attn_layers.layers", f"model.layers.{number}"
        attend, forward = f"{old}.{2 * number}", f"{old}.{2 * number + 1}"
        for name in ("q", "k", "v"):
            made[f"{new}.self_attn.{name}_proj.weight"] = weights.take(
                f"{attend}.1.to_{name}.weight"
            )
        for before, after in (
            (f"{attend}.0", "self_attn_layer_norm"),
            (f"{attend}.1.to_out", "self_attn.out_proj"),
            (f"{forward}.0", "final_layer_norm"),
            (f"{forward}.1.net.0.0", "fc1"),
            (f"{forward}.1.net.2", "fc2"),
        ):
            made.update(weights.take_pair(before, f"{new}.{after}"))
    weights.refuse_rest()
    return made
