"""One row, or one image, that diffusers' own pipelines cannot do: no other is touched by it."""

import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import test_family_tasks
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from test_family import FLUX, SANA, SD, SD3, Z_IMAGE, draw, load, pixels, request, rewrite
from test_family import copied as copied
from test_family import model as model
from test_family_jobs import made, make_job, records
from test_family_jobs import prompts as prompts
from test_family_tasks import CHANGE, picture

from ldm_batch.commands.verify.verification import verify
from ldm_batch.config import JobConfig, ModelConfig, SchedulerConfig
from ldm_batch.diffusion.family.limits import step_trouble
from ldm_batch.diffusion.family.pipeline import FamilyPipeline
from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.diffusion.models.files import lock_model
from ldm_batch.diffusion.schedulers import NAMES
from ldm_batch.errors import JobError
from ldm_batch.made_as import MadeAs, how_made
from ldm_batch.records import Call, Fault, Reason, Request
from ldm_batch.run import config_folder
from ldm_batch.storage import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


# Counting


@pytest.mark.parametrize("kind", [SD, FLUX])
def test_a_count_in_the_other_thread_changes_no_image(
    kind: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts at the worst moment: when the call has set its tokenizer up, and not encoded."""
    pipeline = load(model(kind), batch_size=2)
    other = pipeline.with_batch_size(1)
    expected = draw(pipeline, kind, 0, 4)
    tokenizer = getattr(pipeline._call.loaded.pipe, pipeline._call.loaded.counted_by)
    set_up, counts = type(tokenizer).set_truncation_and_padding, list[int]()

    def disturbed(self: Any, *arguments: Any, **named: Any) -> None:
        set_up(self, *arguments, **named)
        if self is tokenizer and threading.current_thread() is threading.main_thread():
            thread = threading.Thread(
                target=lambda: counts.extend(c.num_tokens for c in other.count_tokens(["x" * 99]))
            )
            thread.start()
            thread.join()

    monkeypatch.setattr(type(tokenizer), "set_truncation_and_padding", disturbed)
    assert draw(pipeline, kind, 0, 4) == expected
    monkeypatch.undo()
    assert {*counts} == {pipeline.count_tokens(["x" * 99])[0].num_tokens}


# Steps


def test_z_image_turbo_calls_its_network_as_often_as_its_yaml_says(
    model: Callable[[str], Path],
) -> None:
    ConfigStore.instance().store(name="job_schema", node=JobConfig)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        composed = compose("config", ["conf=z_image_turbo", "source.uri=in", "sink.uri=out"])
    pipeline, steps = load(model(Z_IMAGE), batch_size=1), composed.call.num_inference_steps
    calls = []
    pipeline._call.loaded.denoiser.register_forward_hook(lambda *_: calls.append(1))
    draw(pipeline, Z_IMAGE, 0, num_inference_steps=steps, guidance_scale=0.0)
    assert len(calls) == steps == 8


NOT_1000 = ("ddim", "ddpm", "pndm", "dpmpp_2m", "dpmpp_sde", "unipc", "deis", "sa_solver")
"""Schedulers that do not take 1,000 steps of a model whose steps begin at 1."""


def tiny_call(num_inference_steps: int, **more: Any) -> Call:
    size = {"height": 8, "width": 8, **more}
    return Call(num_inference_steps=num_inference_steps, guidance_scale=1.0, eta=0.0, **size)


@pytest.mark.parametrize("name", NAMES)
def test_steps_that_a_scheduler_cannot_take_are_known_before(
    name: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load(model(SD), SchedulerConfig(name=name), batch_size=1)
    scheduler, family = pipeline._call.loaded.pipe.scheduler, FAMILIES[SD]
    before = torch.get_rng_state()
    for steps in (3, 50):
        assert step_trouble(scheduler, family, steps, steps) is None
    trouble = step_trouble(scheduler, family, 1000, 1000)
    assert torch.equal(torch.get_rng_state(), before)
    assert (trouble is not None) == (name in NOT_1000)
    if trouble is None:
        return
    assert trouble.startswith("num_inference_steps: 1000 is no number of steps that this model's")
    unet, inputs = pipeline._call.loaded.denoiser, {"prompt": "a", "negative_prompt": ""}
    monkeypatch.setattr(unet, "forward", lambda latents, *_, **__: (torch.zeros_like(latents),))
    with pytest.raises((IndexError, AssertionError)):
        pipeline._call.draw([Request(inputs=inputs, seed=1, call=tiny_call(1000))])


def test_the_steps_that_a_strength_leaves_count(model: Callable[[str], Path]) -> None:
    """DDIM has no step 1000, of which a strength below 1 asks for none."""
    pipeline = test_family_tasks.load(model(SD), CHANGE)
    inputs = {"prompt": "a", "negative_prompt": "", "image": picture(0)}
    call = tiny_call(1000, height=16, width=32, strength=0.002)
    whole = dataclasses.replace(call, strength=1.0)
    [kept] = pipeline.generate([Request(inputs=inputs, seed=1, call=call)])
    assert kept.shape == (16, 32, 3)
    [refused] = pipeline.generate([Request(inputs=inputs, seed=1, call=whole)])
    assert isinstance(refused, Fault)
    assert refused.message.startswith("num_inference_steps: 1000 is no number of steps")


# Rows and jobs


@pytest.mark.parametrize(
    ("kind", "column", "value", "told"),
    [
        (SD3, "height", 256, "height: 256, but this model takes 128 at most"),
        (Z_IMAGE, "width", 512, "width: 512, but this model takes 256 at most"),
        (SD, "num_inference_steps", 1000, "num_inference_steps: 1000 is no number of steps that"),
    ],
)
def test_a_row_that_asks_too_much_is_rejected_alone_and_a_job_refused(
    kind: str,
    column: str,
    value: int,
    told: str,
    model: Callable[[str], Path],
    prompts: Callable[..., str],
    tmp_path: Path,
) -> None:
    usual = {"num_inference_steps": 2, "height": 32, "width": 32}[column]
    source = prompts(kind, **{column: [usual, value, usual, usual, usual, usual]})
    job = make_job(model(kind), source, tmp_path / "out", max_rejected_fraction=1.0)
    made(job)
    assert sorted(records(job)) == [f"row {number}" for number in (0, 2, 3, 4, 5)]
    assert verify(Store(str(job.sink.uri))).rejected == {"out_of_range": 1}
    [path] = Path(str(job.sink.uri), ".ldm_batch", "rejected").iterdir()
    assert told in pq.read_table(path).to_pylist()[0]["message"]
    planned = make_job(model(kind), source, tmp_path / "no", **{f"call__{column}": value})
    with pytest.raises(JobError, match=rf"^call\.{told}") as error:
        made(planned)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "no").exists() or not [*(tmp_path / "no").rglob("*.json")]


def test_what_a_pipeline_refuses_of_one_row_is_that_rows_fault(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load(model(SD), batch_size=3)
    expected = draw(pipeline, SD, 0, 1, 2)
    encode, error = pipeline._call._pipe.encode_prompt, [ValueError("not\nthis one")]

    def refusing(prompt: Sequence[str], *arguments: Any, **named: Any) -> Any:
        if "bad" in prompt:
            raise error[0]
        return encode(prompt, *arguments, **named)

    monkeypatch.setattr(pipeline._call._pipe, "encode_prompt", refusing)
    requests = [request(0, SD), request(1, SD, "bad"), request(2, SD)]
    first, second, third = pipeline.generate(requests)
    assert pixels([first, third]) == [expected[0], expected[2]]
    assert isinstance(second, Fault)
    assert second.reason is Reason.OUT_OF_RANGE
    assert second.message.endswith("does not draw it: ValueError: not this one")
    for one in (RuntimeError("CUDA error: device-side assert triggered"), OSError("gone")):
        error[0] = one
        with pytest.raises(type(one)):
            pipeline.generate(requests)


# Memory


@pytest.fixture
def half(model: Callable[[str], Path]) -> Iterator[FamilyPipeline]:
    """A pipeline in half precision of which every first image is of one colour."""
    pipeline = load(model(SD), batch_size=2, dtype="bfloat16")
    vae = pipeline._call._pipe.vae
    decode = vae.decode

    def flat(*arguments: Any, **named: Any) -> Any:
        images = decode(*arguments, **named)[0].clone()
        images[0] = 0.0
        return (images,)

    vae.decode = flat
    yield pipeline
    vae.decode = decode


def test_where_float32_has_no_room_the_others_stay(
    half: FamilyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise NO_MEMORY

    monkeypatch.setattr(FamilyPipeline, "from_config", full)
    first, second = half.generate([request(0, SD), request(1, SD)])
    assert isinstance(first, Fault)
    assert first.reason is Reason.CONSTANT_IMAGE
    assert first.message.endswith("; no memory to try it in float32")
    assert not isinstance(second, Fault)
    assert how_made(second) == MadeAs()
    assert not [note for note in half.pop_notes() if "memory" in note]


def test_the_copy_in_float32_stays_no_longer_than_it_draws(
    half: FamilyPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[weakref.ref[Any]] = []
    from_config = FamilyPipeline.from_config

    def watched(*given: Any, **named: Any) -> FamilyPipeline:
        twin = from_config(*given, **named)
        copies.extend(map(weakref.ref, twin._call.loaded.denoiser.parameters()))
        return twin

    monkeypatch.setattr(FamilyPipeline, "from_config", watched)
    made = half.generate([request(0, SD), request(1, SD)])
    assert how_made(made[0]) == MadeAs(is_float32=True)
    assert copies
    assert not [one for one in copies if one() is not None]


def test_the_copy_in_float32_is_of_the_same_files(copied: Callable[[str], Path]) -> None:
    folder = copied(SD)
    pipeline = FamilyPipeline.from_config(
        ModelConfig(engine="diffusers", path=str(folder), dtype="bfloat16"),
        SchedulerConfig(),
        batch_size=1,
        lock=lock_model(folder),
    )
    rewrite(folder / "vae" / "config.json", scaling_factor=0.2)
    with pytest.raises(JobError, match=r"vae/config\.json .* is not the planned one"):
        pipeline.with_batch_size(2).as_made(MadeAs(is_float32=True))
    for weight in pipeline._call.loaded.pipe.vae.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(JobError, match=r"vae/config\.json .* is not the planned one"):
        pipeline.generate([request(0, SD)])


def test_sanas_decoder_without_memory_halves_the_batch(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load(model(SANA), batch_size=2)
    decoder = pipeline._call._pipe.vae.decoder
    forward = decoder.forward

    def full(latents: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if len(latents) > 1:
            raise NO_MEMORY
        return forward(latents, *arguments, **named)

    monkeypatch.setattr(decoder, "forward", full)
    with pytest.warns(UserWarning, match="out of memory"):
        images = pipeline.generate([request(0, SANA), request(1, SANA)])
    assert [how_made(image) for image in images] == [MadeAs(batch_size=1)] * 2
    assert any("out of memory at 2 images" in note for note in pipeline.pop_notes())
