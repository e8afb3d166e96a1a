"""Training of text-to-image from start to end: text encoder, autoencoder, UNet, pipeline."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, LDMTextToImagePipeline

from ldm_batch.demo.train.autoencoder import (
    AutoencoderStage,
    JudgedAutoencoder,
    fold_statistics,
)
from ldm_batch.demo.train.loop import Settings, train
from ldm_batch.demo.train.optim import LearningRate
from ldm_batch.demo.train.save import save_pipeline
from ldm_batch.demo.train.text_encoder import (
    ReadingBert,
    TextEncoderStage,
    make_bert,
    make_tokenizer,
)
from ldm_batch.demo.train.text_to_image_unet import (
    TextToImageStage,
    load_latent_scenes,
    make_scheduler,
    make_unet,
)

TEXT_ENCODER = Settings(LearningRate(4e-3, 1200, 300), evaluate_every=150, average_decay=0.99)
AUTOENCODER = Settings(LearningRate(2e-3, 2000, 500), evaluate_every=250, average_decay=0.99)
UNET = Settings(LearningRate(7e-3, 2500, 750), evaluate_every=500, weight_decay=1e-3)
NUM_LATENT_SCENES = 16_000
MIN_RIGHT = 0.97


def train_text_to_image(work: Path, out: Path, *, start: Path | None, seed: int) -> None:
    """Train all parts in turn and save a `LDMTextToImagePipeline` to `out`.

    The autoencoder starts from that of the pipeline at `start`; the other parts from nothing.
    Raises RuntimeError where the autoencoder misses its gate, before the UNet's hours are spent.
    """
    if start is None:
        raise ValueError("text-to-image needs --start, a pipeline whose autoencoder to go on from")
    tokenizer = make_tokenizer(work / "tokenizer")
    reading = ReadingBert(make_bert())
    train(TextEncoderStage(reading, tokenizer, seed), TEXT_ENCODER, work)
    autoencoder = _train_autoencoder(work, start, seed)
    pipeline = LDMTextToImagePipeline(
        vqvae=autoencoder,
        bert=reading.bert,
        tokenizer=tokenizer,
        unet=make_unet(reading.bert.config.d_model),
        scheduler=make_scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    scenes = load_latent_scenes(pipeline, NUM_LATENT_SCENES, work / "latents.safetensors")
    pipeline.unet.to(memory_format=torch.channels_last)
    train(TextToImageStage(pipeline, scenes, seed=seed), UNET, work)
    pipeline.unet.to(memory_format=torch.contiguous_format)
    save_pipeline(pipeline, out)


def _train_autoencoder(work: Path, start: Path, seed: int) -> AutoencoderKL:
    autoencoder = AutoencoderKL.from_pretrained(start, subfolder="vqvae")
    stage = AutoencoderStage(JudgedAutoencoder(autoencoder), seed)
    train(stage, AUTOENCODER, work)
    fold_statistics(autoencoder, seed)
    with torch.no_grad():
        right = stage.evaluate()["right"]
    if right < MIN_RIGHT:
        raise RuntimeError(f"the autoencoder is right on {right:.1%} of scenes, under {MIN_RIGHT}")
    return autoencoder
