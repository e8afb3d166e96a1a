"""The arguments and results of a call from Python: checked, spread out, cut into batches.

Must not know the model; text_to_image.py runs the batches.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

from ldm_batch.columns import COLUMNS
from ldm_batch.config.job import MAX_IMAGES_PER_PROMPT
from ldm_batch.diffusion.call_values import flag, generators, latents, seeds, texts, whole
from ldm_batch.diffusion.noise import make_generator, make_noise
from ldm_batch.diffusion.pixels import OUTPUT_TYPES, OutputType, Pictures, to_output
from ldm_batch.identity import numbered_seed
from ldm_batch.records import Call

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

logger = logging.getLogger(__name__)
Output: TypeAlias = "ImagePipelineOutput | tuple[Pictures]"


@dataclass(frozen=True)
class Batch:
    """One batch of a call, padded to the pipeline's fixed size."""

    num_images: int
    """Rows that are images; those after them are padding."""
    prompts: list[str]
    negative_prompts: list[str]
    noise: torch.Tensor
    generators: list[torch.Generator]


def check_arguments(call: Call, multiple: int) -> None:
    """Raise a ValueError for call arguments out of range; sizes must be multiples of `multiple`."""
    if call.num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={call.num_inference_steps}: must be at least 1")
    if not 0 <= call.guidance_scale < math.inf:
        raise ValueError(f"guidance_scale={call.guidance_scale}: must be a number from 0")
    if not 0 <= call.eta <= 1:
        raise ValueError(f"eta={call.eta}: must be 0 to 1")
    if call.guidance_rescale is not None and not 0 <= call.guidance_rescale <= 1:
        raise ValueError(f"guidance_rescale={call.guidance_rescale}: must be 0 to 1, or None")
    for name, value in (("height", call.height), ("width", call.width)):
        largest = int(COLUMNS[name].high or 0)
        if not multiple <= value <= largest or value % multiple:
            text = f"must be one of the multiples of {multiple}, {largest} at most"
            raise ValueError(f"{name}={value}: {text}")


@dataclass(frozen=True)
class NoiseSource:
    """What a call says of its noise; of seed and generator, one."""

    seed: int | Iterable[int] | None = None
    """See `seeds_of`."""
    generator: torch.Generator | Iterable[torch.Generator] | None = None
    """One for all, or one per image."""
    latents: torch.Tensor | None = None
    """Standard normal, float32 `[images, C, h, w]`, in place of what would be drawn first."""


def plan_call(
    prompt: str | Iterable[str],
    negative_prompt: str | Iterable[str] | None,
    num_images_per_prompt: int,
    source: NoiseSource,
    *,
    shape: tuple[int, int, int],
    batch_size: int,
) -> list[Batch]:
    """Check a call's arguments and cut its images into batches of `batch_size`.

    Args:
        shape: `(C, h, w)` of an image's latents.

    Raises:
        ValueError: an argument of the wrong length, shape or type.
    """
    num_images_per_prompt = whole("num_images_per_prompt", num_images_per_prompt)
    prompts = _spread(texts("prompt", prompt), num_images_per_prompt)
    negatives = _negatives(negative_prompt, len(prompts), num_images_per_prompt)
    own_seeds = seeds_of(source.seed, len(prompts), per_row=num_images_per_prompt)
    drawn_from = make_generators(own_seeds, source.generator, len(prompts))
    noise = _noise(source, drawn_from, (len(prompts), *shape))
    return list(_cut(prompts, negatives, noise, drawn_from, batch_size))


def check_output(output_type: object, return_dict: object) -> None:
    """Raise a ValueError for a way to return images that is none, before anything is computed."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type={output_type!r}: must be one of {', '.join(OUTPUT_TYPES)}")
    flag("return_dict", return_dict)


def make_output(images: torch.Tensor, output_type: OutputType, *, return_dict: bool) -> Output:
    """Wrap float32 `[N, 3, H, W]` in 0..1 as diffusers' pipelines do."""
    return wrap_output(to_output(images, output_type), return_dict=return_dict)


def tell_not_finite(images: Iterable[torch.Tensor]) -> None:
    """Tell the logger of a call's images `[3, H, W]` that hold values that are not finite."""
    numbers = [str(i) for i, image in enumerate(images) if not image.isfinite().all()]
    if numbers:
        logger.warning(
            "values that are not finite, which a picture cannot show, in images [%s], from 0; of a "
            "model in half precision, dtype='float32' may give one",
            ", ".join(numbers),
        )


