"""Super-resolution: low-resolution images and seeds in, pictures four times as large out.

The image stands beside the latents as conditioning, by concatenation (Rombach et al. 2022, section
4.4). Every result is a function of its own request alone; must not know rows, shards or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch

from ldm_batch.config import SchedulerConfig
from ldm_batch.config.bounds import refuse
from ldm_batch.config.upscale import check_tiles
from ldm_batch.diffusion.call_arguments import (
    Output,
    check_arguments,
    check_output,
    make_generators,
    make_output,
    seeds_of,
    tell_not_finite,
    wrap_output,
)
from ldm_batch.diffusion.call_images import ImageLike, to_images, to_signed
from ldm_batch.diffusion.call_values import number, whole
from ldm_batch.diffusion.describe import describe
from ldm_batch.diffusion.from_model import check_super_resolution
from ldm_batch.diffusion.load import Components
from ldm_batch.diffusion.noise import make_generator
from ldm_batch.diffusion.pipeline import LoadedPipeline
from ldm_batch.diffusion.pixels import OutputType, Pictures, to_picture, to_uint8, to_unit_range
from ldm_batch.diffusion.quality import judge
from ldm_batch.diffusion.sampler import count_steps
from ldm_batch.diffusion.tiling import padded_side
from ldm_batch.diffusion.upscale import Upscaler
from ldm_batch.records import Call, Fault, Made, UpscaleRequest

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

TILE_SIZE, TILE_OVERLAP = 128, 16


class SuperResolutionArguments(TypedDict, total=False):
    """What a call may be given besides its images; see `SuperResolution.__call__`."""

    num_inference_steps: int
    eta: float
    seed: int | Iterable[int] | None
    generator: torch.Generator | Iterable[torch.Generator] | None
    output_type: OutputType


class SuperResolution(LoadedPipeline):
    """One loaded super-resolution pipeline; every model call has the same fixed shape."""

    def __init__(
        self,
        components: Components,
        scheduler: SchedulerConfig,
        *,
        batch_size: int,
        num_threads: int | None = None,
        tile_size: int = TILE_SIZE,
        tile_overlap: int = TILE_OVERLAP,
    ) -> None:
        """Put loaded components together.

        Args:
            batch_size: images, or tiles, per model call.
            num_threads: of torch, while it computes; None: as many as the process has.
            tile_size: larger images are made in tiles of this side, in low-resolution pixels.
            tile_overlap: pixels that neighbouring tiles share.

        Raises:
            JobError: the components do not fit each other, or the settings are wrong.
        """
        super().__init__(
            components,
            scheduler,
            batch_size=batch_size,
            num_threads=num_threads,
            tile_size=tile_size,
            tile_overlap=tile_overlap,
        )
        check_super_resolution(components)
        self._multiple = 2 ** (len(self._unet.config.block_out_channels) - 1)
        refuse(check_tiles(tile_size, tile_overlap, self._multiple))
        self._upscaler = Upscaler(
            self._unet,
            self._vqvae,
            self._scheduler,
            cache_interval=scheduler.cache_interval,
            tile_size=tile_size,
            tile_overlap=tile_overlap,
        )
        self.scale = self._upscaler.scale
        """Pixels of the result per pixel of the input: 4 in the paper's model."""

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """Size at which an image is computed; images of one padded size share model calls."""
        return padded_side(height, self._multiple), padded_side(width, self._multiple)

    def generate(self, requests: Sequence[UpscaleRequest]) -> list[np.ndarray | Made | Fault]:
        """Make each image larger, uint8 `[scale * h, scale * w, 3]`, or say why it cannot be.

        Model calls always have `batch_size` rows, so a result depends on its request alone (in one
        torch thread; in more, its place may change last bits). An
        image that is not finite, or of one colour where its input is not, is tried again once in
        float32. Where memory ran out, or float32 was needed, an image's `made_as` says so.

        Args:
            requests: any number of them, all with the same padded size, steps and eta.

        Raises:
            ValueError: no requests, or requests that cannot share a batch.
            ShardError: memory runs out with one row per model call.
        """
        if not requests:
            raise ValueError("0 requests: must be 1 or more")
        if len({self._batch_key(request) for request in requests}) > 1:
            raise ValueError("requests of one batch must have the same padded size, steps and eta")
        with self._computing():
            self._note_steps(requests[0].num_inference_steps)
            return self._draw(requests)

    def _batch_key(self, request: UpscaleRequest) -> tuple[int, int, int, float]:
        height, width, _ = request.pixels.shape
        return *self.padded_size(height, width), request.num_inference_steps, request.eta

    def _make_once(self, requests: Sequence[UpscaleRequest]) -> list[np.ndarray | Made | Fault]:
        first = requests[0]
        images = [to_signed(request.pixels) for request in requests]
        made = self._upscaler.run(
            images,
            [make_generator(request.seed) for request in requests],
            num_inference_steps=first.num_inference_steps,
            eta=first.eta,
            num_rows=self.batch_size,
        )
        return [_judge(decoded, request) for decoded, request in zip(made, requests, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Return what the images depend on besides their requests, JSON-able."""
        described = describe(
            self._components,
            self._scheduler,
            self._sampling,
            batch_size=self.batch_size,
            num_threads=self.num_threads,
        )
        return {**described, **self._options, "scale": self.scale}

    @overload
    def __call__(
        self,
        image: ImageLike | Iterable[ImageLike],
        *,
        return_dict: Literal[True] = True,
        **arguments: Unpack[SuperResolutionArguments],
    ) -> ImagePipelineOutput: ...

    @overload
    def __call__(
        self,
        image: ImageLike | Iterable[ImageLike],
        *,
        return_dict: Literal[False],
        **arguments: Unpack[SuperResolutionArguments],
    ) -> tuple[Pictures]: ...

    @overload
    def __call__(
        self,
        image: ImageLike | Iterable[ImageLike],
        *,
        return_dict: bool,
        **arguments: Unpack[SuperResolutionArguments],
    ) -> Output: ...

    def __call__(
        self,
        image: ImageLike | Iterable[ImageLike],
        *,
        num_inference_steps: int = 100,
        eta: float = 0.0,
        seed: int | Iterable[int] | None = None,
        generator: torch.Generator | Iterable[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
    ) -> Output:
        """Make images larger from Python, with the arguments of diffusers' pipeline and a few more.

        A bar shows the steps of the whole call; see `set_progress_bar_config`.

        Args:
            image: one, or N in a list or whatever else has an order, of any sizes: PIL images of
                any mode (an alpha channel is enlarged by itself and put back), arrays `[h, w, 3]`
                (uint8, or float 0..1), or tensors `[3, h, w]` (-1..1); arrays and tensors may have
                an axis of images first.
            num_inference_steps: steps of the scheduler, 1 or more.
            eta: eta of DDIM, 0 to 1.
            seed: that of the first image, from which those of the others are hashed as a job does;
                or one per image; None: fresh ones.
            generator: in place of `seed`: one for all (drawn from in turn), or one each.
            output_type: `pil`, or, where all sizes are equal, `np` (float32 `[N, H, W, 3]`, 0..1)
                or `pt` (`[N, 3, H, W]`, 0..1).
            return_dict: False: a tuple of the images.

        Returns:
            diffusers' `ImagePipelineOutput`. Of images that hold values that are not finite,
            which a picture cannot show, the logger tells.

        Raises:
            ValueError: an argument of the wrong type, length, shape or range.
        """
        check_output(output_type, return_dict)
        steps, eta = whole("num_inference_steps", num_inference_steps), number("eta", eta)
        call = Call(num_inference_steps=steps, eta=eta, height=1, width=1)
        check_arguments(call, 1)
        images, alphas = to_images(image)
        sizes = {array.shape for array in images}
        if output_type != "pil" and len(sizes) > 1:
            raise ValueError(
                f"output_type={output_type!r}: needs images of one size, there are {len(sizes)}"
            )
        generators = make_generators(seeds_of(seed, len(images)), generator, len(images))
        with self._computing():
            decoded = self._make_all(images, generators, call)
        tell_not_finite(decoded)
        made = [*map(to_unit_range, decoded)]
        if output_type == "pil":
            pictures = [to_picture(one, alpha) for one, alpha in zip(made, alphas, strict=True)]
            return wrap_output(pictures, return_dict=return_dict)
        return make_output(torch.stack(made), output_type, return_dict=return_dict)

    def _make_all(
        self,
        images: Sequence[np.ndarray],
        generators: Sequence[torch.Generator],
        call: Call,
    ) -> list[torch.Tensor]:
        """Run images of any sizes, those of one padded size together; decoded, in their order."""
        num_rows, steps = self.batch_size, call.num_inference_steps
        groups: dict[tuple[int, int], list[int]] = {}
        for i, array in enumerate(images):
            groups.setdefault(self.padded_size(*array.shape[:2]), []).append(i)
        num_loops = sum(
            self._upscaler.count_groups([images[i] for i in members], num_rows)
            for members in groups.values()
        )
        num_steps = num_loops * count_steps(self._scheduler, steps)
        noises = self._upscaler.draw_noise(images, generators)
        made: dict[int, torch.Tensor] = {}
        with self._showing_steps(num_steps) as on_step:
            for members in groups.values():
                run = self._upscaler.run(
                    [images[i] for i in members],
                    [generators[i] for i in members],
                    num_inference_steps=steps,
                    eta=call.eta,
                    num_rows=num_rows,
                    noises=[noises[i] for i in members],
                    on_step=on_step,
                )
                made.update(zip(members, run, strict=True))
        return [made[i] for i in range(len(images))]


def _judge(decoded: torch.Tensor, request: UpscaleRequest) -> np.ndarray | Made | Fault:
    """A picture `[3, H, W]` as uint8 `[H, W, 3]`, judged."""
    (pixels,) = to_uint8(to_unit_range(decoded[None]))
    return judge(decoded, pixels, request)
