"""Text to image: prompts and seeds in, pictures out, each a function of its own request alone.

The pipeline object holds the model and is used from one shard to the next; it must not know rows,
shards or files of the dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch

from ldm_batch.config import SchedulerConfig
from ldm_batch.diffusion.call_arguments import (
    Batch,
    NoiseSource,
    Output,
    check_arguments,
    check_output,
    make_output,
    plan_call,
    tell_not_finite,
)
from ldm_batch.diffusion.call_values import number, whole
from ldm_batch.diffusion.describe import describe
from ldm_batch.diffusion.from_model import check_text_to_image
from ldm_batch.diffusion.load import Components
from ldm_batch.diffusion.noise import make_generator, make_noise
from ldm_batch.diffusion.paint import Painter
from ldm_batch.diffusion.pipeline import LoadedPipeline
from ldm_batch.diffusion.pixels import OutputType, Pictures, to_uint8, to_unit_range
from ldm_batch.diffusion.quality import judge
from ldm_batch.diffusion.sampler import count_steps
from ldm_batch.diffusion.text_encoder import TextEncoder
from ldm_batch.records import Call, Fault, Made, PromptCount, Request

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

GUIDED = math.inf
"""Stands in a batch key for any guidance that needs both halves of the batch."""


class TextToImageArguments(TypedDict, total=False):
    """What a call may be given besides its prompts; see `TextToImage.__call__`."""

    negative_prompt: str | Iterable[str] | None
    num_inference_steps: int
    guidance_scale: float
    eta: float
    height: int | None
    width: int | None
    num_images_per_prompt: int
    guidance_rescale: float | None
    seed: int | Iterable[int] | None
    generator: torch.Generator | Iterable[torch.Generator] | None
    latents: torch.Tensor | None
    output_type: OutputType


class TextToImage(LoadedPipeline):
    """One loaded text-to-image pipeline; every batch runs at the same fixed shape."""

    def __init__(
        self,
        components: Components,
        scheduler: SchedulerConfig,
        *,
        batch_size: int,
        num_threads: int | None = None,
    ) -> None:
        """Put loaded components together.

        Args:
            num_threads: of torch, while it computes; None: as many as the process has.

        Raises:
            JobError: the components do not fit each other, or the settings are wrong.
        """
        super().__init__(components, scheduler, batch_size=batch_size, num_threads=num_threads)
        check_text_to_image(components)
        self._text = TextEncoder(
            components["tokenizer"], components["bert"], batch_size=self.batch_size
        )
        self._painter = Painter(self._unet, self._vqvae, self._text, self._scheduler, scheduler)
        self.size_multiple = 2 ** (len(self._vqvae.config.block_out_channels) - 1)
        """Height and width must be multiples of this: the first stage's downsampling factor f."""
        side = self._unet.config.sample_size
        height, width = side if isinstance(side, list | tuple) else (side, side)
        self.default_height = int(height) * self.size_multiple
        self.default_width = int(width) * self.size_multiple

    def count_tokens(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Count the tokens of prompts, special ones included; safe from any thread."""
        return self._text.count(prompts)

    def batch_key(self, call: Call) -> tuple[Call, int]:
        """What images of one batch have in common, and how many make one: all of the call but how
        strongly it is guided, where it is guided at all."""
        if call.guidance_scale in (0, 1):  # nothing is rescaled there
            return replace(call, guidance_rescale=None), self.batch_size
        return replace(call, guidance_scale=GUIDED, guidance_rescale=None), self.batch_size

    def generate(self, requests: Sequence[Request]) -> list[np.ndarray | Made | Fault]:
        """Make one image per request, uint8 `[height, width, 3]`, or say why there is none.

        The batch is padded to `batch_size`, so an image's bytes depend on its request alone (in one
        torch thread; in more, its place in the batch may change last bits). An
        image that is not finite or of one colour is tried again once in float32. Where memory ran
        out, or float32 was needed, an image's `made_as` says so.

        Args:
            requests: 1 to `batch_size` of them, all of one `batch_key`.

        Raises:
            ValueError: no or too many requests, or requests of different keys.
            ShardError: memory runs out with one image per model call.
        """
        if not 1 <= len(requests) <= self.batch_size:
            raise ValueError(f"{len(requests)} requests: must be 1 to {self.batch_size}")
        if len({self.batch_key(request.call) for request in requests}) > 1:
            raise ValueError("requests of one batch must have the same call, but for guidance")
        with self._computing():
            self._note_steps(requests[0].call.num_inference_steps)
            return self._draw(requests)

    def _make_once(self, requests: Sequence[Request]) -> list[np.ndarray | Made | Fault]:
        num_images, requests = len(requests), self._shape.fill(requests)
        generators = [make_generator(request.seed) for request in requests]
        decoded = self._painter.paint(
            [request.inputs["prompt"] for request in requests],
            [request.inputs["negative_prompt"] for request in requests],
            make_noise(generators, self._latent_shape(requests[0].call)),
            generators,
            [request.call for request in requests],
        )
        pixels = to_uint8(to_unit_range(decoded))
        judged = [judge(*one) for one in zip(decoded, pixels, requests, strict=True)]
        return judged[:num_images]

    def _latent_shape(self, call: Call) -> tuple[int, int, int]:
        check_arguments(call, self.size_multiple)
        factor = self.size_multiple
        channels = int(self._unet.config.in_channels)
        return channels, call.height // factor, call.width // factor

    def describe(self) -> dict[str, Any]:
        """Return what the images depend on besides their requests, JSON-able."""
        return describe(
            self._components,
            self._scheduler,
            self._sampling,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
        )

    @overload
    def __call__(
        self,
        prompt: str | Iterable[str],
        *,
        return_dict: Literal[True] = True,
        **arguments: Unpack[TextToImageArguments],
    ) -> ImagePipelineOutput: ...

    @overload
    def __call__(
        self,
        prompt: str | Iterable[str],
        *,
        return_dict: Literal[False],
        **arguments: Unpack[TextToImageArguments],
    ) -> tuple[Pictures]: ...

    @overload
    def __call__(
        self,
        prompt: str | Iterable[str],
        *,
        return_dict: bool,
        **arguments: Unpack[TextToImageArguments],
    ) -> Output: ...

    def __call__(
        self,
        prompt: str | Iterable[str],
        *,
        negative_prompt: str | Iterable[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
        eta: float = 0.0,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        guidance_rescale: float | None = None,
        seed: int | Iterable[int] | None = None,
        generator: torch.Generator | Iterable[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> Output:
        """Make images from Python, with the arguments of diffusers' pipeline and a few more.

        A bar shows the steps of the whole call; see `set_progress_bar_config`.

        Args:
            prompt: one text or N of them, for N * num_images_per_prompt images; several of anything
                are a list, or whatever else has an order.
            negative_prompt: one text for all or one per prompt; None is the null prompt.
            num_inference_steps: steps of the scheduler, 1 or more.
            guidance_scale: 1 is no guidance, 0 the unconditional image.
            eta: eta of DDIM, 0 to 1.
            height: pixels, a multiple of `size_multiple` up to 4096; None: the model's own.
            width: likewise.
            num_images_per_prompt: images of one prompt stand next to each other.
            guidance_rescale: 0 to 1 (Lin et al. 2023, eq. 16); None: the pipeline's own.
            seed: that of the first image, from which those of the others are hashed as a job does;
                or one per prompt, or one per image; None: fresh ones.
            generator: in place of `seed`: one for all (drawn from as diffusers does), or one each.
            latents: standard normal noise `[images, C, h, w]` to start from, finite, float32.
            output_type: `pil`, `np` (float32 `[N, H, W, 3]`, 0..1) or `pt` (`[N, 3, H, W]`, 0..1).
            return_dict: False: a tuple of the images.

        Returns:
            diffusers' `ImagePipelineOutput`. Of images that hold values that are not finite,
            which a picture cannot show, the logger tells.

        Raises:
            ValueError: an argument of the wrong type, length, shape or range.
        """
        check_output(output_type, return_dict)
        call = Call(
            num_inference_steps=whole("num_inference_steps", num_inference_steps),
            guidance_scale=number("guidance_scale", guidance_scale),
            eta=number("eta", eta),
            height=self.default_height if height is None else whole("height", height),
            width=self.default_width if width is None else whole("width", width),
            guidance_rescale=(
                None if guidance_rescale is None else number("guidance_rescale", guidance_rescale)
            ),
        )
        source, shape = NoiseSource(seed, generator, latents), self._latent_shape(call)
        texts = (prompt, negative_prompt, num_images_per_prompt)
        batches = plan_call(*texts, source, shape=shape, batch_size=self.batch_size)
        num_steps = len(batches) * count_steps(self._scheduler, call.num_inference_steps)
        with self._computing(), self._showing_steps(num_steps) as on_step:
            decoded = torch.cat([self._paint(batch, call, on_step) for batch in batches])
        tell_not_finite(decoded)
        return make_output(to_unit_range(decoded), output_type, return_dict=return_dict)

    def _paint(self, batch: Batch, call: Call, on_step: Callable[[], object]) -> torch.Tensor:
        """One batch of a call from Python, without its padding: `[num_images, 3, H, W]`."""
        texts = (batch.prompts, batch.negative_prompts)
        calls = [call] * len(batch.prompts)
        painted = self._painter.paint(*texts, batch.noise, batch.generators, calls, on_step)
        return painted[: batch.num_images]
