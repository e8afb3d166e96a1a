"""The text encoder: a small LDMBert whose every token tells the whole scene.

It is trained to read a caption into what stands where (background, and the shape, colour and size
of the object in each of five places), from every token position. Binding and relation are thereby
solved in words, before the UNet draws anything.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from torch import Tensor, nn
from transformers import BertTokenizer

from ldm_batch.demo.train.compact import NUM_TOKENS, encode_text, tie_padding, tokenize
from ldm_batch.demo.world import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    SceneSpec,
    caption,
    draw_spec,
    draw_specs,
)

SPECIAL_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
GRAMMAR_WORDS = ("a", "an", "the", "of", "on", "with", "and", "background", "picture", "image")
PLACES = ("alone", "left", "right", "top", "bottom")
PLACES_OF_PAIR = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
CLASSES_PER_PLACE = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1)
NUM_CLASSES = (len(COLOURS) + 1, *(CLASSES_PER_PLACE * len(PLACES)))
EMPTY_SHARE = 0.04


def vocabulary() -> list[str]:
    """List every word the tokenizer knows; any other becomes [UNK]."""
    relation_words = {word for relation in RELATIONS for word in relation.split()}
    scene_words = [*COLOURS, *SHAPES, *filter(None, SIZES), *sorted(relation_words)]
    return list(dict.fromkeys([*SPECIAL_WORDS, *GRAMMAR_WORDS, *scene_words]))


def make_tokenizer(folder: Path) -> BertTokenizer:
    """Write the vocabulary to a folder and load it as a tokenizer of at most 77 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n")
    names = ("pad", "unk", "cls", "sep", "mask")
    settings: dict[str, object] = {f"{name}_token": f"[{name.upper()}]" for name in names}
    settings |= {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return BertTokenizer.from_pretrained(folder)


def make_bert(width: int = 96) -> LDMBertModel:
    """Make an untrained encoder of three layers, 77 positions and `width` channels."""
    config = LDMBertConfig(
        vocab_size=len(vocabulary()),
        max_position_embeddings=77,
        encoder_layers=3,
        encoder_ffn_dim=256,
        encoder_attention_heads=4,
        head_dim=width // 4,
        d_model=width,
        dropout=0.0,
    )
    bert = LDMBertModel(config)
    nn.init.normal_(bert.model.embed_tokens.weight, std=0.5)
    nn.init.normal_(bert.model.embed_positions.weight, std=0.5)
    return bert


class ReadingBert(nn.Module):
    """An encoder and the reader that tells the scene from each token's embedding."""

    def __init__(self, bert: LDMBertModel) -> None:
        super().__init__()
        self.bert = bert
        self.reader = nn.Linear(bert.config.d_model, sum(NUM_CLASSES))


@dataclass
class TextEncoderStage:
    """Training of the text encoder on captions of the training split alone."""

    model: ReadingBert
    tokenizer: BertTokenizer
    seed: int
    name: str = "text_encoder"
    batch_size: int = 48
    validation: list[SceneSpec] = field(default_factory=lambda: draw_specs(98, 256, split="test"))

    def loss(self, step: int) -> Tensor:
        """Cross-entropy of all scene classes, read from every token."""
        rng = random.Random(f"text {self.seed} {step}")
        specs = [
            None if rng.random() < EMPTY_SHARE else draw_spec(rng, split="train")
            for _ in range(self.batch_size)
        ]
        captions = ["" if spec is None else vary_caption(caption(spec), rng) for spec in specs]
        targets = torch.tensor([scene_classes(spec) for spec in specs])
        every_token = targets[:, :, None].expand(-1, -1, NUM_TOKENS)
        logits = self._read(captions)
        losses = [
            F.cross_entropy(part.transpose(1, 2), every_token[:, index])
            for index, part in enumerate(logits)
        ]
        return torch.stack(losses).sum()

    def evaluate(self) -> dict[str, float]:
        """Share of held-out captions read without a mistake, from [CLS] and from all tokens."""
        targets = torch.tensor([scene_classes(spec) for spec in self.validation])
        logits = self._read([caption(spec) for spec in self.validation])
        hits = [part.argmax(-1) == targets[:, index, None] for index, part in enumerate(logits)]
        is_read = torch.stack(hits).all(0).float()
        return {
            "read_from_cls": float(is_read[:, 0].mean()),
            "read_from_all": float(is_read.mean()),
        }

    def _read(self, captions: list[str]) -> tuple[Tensor, ...]:
        tie_padding(self.model.bert)
        embeddings = encode_text(self.model.bert, tokenize(self.tokenizer, captions))
        return self.model.reader(embeddings).split(NUM_CLASSES, -1)  # type: ignore[no-any-return]


def scene_classes(spec: SceneSpec | None) -> list[int]:
    """Classes of a scene in the order of `NUM_CLASSES`; None, the empty caption, is nothing."""
    nothing = [count - 1 for count in CLASSES_PER_PLACE]
    places = {place: nothing for place in PLACES}
    if spec is None:
        return [len(COLOURS), *(nothing * len(PLACES))]
    names = PLACES_OF_PAIR[spec.relation] if spec.relation else ("alone",)
    for place, found in zip(names, spec.objects, strict=True):
        places[place] = [
            SHAPES.index(found.shape),
            COLOURS.index(found.colour),
            SIZES.index(found.size),
        ]
    return [COLOURS.index(spec.background), *(c for place in PLACES for c in places[place])]


def vary_caption(text: str, rng: random.Random) -> str:
    """Sometimes say "a picture of" first, or end with a full stop's worth of unknown token."""
    if rng.random() < 0.15:
        text = rng.choice(("a picture of ", "an image of ", "the ")) + text
    return text + (" ." if rng.random() < 0.1 else "")
