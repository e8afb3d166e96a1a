"""What diffusers' own pipelines take and need: a closed table, a row for each kind of model.

Data alone; imports no torch. A row says what a class was found to be, in the words of family.py.
Must not know how a pipeline is loaded or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ldm_batch.columns import IMAGE, MASK
from ldm_batch.diffusion.family.family import FLOW_SCHEDULER, Drawing, Family

CLIP_TOKENS = 77
CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")
QWEN_TOKENIZERS = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that a `model_index.json` may name and that are never loaded: they make no image."""
LOW_RES_SCHEDULER = "low_res_scheduler"
"""The part of a model that enlarges which adds noise to the image."""

_CLIP = ("CLIPTextModel",)
_CLIP_2 = ("CLIPTextModelWithProjection",)
_T5 = ("T5EncoderModel",)
_VAE = ("AutoencoderKL",)
_UNET = ("UNet2DConditionModel",)

_TEXT, _IMAGE, _INPAINT = "text_to_image", "image_to_image", "inpainting"
_ENLARGE = "super_resolution"


def _changes(pipeline: str, **more: Any) -> Drawing:
    """How an image becomes another one."""
    return Drawing(pipeline=pipeline, has_strength=True, pictures=(IMAGE,), **more)


def _repaints(pipeline: str, **more: Any) -> Drawing:
    """How what a mask marks of an image is painted anew."""
    return Drawing(pipeline=pipeline, has_strength=True, pictures=(IMAGE, MASK), **more)


def _drawn(
    text: str, image: str | None = None, inpaint: str | None = None, **of_inpaint: bool
) -> Mapping[str, Drawing]:
    """The tasks of a family, by the classes that draw them."""
    found = {_TEXT: Drawing(pipeline=text)}
    if image is not None:
        found[_IMAGE] = _changes(image)
    if inpaint is not None:
        found[_INPAINT] = _repaints(inpaint, **of_inpaint)
    return found


_SD = Family(
    tasks={
        _TEXT: Drawing(pipeline="StableDiffusionPipeline", has_rescale=True),
        _IMAGE: _changes("StableDiffusionImg2ImgPipeline", has_size=False),
        _INPAINT: _repaints("StableDiffusionInpaintPipeline"),
    },
    parts={
        "text_encoder": _CLIP,
        "tokenizer": CLIP_TOKENIZERS,
        "unet": _UNET,
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
    },
    denoiser="unet",
    loras=("unet", "text_encoder"),
    max_tokens=CLIP_TOKENS,
    is_limit_given=False,
    has_eta=True,
    settings={"requires_safety_checker": False},
    always={**dict.fromkeys(NOT_LOADED[:2]), "requires_safety_checker": False},
    is_flow=False,
    has_own_noise=True,
    patch=1,
)
_SDXL = Family(
    tasks={
        _TEXT: Drawing(pipeline="StableDiffusionXLPipeline", has_rescale=True),
        _IMAGE: _changes("StableDiffusionXLImg2ImgPipeline", has_size=False, has_rescale=True),
        _INPAINT: _repaints("StableDiffusionXLInpaintPipeline", has_rescale=True),
    },
    parts={
        "text_encoder": _CLIP,
        "text_encoder_2": _CLIP_2,
        "tokenizer": CLIP_TOKENIZERS,
        "tokenizer_2": CLIP_TOKENIZERS,
        "unet": _UNET,
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
    },
    denoiser="unet",
    loras=("unet", "text_encoder", "text_encoder_2"),
    max_tokens=CLIP_TOKENS,
    is_limit_given=False,
    is_empty_none=True,
    has_eta=True,
    settings={"force_zeros_for_empty_prompt": True, "add_watermarker": None},
    always={"add_watermarker": False},
    is_flow=False,
    has_own_noise=True,
    patch=1,
)
_FLUX = Family(
    tasks=_drawn("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    parts={
        "text_encoder": _CLIP,
        "text_encoder_2": _T5,
        "tokenizer": CLIP_TOKENIZERS,
        "tokenizer_2": T5_TOKENIZERS,
        "transformer": ("FluxTransformer2DModel",),
        "vae": _VAE,
    },
    loras=("transformer", "text_encoder"),
    counted_by="tokenizer_2",
    max_tokens=512,
    max_tokens_undistilled=256,
    has_negative=False,
    native_latent=128,
)

FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionInpaintPipeline": replace(_SD, tasks={_INPAINT: _SD.tasks[_INPAINT]}),
    "StableDiffusionUpscalePipeline": replace(
        _SD,
        tasks={
            _ENLARGE: Drawing(
                pipeline="StableDiffusionUpscalePipeline",
                has_size=False,
                has_noise_level=True,
                pictures=(IMAGE,),
            )
        },
        parts={**_SD.parts, "vae": _VAE, LOW_RES_SCHEDULER: ("DDPMScheduler",)},
        settings={"max_noise_level": 350, "watermarker": None},
        always=dict.fromkeys((*NOT_LOADED[:2], "watermarker")),
        pixels=1,
    ),
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": replace(
        _SDXL,
        tasks={_INPAINT: _SDXL.tasks[_INPAINT]},
        settings={**_SDXL.settings, "requires_aesthetics_score": False},
    ),
    "StableDiffusion3Pipeline": Family(
        tasks=_drawn(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
            is_unshifted=True,
        ),
        parts={
            "text_encoder": _CLIP_2,
            "text_encoder_2": _CLIP_2,
            "text_encoder_3": _T5,
            "tokenizer": CLIP_TOKENIZERS,
            "tokenizer_2": CLIP_TOKENIZERS,
            "tokenizer_3": T5_TOKENIZERS,
            "transformer": ("SD3Transformer2DModel",),
            "vae": _VAE,
        },
        loras=("transformer", "text_encoder", "text_encoder_2"),
        optional=("text_encoder_3", "tokenizer_3"),
        counted_by="tokenizer_3",
        max_tokens=256,
        positions="pos_embed_max_size",
    ),
    "FluxPipeline": _FLUX,
    "FluxFillPipeline": replace(_FLUX, tasks={_INPAINT: _repaints("FluxFillPipeline")}),
    "PixArtSigmaPipeline": Family(
        tasks=_drawn("PixArtSigmaPipeline"),
        parts={
            "text_encoder": _T5,
            "tokenizer": T5_TOKENIZERS,
            "transformer": ("PixArtTransformer2DModel", "Transformer2DModel"),
            "vae": _VAE,
        },
        loras=(),
        max_tokens=300,
        template="lower",
        has_eta=True,
        fixed={"use_resolution_binning": False, "clean_caption": False},
        is_flow=False,
        has_own_noise=True,
    ),
    "SanaPipeline": Family(
        tasks=_drawn("SanaPipeline"),
        parts={
            "text_encoder": ("Gemma2Model",),
            "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast"),
            "transformer": ("SanaTransformer2DModel",),
            "vae": ("AutoencoderDC",),
        },
        max_tokens=300,
        template="instructed",
        has_eta=True,
        fixed={"use_resolution_binning": False, "clean_caption": False},
        schedulers=(FLOW_SCHEDULER, "DPMSolverMultistepScheduler"),
        has_own_noise=True,
        vae_levels="encoder_block_out_channels",
        patch=1,
        pixels=32,
    ),
    "ZImagePipeline": Family(
        tasks=_drawn("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
        parts={
            "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
            "tokenizer": QWEN_TOKENIZERS,
            "transformer": ("ZImageTransformer2DModel",),
            "vae": _VAE,
        },
        max_tokens=512,
        template="chat",
        padding="grouped",
        native_latent=128,
        positions="axes_lens",
    ),
    "QwenImagePipeline": Family(
        tasks=_drawn("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
        parts={
            "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
            "tokenizer": QWEN_TOKENIZERS,
            "transformer": ("QwenImageTransformer2DModel",),
            "vae": ("AutoencoderKLQwenImage",),
        },
        max_tokens=512,
        template="qwen",
        guidance="true_cfg_scale",
        padding="embeddings",
        native_latent=128,
        vae_levels="temperal_downsample",
        vae_halvings=0,
    ),
}
"""Class of a pipeline in `model_index.json` -> what is known of it. `tests/test_family*.py` run
each row and task with a tiny model of random weights."""

SUCCESSORS = {"Transformer2DModel": "PixArtTransformer2DModel"}
"""What became of a class since models were published by its name."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
