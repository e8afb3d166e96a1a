"""From requests to one call of a diffusers pipeline: its arguments, and what comes out of it.

Every image has a generator of its own, and nothing of a call but its shape is shared by its rows.
Must not know batches of other shapes, shards or files.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Hashable, Iterator, Sequence
from threading import Lock
from typing import Any

import torch

from ldm_batch.columns import IMAGE
from ldm_batch.diffusion.family.guard import untouched_generators
from ldm_batch.diffusion.family.limits import size_trouble, step_trouble
from ldm_batch.diffusion.family.load import LoadedFamily
from ldm_batch.diffusion.family.pictures import (
    bridge_encoder,
    num_steps,
    picture_arguments,
    picture_numbers,
    strength_trouble,
)
from ldm_batch.diffusion.load import quiet_libraries
from ldm_batch.diffusion.noise import make_generator
from ldm_batch.diffusion.switches import compiling_every_shape
from ldm_batch.records import PromptCount, Request


class FamilyCall:
    """A loaded pipeline of diffusers, called with requests; prepared once, here, for good."""

    def __init__(self, loaded: LoadedFamily, *, guidance_rescale: float) -> None:
        """Take the pipeline over: what it decodes comes out as it is, in any mixture of dtypes."""
        self.loaded = loaded
        self._pipe, self._family = loaded.pipe, loaded.family
        self._rescale = guidance_rescale
        self._counter = copy.deepcopy(getattr(self._pipe, loaded.counted_by))
        self._counting = Lock()
        self._lost: Exception | None = None
        self._known_steps: dict[tuple[int, int], str | None] = {}
        self._bridge_dtypes()

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return self.loaded.device

    @property
    def is_float32(self) -> bool:
        """Whether every part computes in float32."""
        parts = [getattr(self._pipe, name) for name in self._family.parts]
        return all(part.dtype == torch.float32 for part in parts if hasattr(part, "dtype"))

    @property
    def who(self) -> str:
        """The pipeline and its scheduler, for messages."""
        return f"{self.loaded.kind} with {type(self._pipe.scheduler).__name__}"

    def count(self, prompts: Sequence[str]) -> list[PromptCount]:
        """Count each prompt's tokens, special ones included; safe from any thread.

        By a tokenizer of its own: what it is set to while it counts must not meet the pipeline's.
        """
        if not prompts:
            return []
        limit, counter = self.loaded.max_tokens, self._counter
        with self._counting:
            texts = [self._templated(prompt) for prompt in prompts]
            lengths = [len(row) for row in counter(texts, verbose=False).input_ids]
            if self._family.template == "instructed":  # the call adds two to a prompt's own
                before = len(counter(self._instruction, verbose=False).input_ids) - 2
                lengths = [length - before for length in lengths]
        if self._family.padding == "embeddings":
            start = self._pipe.prompt_template_encode_start_idx
            lengths, limit = [length - start for length in lengths], limit - 1
        if self.loaded.counted_by != self._family.counted_by:  # the one that takes more is absent
            limit = int(counter.model_max_length)
        return [PromptCount(length, length > limit) for length in lengths]

    @property
    def _instruction(self) -> str:
        """What the pipeline puts before a prompt."""
        given = inspect.signature(self._pipe.__call__).parameters["complex_human_instruction"]
        return "\n".join(given.default)

    def draw(self, requests: Sequence[Request]) -> torch.Tensor:
        """Make one image per request, all of an equal call and of one `group`.

        Returns:
            Float `[len(requests), 3, H, W]`, nominally -1..1.

        Raises:
            JobError: the pipeline drew noise that is not the images' own.
        """
        generators = [make_generator(request.seed) for request in requests]
        self._lost = None
        compiling = compiling_every_shape(self.loaded.denoiser, self.device)
        with quiet_libraries(), compiling, untouched_generators(self.device, self.who):
            try:
                drawn: torch.Tensor = self._pipe(
                    **self._arguments(requests), generator=generators
                ).images
            except Exception:  # what was brought to the device must not stay there
                self._pipe.maybe_free_model_hooks()
                if self._lost is not None:
                    raise self._lost from None
                raise
        return drawn

    def group(self, request: Request) -> Hashable:
        """What requests that are drawn together have in common, beside their call.

        Where an empty negative prompt is none, that it is one: a call has all or none. Where texts
        have no one length, the lengths of both.
        """
        texts = (request.inputs["prompt"], request.inputs["negative_prompt"])
        if self._family.is_empty_none:
            return bool(texts[1])
        if self._family.padding == "grouped":
            counts = [min(count.num_tokens, self.loaded.max_tokens) for count in self.count(texts)]
            return tuple(-(-count // self._family.text_step) for count in counts)
        return None

    def troubles(self, request: Request) -> Iterator[str]:
        """What of a request the pipeline cannot do, a line each, beginning with the field."""
        loaded, call = self.loaded, request.call
        family, drawing = loaded.family, loaded.drawing
        if trouble := size_trouble(call, loaded.size_multiple, loaded.size_limit):
            yield f"{trouble}{'; give an image of another size' * (IMAGE in request.inputs)}"
        if call.eta and not family.has_eta:
            yield f"eta: {call.eta}, but {loaded.kind} has none"
        if call.guidance_rescale is not None and not drawing.has_rescale:
            yield f"guidance_rescale: {call.guidance_rescale}, but {loaded.kind} has none"
        if request.inputs["negative_prompt"] and not family.has_negative:
            yield f"negative_prompt: {loaded.kind} takes none"
        taken = steps = call.num_inference_steps
        if call.strength is not None and drawing.has_strength:
            taken = num_steps(family, steps, call.strength)
            if trouble := strength_trouble(family, steps, call.strength):
                yield trouble
        if trouble := self._step_trouble(steps, taken):
            yield trouble
        if (level := call.noise_level) is not None and level > (loaded.max_noise_level or level):
            yield f"noise_level: {level}, but this model takes {loaded.max_noise_level} at most"

    def _step_trouble(self, num_inference_steps: int, num_taken: int) -> str | None:
        """What is wrong with a number of steps; each is tried once."""
        key = num_inference_steps, num_taken
        if key not in self._known_steps:
            self._known_steps[key] = step_trouble(self._pipe.scheduler, self._family, *key)
        return self._known_steps[key]

    def _arguments(self, requests: Sequence[Request]) -> dict[str, Any]:
        """All but the generators; texts in lists of their own, which a call may change."""
        family, drawing, call = self._family, self.loaded.drawing, requests[0].call
        arguments: dict[str, Any] = {
            "num_inference_steps": call.num_inference_steps,
            family.guidance: call.guidance_scale,
            **picture_numbers(call, drawing),
            **picture_arguments(requests),
            **family.fixed,
        }
        if family.is_limit_given:
            arguments["max_sequence_length"] = self.loaded.max_tokens
        if family.has_eta:
            arguments["eta"] = call.eta
        if drawing.has_rescale:
            given = call.guidance_rescale
            arguments["guidance_rescale"] = self._rescale if given is None else given
        texts = {"prompt": [request.inputs["prompt"] for request in requests]}
        negative = [request.inputs["negative_prompt"] for request in requests]
        if family.has_negative and (any(negative) or not family.is_empty_none):
            texts["negative_prompt"] = negative
        if family.padding == "embeddings":
            return arguments | self._embeddings(texts)
        return arguments | texts

    def _embeddings(self, texts: dict[str, list[str]]) -> dict[str, torch.Tensor]:
        """Texts as embeddings of one length and their masks, each encoded by itself.

        The last place is never taken: where no place is empty, the call leaves the mask out.
        """
        given: dict[str, torch.Tensor] = {}
        width = self.loaded.max_tokens
        for name, values in texts.items():
            rows = {text: self._encode(text)[: width - 1] for text in dict.fromkeys(values)}
            embeddings = [rows[text] for text in values]
            mask = torch.zeros(len(values), width, dtype=torch.long, device=self.device)
            padded = mask.new_zeros(
                (len(values), width, embeddings[0].shape[-1]), dtype=embeddings[0].dtype
            )
            for number, row in enumerate(embeddings):
                padded[number, : len(row)] = row
                mask[number, : len(row)] = 1
            given |= {f"{name}_embeds": padded, f"{name}_embeds_mask": mask}
        return given

    @torch.no_grad()
    def _encode(self, text: str) -> torch.Tensor:
        embeddings: torch.Tensor = self._pipe.encode_prompt(
            prompt=[text], device=self.device, max_sequence_length=self.loaded.max_tokens
        )[0]
        return embeddings[0]

    def _templated(self, prompt: str) -> str:
        """A prompt as it is told to the text encoder."""
        if self._family.template == "lower":
            return prompt.lower().strip()
        if self._family.template == "instructed":
            return self._instruction + prompt.lower().strip()
        if self._family.template == "qwen":
            return str(self._pipe.prompt_template_encode.format(prompt))
        if self._family.template == "chat":
            message = [{"role": "user", "content": prompt}]
            options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
            return str(self._counter.apply_chat_template(message, **options))
        return prompt

    def _bridge_dtypes(self) -> None:
        """Embeddings reach the denoiser, and latents the VAE, in the dtype of each; what is decoded
        comes out before it is clamped, so that values that are not finite show."""
        pipe, vae, drawing = self._pipe, self._pipe.vae, self.loaded.drawing
        encode, decode, denoiser = pipe.encode_prompt, vae.decode, self.loaded.denoiser
        if drawing.has_strength:
            bridge_encoder(vae, denoiser.dtype)

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            return _cast(encode(*args, **kwargs), denoiser.dtype)

        def decode_latents(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if drawing.is_unshifted:
                latents = latents + vae.config.shift_factor
            try:
                return decode(latents.to(vae.dtype), *args, **kwargs)
            except torch.OutOfMemoryError as error:  # which Sana's pipeline takes for a warning
                self._lost = error
                raise

        pipe.encode_prompt, vae.decode = encode_prompt, decode_latents
        pipe.image_processor.postprocess = lambda image, **_options: image


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors of numbers in another dtype, however they are packed."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_cast(item, dtype) for item in value)
    return value
