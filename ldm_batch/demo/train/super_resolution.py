"""Training of super-resolution from nothing: autoencoder, codebook, UNet, pipeline."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LDMSuperResolutionPipeline,
    UNet2DModel,
    VQModel,
)
from torch import Tensor

from ldm_batch.demo.train.codebook import install_codebook
from ldm_batch.demo.train.details import (
    DOWNSAMPLING,
    Imitations,
    downsample,
    draw_details,
    draw_scenes_in_detail,
    make_imitations,
)
from ldm_batch.demo.train.loop import Settings, step_generator, train
from ldm_batch.demo.train.metrics import psnr
from ldm_batch.demo.train.optim import LearningRate
from ldm_batch.demo.train.pass_through import make_pass_through
from ldm_batch.demo.train.save import save_pipeline
from ldm_batch.demo.train.scenes import to_tensor
from ldm_batch.demo.train.text_to_image_unet import make_scheduler

AUTOENCODER = Settings(LearningRate(2e-3, 1800, 400), evaluate_every=200, average_decay=0.99)
UNET = Settings(LearningRate(3e-3, 1000, 500), evaluate_every=250, weight_decay=1e-3)
NUM_CODES = 4096
NUM_IMITATIONS = 512
MAX_IMITATION_NOISE = 0.6
LATENT_NOISE = 0.05


def train_super_resolution(work: Path, out: Path, *, start: Path | None, seed: int) -> None:
    """Train all parts in turn and save a `LDMSuperResolutionPipeline` to `out`.

    `start` is the text-to-image pipeline whose pictures the model learns to enlarge too.
    """
    if start is None:
        raise ValueError("super-resolution needs --start, the text-to-image pipeline to imitate")
    autoencoder = make_autoencoder()
    train(DetailAutoencoderStage(autoencoder, seed), AUTOENCODER, work)
    install_codebook(autoencoder, NUM_CODES, seed)
    autoencoder.requires_grad_(False)
    painter = AutoencoderKL.from_pretrained(start, subfolder="vqvae")
    imitations = make_imitations(painter, NUM_IMITATIONS, MAX_IMITATION_NOISE)
    pipeline = LDMSuperResolutionPipeline(
        vqvae=autoencoder, unet=make_unet(), scheduler=make_scheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    train(SuperResolutionStage(pipeline, imitations, seed), UNET, work)
    save_pipeline(pipeline, out)


def make_autoencoder() -> VQModel:
    """Make an autoencoder of factor 4 with 3 latent channels, started as a pass-through."""
    autoencoder = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 32),
        layers_per_block=1,
        latent_channels=3,
        num_vq_embeddings=NUM_CODES,
        norm_num_groups=1,
        sample_size=64,
        mid_block_add_attention=False,
    )
    make_pass_through(autoencoder)
    return autoencoder


def make_unet() -> UNet2DModel:
    """Make a convolutional UNet on 3 latent and 3 low-resolution channels."""
    return UNet2DModel(
        sample_size=16,
        in_channels=6,
        out_channels=3,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        add_attention=False,
    )


class DetailAutoencoderStage:
    """Training of the autoencoder without its codebook, on 48-px windows of scenes."""

    name = "detail_autoencoder"

    def __init__(self, autoencoder: VQModel, seed: int) -> None:
        self.model = autoencoder
        self.seed = seed
        self.validation = to_tensor(draw_scenes_in_detail(96, 8))

    def loss(self, step: int) -> Tensor:
        """L1 + 6 L2 of the decoding of slightly noisy latents."""
        rng = random.Random(f"detail autoencoder {self.seed} {step}")
        images = to_tensor(draw_details(rng, 12, 48))
        latents = self.model.encode(images).latents
        deviation = latents.detach().std((0, 2, 3), keepdim=True)
        noise = torch.randn(latents.shape, generator=step_generator(self.seed, step))
        noisy = latents + LATENT_NOISE * deviation * noise
        error = self.model.decode(noisy, force_not_quantize=True).sample - images
        loss: Tensor = error.abs().mean() + 6 * error.pow(2).mean() + 1e-4 * latents.pow(2).mean()
        return loss

    def evaluate(self) -> dict[str, float]:
        """PSNR of whole held-out scenes of 256 px, latents not quantised."""
        latents = self.model.encode(self.validation).latents
        decoded = self.model.decode(latents, force_not_quantize=True).sample
        return {"psnr_db": psnr(decoded, self.validation)}


class SuperResolutionStage:
    """Training of the UNet on 64-px windows, three of four reduced from them, one imitated."""

    name = "super_resolution_unet"

    def __init__(
        self, pipeline: LDMSuperResolutionPipeline, imitations: Imitations, seed: int
    ) -> None:
        self.model: UNet2DModel = pipeline.unet
        self.pipeline = pipeline
        self.imitations = imitations
        self.seed = seed
        scheduler: DDIMScheduler = pipeline.scheduler
        self.alphas_cumprod = scheduler.alphas_cumprod
        scenes = draw_scenes_in_detail(96, 8)
        self.validation = to_tensor(scenes)
        self.low_resolution = to_tensor([downsample(scene) for scene in scenes])

    def loss(self, step: int) -> Tensor:
        """Mean squared error of the predicted velocity of the latents."""
        images, low_resolution = self._draw_batch(step)
        generator = step_generator(self.seed + 1, step)
        with torch.no_grad():
            latents = self.pipeline.vqvae.encode(images).latents
        num = len(latents)
        spread = torch.arange(num) / num + torch.rand(1, generator=generator)
        timesteps = (spread % 1 * 1000).long()
        noise = torch.randn(latents.shape, generator=generator)
        alpha = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        signal_scale, noise_scale = alpha.sqrt(), (1 - alpha).sqrt()
        noisy = signal_scale * latents + noise_scale * noise
        predicted = self.model(torch.cat([noisy, low_resolution], 1), timesteps).sample
        return F.mse_loss(predicted, signal_scale * noise - noise_scale * latents)

    def evaluate(self) -> dict[str, float]:
        """PSNR of whole held-out scenes enlarged to 256 px, in 4 and in 20 DDIM steps."""
        return {f"psnr_db_at_{n}_steps": psnr(self._enlarge(n), self.validation) for n in (4, 20)}

    def _enlarge(self, num_inference_steps: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images = self.pipeline(
            self.low_resolution,
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type="pt",
        ).images
        enlarged: Tensor = images * 2 - 1
        return enlarged

    def _draw_batch(self, step: int) -> tuple[Tensor, Tensor]:
        rng = random.Random(f"super-resolution {self.seed} {step}")
        details = draw_details(rng, 12, 64)
        reduced = to_tensor([downsample(d, rng.choice(DOWNSAMPLING)) for d in details])
        images, imitations = self.imitations.draw_pairs(rng, 4, 64)
        return torch.cat([to_tensor(details), images]), torch.cat([reduced, imitations])