def wrap_output(images: Pictures, *, return_dict: bool) -> Output:
    """Return diffusers' `ImagePipelineOutput` of images, or a tuple of them."""
    from diffusers import ImagePipelineOutput

    return ImagePipelineOutput(images=images) if return_dict else (images,)


def _spread(texts: list[str], num_images_per_prompt: int) -> list[str]:
    if not 1 <= num_images_per_prompt <= MAX_IMAGES_PER_PROMPT:
        bounds = f"1 to {MAX_IMAGES_PER_PROMPT}"
        raise ValueError(f"num_images_per_prompt={num_images_per_prompt}: must be {bounds}")
    return [text for text in texts for _ in range(num_images_per_prompt)]


def _negatives(
    value: str | Iterable[str] | None, num_images: int, num_images_per_prompt: int
) -> list[str]:
    given = [""] if value is None else texts("negative_prompt", value)
    if value is None or isinstance(value, str):
        return given * num_images
    if len(given) * num_images_per_prompt != num_images:
        num_prompts = num_images // num_images_per_prompt
        raise ValueError(f"negative_prompt: {len(given)} texts for {num_prompts} prompts")
    return _spread(given, num_images_per_prompt)


def seeds_of(
    seed: int | Iterable[int] | None, num_images: int, *, per_row: int = 1
) -> list[int] | None:
    """The seed of each image of a call, as a job derives them; None: fresh ones are to be drawn.

    Args:
        seed: one, of which image i takes `numbered_seed(seed, i)`: the first the seed itself; or
            one for each row, whose image k takes `numbered_seed` of it and k; or one per image.
        num_images: of the call.
        per_row: images of each row.

    Raises:
        ValueError: as many as there are neither rows nor images, or no seeds.
    """
    if seed is None:
        return None
    given = seeds(seed)
    if isinstance(given, int):
        return [numbered_seed(given, i) for i in range(num_images)]
    if len(given) == num_images:
        return given
    if len(given) * per_row != num_images:
        raise ValueError(f"seed: {len(given)} seeds for {num_images} images")
    return [numbered_seed(one, k) for one in given for k in range(per_row)]


def make_generators(
    own_seeds: Sequence[int] | None,
    generator: torch.Generator | Iterable[torch.Generator] | None,
    num_images: int,
) -> list[torch.Generator]:
    """Return one generator per image from a call's seeds or its `generator`.

    Raises:
        ValueError: both are given, as many as there are not images, or no generators.
    """
    if generator is not None and own_seeds is not None:
        raise ValueError("seed and generator: give one of them, not both")
    if generator is not None:
        given = generators(generator)
        if isinstance(given, torch.Generator):
            return [given] * num_images
        if len(given) != num_images:
            raise ValueError(f"generator: {len(given)} generators for {num_images} images")
        return given
    if own_seeds is None:
        own_seeds = [secrets.randbits(63) for _ in range(num_images)]
    return [make_generator(one) for one in own_seeds]


def _noise(
    source: NoiseSource, drawn_from: list[torch.Generator], shape: tuple[int, ...]
) -> torch.Tensor:
    generator = source.generator
    if source.latents is not None:
        given = latents(source.latents)
        if tuple(given.shape) != shape:
            raise ValueError(f"latents: shape {tuple(given.shape)}, must be {shape}")
        return given.float()
    if isinstance(generator, torch.Generator):
        return torch.randn(shape, generator=generator, device=generator.device)
    return make_noise(drawn_from, shape[1:])


def _cut(
    prompts: list[str],
    negatives: list[str],
    noise: torch.Tensor,
    drawn_from: list[torch.Generator],
    batch_size: int,
) -> Iterator[Batch]:
    """Yield the batches; padding repeats the last row, with generators of its own."""
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        num_images = len(prompts[rows])
        padding = batch_size - num_images
        yield Batch(
            num_images,
            prompts[rows] + [prompts[rows][-1]] * padding,
            negatives[rows] + [negatives[rows][-1]] * padding,
            torch.cat([noise[rows], *[noise[rows][-1:]] * padding]),
            drawn_from[rows] + [make_generator(0) for _ in range(padding)],
        )
