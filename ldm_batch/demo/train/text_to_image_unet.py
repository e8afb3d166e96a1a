"""The UNet of text-to-image: v-prediction on 8 x 8 latents, told the scene in two ways.

Besides cross-attention at 4 x 4, the pooled text is added to the time embedding
(`addition_embed_type="text"`), so that every residual block knows the whole scene.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, LDMTextToImagePipeline, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertTokenizer

from ldm_batch.demo.checker import Verdict, check
from ldm_batch.demo.render import render
from ldm_batch.demo.train.autoencoder import LATENT_CHANNELS
from ldm_batch.demo.train.compact import (
    CompactTextTimeEmbedding,
    cross_attention_mask,
    encode_text,
    tokenize,
)
from ldm_batch.demo.train.loop import step_generator
from ldm_batch.demo.train.scenes import to_tensor
from ldm_batch.demo.world import SceneSpec, caption, draw_spec, draw_specs, layout

NULL_CAPTION_SHARE = 0.1
ONE_OBJECT_SHARE = 0.4
POOLING_HEADS = 4


def make_scheduler() -> DDIMScheduler:
    """Make the noise schedule of both demo models: v-prediction, trailing steps, no clipping."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def make_unet(text_width: int) -> UNet2DConditionModel:
    """Make an untrained UNet for text embeddings of `text_width` channels."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(48, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=POOLING_HEADS,
    )
    torch.nn.init.zeros_(unet.conv_out.weight)
    use_compact_pooling(unet)
    return unet


def use_compact_pooling(unet: UNet2DConditionModel) -> None:
    """Let the UNet's pooled text embedding take 21 tokens too; parameters and names are kept."""
    plain = unet.add_embedding
    compact = CompactTextTimeEmbedding(
        plain.proj.in_features, plain.proj.out_features, plain.pool.num_heads
    )
    compact.load_state_dict(plain.state_dict())
    unet.add_embedding = compact


@dataclass(frozen=True)
class LatentScenes:
    """Training scenes: latents (N, 8, 8, 8) and caption embeddings (N, 21, width), as float16."""

    latents: Tensor
    embeddings: Tensor


def load_latent_scenes(pipeline: LDMTextToImagePipeline, num: int, file: Path) -> LatentScenes:
    """Encode `num` scenes of the training split once, and keep them in `file` for a resumed run."""
    if not file.exists():
        made = _encode_scenes(pipeline, num)
        save_file({"latents": made.latents, "embeddings": made.embeddings}, file)
    tensors = load_file(file)
    if len(tensors["latents"]) != num:
        raise ValueError(f"{file} holds {len(tensors['latents'])} scenes, not {num}")
    return LatentScenes(tensors["latents"], tensors["embeddings"])


@torch.no_grad()
def _encode_scenes(pipeline: LDMTextToImagePipeline, num: int) -> LatentScenes:
    autoencoder: AutoencoderKL = pipeline.vqvae
    bert: LDMBertModel = pipeline.bert
    tokenizer: BertTokenizer = pipeline.tokenizer
    rng = random.Random("latent scenes")
    latents, embeddings = [], []
    for start in range(0, num, 64):
        objects = [1 if rng.random() < ONE_OBJECT_SHARE else 2 for _ in range(min(64, num - start))]
        specs = [draw_spec(rng, num_objects=n, split="train") for n in objects]
        images = to_tensor([render(spec, layout(spec, rng)) for spec in specs])
        latents.append(autoencoder.encode(images).latent_dist.mode().half().contiguous())
        ids = tokenize(tokenizer, [caption(spec) for spec in specs])
        embeddings.append(encode_text(bert, ids).half())
    return LatentScenes(torch.cat(latents), torch.cat(embeddings))


class TextToImageStage:
    """Training of the UNet inside a pipeline whose other parts are trained already."""

    name = "unet"

    def __init__(
        self,
        pipeline: LDMTextToImagePipeline,
        scenes: LatentScenes,
        *,
        seed: int,
        batch_size: int = 48,
    ) -> None:
        self.model = pipeline.unet
        self.pipeline = pipeline
        self.scenes = scenes
        self.seed = seed
        self.batch_size = batch_size
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod
        with torch.no_grad():
            self.null = encode_text(pipeline.bert, tokenize(pipeline.tokenizer, [""]))
        self.mask = cross_attention_mask(batch_size)
        self.validation = validation_scenes(32)

    def loss(self, step: int) -> Tensor:
        """Mean squared error of the predicted velocity, timesteps spread evenly over the batch."""
        num, generator = self.batch_size, step_generator(self.seed, step)
        chosen = self._choose(step)
        latents = self.scenes.latents[chosen].float()
        embeddings = self.scenes.embeddings[chosen].float()
        is_null = torch.rand(num, generator=generator) < NULL_CAPTION_SHARE
        embeddings = torch.where(is_null[:, None, None], self.null, embeddings)
        spread = torch.arange(num) / num + torch.rand(1, generator=generator)
        timesteps = (spread % 1 * 1000).long()
        noise = torch.randn(latents.shape, generator=generator)
        alpha = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        signal_scale, noise_scale = alpha.sqrt(), (1 - alpha).sqrt()
        noisy = signal_scale * latents + noise_scale * noise
        predicted = self.model(
            noisy.to(memory_format=torch.channels_last),
            timesteps,
            encoder_hidden_states=embeddings,
            encoder_attention_mask=self.mask,
        ).sample
        return F.mse_loss(predicted, signal_scale * noise - noise_scale * latents)

    def evaluate(self) -> dict[str, float]:
        """Checker on 32 held-out scenes of each kind: 20 DDIM steps, guidance 2."""
        metrics = {}
        for num_objects, specs in self.validation.items():
            verdicts = sample_verdicts(self.pipeline, specs, seed=num_objects)
            for attribute in ("count", "colour", "shape", "is_right"):
                share = sum(getattr(v, attribute) for v in verdicts) / len(verdicts)
                metrics[f"{attribute}_{num_objects}"] = share
        return metrics

    def _choose(self, step: int) -> Tensor:
        """Indices of the step's scenes: every epoch goes through all in its own order."""
        per_epoch = len(self.scenes.latents) // self.batch_size
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(
            len(self.scenes.latents), generator=step_generator(self.seed + 1, epoch)
        )
        return order[place * self.batch_size : (place + 1) * self.batch_size]


def validation_scenes(num: int) -> dict[int, list[SceneSpec]]:
    """Draw `num` held-out scenes of one object and `num` of two."""
    return {n: draw_specs(97 + n, num, num_objects=n, split="test") for n in (1, 2)}


def sample_verdicts(
    pipeline: LDMTextToImagePipeline, specs: list[SceneSpec], seed: int
) -> list[Verdict]:
    """Generate one image of each scene with 20 DDIM steps at guidance 2, and judge it."""
    images = pipeline(
        [caption(spec) for spec in specs],
        num_inference_steps=20,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images
    return [check(image * 255, spec) for image, spec in zip(images, specs, strict=True)]
