"""Tiny pipelines of every row of `FAMILIES`, random weights from a seed, in diffusers' layout."""

import string
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

CHARACTERS = [c for c in string.printable if not c.isspace()]
CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {**BETAS, "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}
SPECIAL = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
WIDTH = 32
"""Of text embeddings, and of most layers."""


def _vocabulary(special: list[str], *more: str) -> dict[str, int]:
    return {token: number for number, token in enumerate([*special, *CHARACTERS, *more])}


def clip_tokenizer() -> Any:
    ends = [f"{c}</w>" for c in CHARACTERS]
    special = ["<|pad|>", "<|endoftext|>", "<|startoftext|>"]
    return transformers.CLIPTokenizer(
        vocab=_vocabulary(special, *ends), merges=[], pad_token="<|pad|>", model_max_length=77
    )


def t5_tokenizer() -> Any:
    tokens = ["<pad>", "</s>", "<unk>", "▁", *CHARACTERS]
    scored = [(token, -float(number)) for number, token in enumerate(tokens)]
    return transformers.T5Tokenizer(vocab=scored, extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> Any:
    vocab = _vocabulary(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], "▁")
    return transformers.GemmaTokenizer(vocab=vocab, merges=[], padding_side="right")


def qwen_tokenizer() -> Any:
    vocab = _vocabulary(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "Ġ", "Ċ")
    made = transformers.Qwen2Tokenizer(vocab=vocab, merges=[])
    made.chat_template = CHAT
    return made


def clip(name: str = "CLIPTextModel") -> Any:
    config = transformers.CLIPTextConfig(
        **SPECIAL,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=256,
        projection_dim=WIDTH,
        hidden_act="gelu",
    )
    return getattr(transformers, name)(config)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=256,
        d_model=WIDTH,
        d_kv=8,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.T5EncoderModel(config)


def language_model(name: str, **more: Any) -> Any:
    """Of one head where texts are long: Sana's stand behind an instruction of 1,500 letters."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2, **more}
    config = getattr(transformers, f"{name}Config")(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        head_dim=8,
        vocab_size=256,
        **SPECIAL,
        **heads,
    )
    return getattr(transformers, f"{name}Model")(config)


def vae(latent_channels: int = 4, **more: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        layers_per_block=1,
        sample_size=32,
        norm_num_groups=4,
        **more,
    )


def unet(cross_attention_dim: int, **more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=8,
        **more,
    )


def flow(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def stable_diffusion() -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(WIDTH),
        "scheduler": diffusers.DDIMScheduler(**DDIM),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion_inpaint() -> dict[str, Any]:
    """Of nine channels: latents, the mask, and latents of what it leaves."""
    return {**stable_diffusion(), "unet": unet(WIDTH, in_channels=9, out_channels=4)}


def stable_diffusion_upscale() -> dict[str, Any]:
    """Latents of a pixel each, beside the image; 2 halvings, as its makers' model has."""
    enlarging = {"in_channels": 7, "out_channels": 4, "num_class_embeds": 1000}
    return {
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(16, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=0.08333,
        ),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(WIDTH, **enlarging),
        "low_res_scheduler": diffusers.DDPMScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear"
        ),
        "scheduler": diffusers.DDIMScheduler(**DDIM),
        "max_noise_level": 350,
    }


def stable_diffusion_xl(**of_unet: Any) -> dict[str, Any]:
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
        "transformer_layers_per_block": (1, 1),
        "use_linear_projection": True,
    }
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "text_encoder_2": clip("CLIPTextModelWithProjection"),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet(2 * WIDTH, **added, **of_unet),
        "scheduler": diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1),
        "force_zeros_for_empty_prompt": True,
        "add_watermarker": False,
    }


def stable_diffusion_xl_inpaint() -> dict[str, Any]:
    parts = stable_diffusion_xl(in_channels=9, out_channels=4)
    return {**parts, "requires_aesthetics_score": False}


