"""What diffusers' own text-to-image pipelines take and need: a closed table, one row a class.

Data alone; imports no torch. A row says what a class was found to be: which parts it may be built
of, what its call takes, and where its noise comes from. Must not know how a pipeline is loaded or
run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CLIP_TOKENS = 77
CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")
QWEN_TOKENIZERS = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that a `model_index.json` may name and that are never loaded: they make no image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One pipeline class of diffusers, as a job may draw by it."""

    parts: Mapping[str, tuple[str, ...]]
    """Sub-folder of each part -> the only classes that it may be of; the scheduler aside."""
    optional: tuple[str, ...] = ()
    """Parts that a model may lack."""
    denoiser: Literal["unet", "transformer"] = "transformer"
    loras: tuple[str, ...] = ("transformer",)
    """Parts that diffusers fuses LoRAs into."""
    counted_by: str = "tokenizer"
    """Which tokenizer counts a prompt's tokens: the one that takes most."""
    max_tokens: int
    """Tokens of a prompt, special ones included, that the text encoder takes."""
    max_tokens_undistilled: int | None = None
    """The same where the denoiser was not trained for guidance as an input."""
    is_limit_given: bool = True
    """Whether the call is told `max_tokens`, as `max_sequence_length`."""
    template: Literal["none", "lower", "chat", "qwen"] = "none"
    """What is made of a prompt before its tokens are counted."""
    guidance: str = "guidance_scale"
    """The call's name of it."""
    has_negative: bool = True
    is_empty_none: bool = False
    """Whether an empty negative prompt is no negative prompt to the call, which may mean something
    else than the embedding of an empty text."""
    has_eta: bool = False
    has_rescale: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of every call."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the pipeline that its `model_index.json` may say, and what they are otherwise."""
    always: Mapping[str, Any] = field(default_factory=dict)
    """Settings that are never the model's to say."""
    is_flow: bool = True
    """Whether the model is sampled by its own scheduler alone."""
    schedulers: tuple[str, ...] = (FLOW_SCHEDULER,)
    """Of models that are: the classes that it may be. Any other model takes our closed list."""
    has_own_noise: bool = False
    """Whether the noise of every step comes from the images' generators."""
    padding: Literal["whole", "embeddings", "grouped"] = "whole"
    """How texts of all lengths come to one shape, on which last bits depend: `whole`: the call pads
    each to the most it takes. Where it pads to the longest of a batch, `embeddings`: we encode
    texts one by one and pad what comes out. Where it has no one length, `grouped`: texts of one
    call have one length in steps of `text_step`, so that a batch of several takes several calls."""
    text_step: int = 32
    native_latent: int | None = None
    """Side of the latents that the model was trained for; None: the denoiser's `sample_size`."""
    vae_levels: str = "block_out_channels"
    """The list in the VAE's configuration whose length tells its downsampling."""
    vae_halvings: int = -1
    """Halvings of the VAE beside one for each entry of that list."""
    patch: int = 2
    """Latent pixels that a side must be a multiple of."""
    pixels: int = 8
    """Pixels that a side must be a multiple of, whatever the VAE."""


_CLIP = ("CLIPTextModel",)
_CLIP_2 = ("CLIPTextModelWithProjection",)
_T5 = ("T5EncoderModel",)
_VAE = ("AutoencoderKL",)
_UNET = ("UNet2DConditionModel",)

FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family(
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
        has_rescale=True,
        settings={"requires_safety_checker": False},
        always={
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        },
        is_flow=False,
        has_own_noise=True,
        patch=1,
    ),
    "StableDiffusionXLPipeline": Family(
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
        has_rescale=True,
        settings={"force_zeros_for_empty_prompt": True, "add_watermarker": None},
        always={"add_watermarker": False},
        is_flow=False,
        has_own_noise=True,
        patch=1,
    ),
    "StableDiffusion3Pipeline": Family(
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
    ),
    "FluxPipeline": Family(
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
    ),
    "PixArtSigmaPipeline": Family(
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
        parts={
            "text_encoder": ("Gemma2Model",),
            "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast"),
            "transformer": ("SanaTransformer2DModel",),
            "vae": ("AutoencoderDC",),
        },
        max_tokens=300,
        template="lower",
        has_eta=True,
        fixed={"use_resolution_binning": False, "clean_caption": False},
        schedulers=(FLOW_SCHEDULER, "DPMSolverMultistepScheduler"),
        has_own_noise=True,
        vae_levels="encoder_block_out_channels",
        patch=1,
        pixels=32,
    ),
    "ZImagePipeline": Family(
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
    ),
    "QwenImagePipeline": Family(
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
"""Class of a pipeline in `model_index.json` -> what is known of it. `tests/test_family.py` runs
each row with a tiny model of random weights: again, in reverse, beside other prompts, with noise in
every step."""

SUCCESSORS = {"Transformer2DModel": "PixArtTransformer2DModel"}
"""What became of a class since models were published by its name."""
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
