"""What is said of one kind of diffusers' own pipelines: its parts, its call, its noise.

Data alone; imports no torch. Must not know any one of them (table.py does), nor how a pipeline is
loaded or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How one task is drawn by the parts of a family."""

    pipeline: str
    """diffusers' class whose call draws it."""
    has_size: bool = True
    """Whether its call is told height and width, and does not take them from the image."""
    has_rescale: bool = False
    has_strength: bool = False
    has_noise_level: bool = False
    pictures: tuple[str, ...] = ()
    """What a row brings of `IMAGE` and `MASK`."""
    is_unshifted: bool = False
    """Whether it hands the VAE latents without the shift that encoding took from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One pipeline class of diffusers, as a job may draw by it."""

    tasks: Mapping[str, Drawing]
    """Name of each task that it draws -> how."""
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
    template: Literal["none", "lower", "instructed", "chat", "qwen"] = "none"
    """What is made of a prompt before its tokens are counted."""
    guidance: str = "guidance_scale"
    """The call's name of it."""
    has_negative: bool = True
    is_empty_none: bool = False
    """Whether an empty negative prompt is no negative prompt to the call, which may mean something
    else than the embedding of an empty text."""
    has_eta: bool = False
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
    """How texts come to one shape, on which last bits depend: `whole`: the call pads each to the
    most it takes. Where it pads to the longest of a batch, `embeddings`: we encode texts one by one
    and pad what comes out. Where it has no one length, `grouped`: texts of one call have one."""
    text_step: int = 32
    """Of the lengths of `grouped` texts."""
    native_latent: int | None = None
    """Side of the latents that the model was trained for; None: the denoiser's `sample_size`."""
    positions: str | None = None
    """The denoiser's setting of how many positions its images may have, if it has one."""
    vae_levels: str = "block_out_channels"
    """The list in the VAE's configuration whose length tells its downsampling."""
    vae_halvings: int = -1
    """Halvings of the VAE beside one for each entry of that list."""
    patch: int = 2
    """Latent pixels that a side must be a multiple of."""
    pixels: int = 8
    """Pixels that a side must be a multiple of, whatever the VAE."""