def stable_diffusion_3() -> dict[str, Any]:
    return {
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=32,
        ),
        "scheduler": flow(shift=3.0),
        "vae": vae(16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609),
        "text_encoder": clip("CLIPTextModelWithProjection"),
        "text_encoder_2": clip("CLIPTextModelWithProjection"),
        "text_encoder_3": transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=256, d_model=2 * WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=4
            )
        ),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": t5_tokenizer(),
    }


def flux(**of_transformer: Any) -> dict[str, Any]:
    return {
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": vae(16, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159),
        "text_encoder": clip(),
        "text_encoder_2": t5(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": t5_tokenizer(),
        "transformer": diffusers.FluxTransformer2DModel(
            patch_size=1,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=True,
            **{"in_channels": 64, **of_transformer},
        ),
    }


def flux_fill() -> dict[str, Any]:
    """Beside packed latents those of what the mask leaves, and the mask: 2 x 2 pixels a latent."""
    return flux(in_channels=64 + 64 + 16, out_channels=64)


def pixart_sigma() -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5(),
        "vae": vae(),
        "transformer": diffusers.PixArtTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=WIDTH,
            in_channels=4,
            out_channels=8,
            cross_attention_dim=32,
        ),
        "scheduler": diffusers.DPMSolverMultistepScheduler(),
    }


def sana() -> dict[str, Any]:
    levels = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"),
            "block_out_channels": (16, 16),
            "qkv_multiscales": ((), (5,)),
            "layers_per_block": (1, 1),
        }.items()
    }
    return {
        "tokenizer": gemma_tokenizer(),
        "text_encoder": language_model(
            "Gemma2", num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1
        ),
        "vae": diffusers.AutoencoderDC(
            **levels,
            in_channels=3,
            latent_channels=4,
            attention_head_dim=8,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        ),
        "transformer": diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=4,
            attention_head_dim=8,
            num_cross_attention_heads=4,
            cross_attention_head_dim=8,
            cross_attention_dim=32,
            caption_channels=WIDTH,
            sample_size=32,
        ),
        "scheduler": flow(shift=3.0),
    }


def z_image() -> dict[str, Any]:
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[1024, 64, 64],
    )
    with torch.no_grad():
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    return {
        "transformer": transformer,
        "vae": vae(16, shift_factor=0.1159),
        "scheduler": flow(shift=3.0),
        "text_encoder": language_model("Qwen3"),
        "tokenizer": qwen_tokenizer(),
    }


def qwen_image() -> dict[str, Any]:
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    texts = {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 256,
        "rope_parameters": rope,
        **SPECIAL,
    }
    images = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    tokens = ("vision_start", "vision_end", "vision", "image", "video")
    numbers = {f"{name}_token_id": 200 + number for number, name in enumerate(tokens)}
    config = transformers.Qwen2_5_VLConfig(text_config=texts, vision_config=images, **numbers)
    return {
        "transformer": diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 2, 2),
        ),
        "vae": diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        "scheduler": flow(),
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration(config),
        "tokenizer": qwen_tokenizer(),
    }


MAKERS: dict[str, Callable[[], dict[str, Any]]] = {
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionInpaintPipeline": stable_diffusion_inpaint,
    "StableDiffusionUpscalePipeline": stable_diffusion_upscale,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "StableDiffusionXLInpaintPipeline": stable_diffusion_xl_inpaint,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
    "FluxFillPipeline": flux_fill,
    "PixArtSigmaPipeline": pixart_sigma,
    "SanaPipeline": sana,
    "ZImagePipeline": z_image,
    "QwenImagePipeline": qwen_image,
}
"""Class of a pipeline -> its parts, tiny."""


def make_family(kind: str, folder: Path) -> Path:
    """Write the tiny pipeline of a class into a folder."""
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        pipe = getattr(diffusers, kind)(**MAKERS[kind]())
        pipe.save_pretrained(folder)
    return folder
