"""diffusers' own pipelines: every row of the table by a tiny model, and what of it is refused."""

import dataclasses
import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tiny_families import MAKERS, make_family

from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.diffusion.batch_size import find_batch_size
from ldm_batch.diffusion.family import files as family_files
from ldm_batch.diffusion.family import load as family_load
from ldm_batch.diffusion.family.call import FamilyCall
from ldm_batch.diffusion.family.pipeline import FamilyPipeline
from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.diffusion.models import files
from ldm_batch.diffusion.models.files import lock_model, needed_files
from ldm_batch.diffusion.noise import make_generator
from ldm_batch.diffusion.schedulers import NAMES
from ldm_batch.errors import JobError
from ldm_batch.made_as import MadeAs, how_made
from ldm_batch.records import Call, Fault, Made, Reason, Request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

KINDS = sorted(kind for kind, family in FAMILIES.items() if "text_to_image" in family.tasks)
SD, SDXL, SD3, FLUX = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
PIXART, SANA, Z_IMAGE, QWEN = (
    "PixArtSigmaPipeline",
    "SanaPipeline",
    "ZImagePipeline",
    "QwenImagePipeline",
)
TEXTS = ("a cat", "A red square!", "a dog on the moon, oil painting " * 3, "blue", "x" * 90, "y")
NEGATIVE = ("", "ugly", "blurry, low " * 5, "", "bad", "")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model(kind)` -> the folder of a tiny pipeline of that class, made once."""
    root, made = tmp_path_factory.mktemp("families"), dict[str, Path]()

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_family(kind, root / kind)
        return made[kind]

    return make


def load(
    folder: Path,
    scheduler: SchedulerConfig | None = None,
    batch_size: int = 4,
    num_threads: int = 1,
    **changes: Any,
) -> FamilyPipeline:
    model = ModelConfig(engine="diffusers", path=str(folder), **changes)
    return FamilyPipeline.from_config(
        model, scheduler or SchedulerConfig(), batch_size=batch_size, num_threads=num_threads
    )


def request(number: int, kind: str, text: str | None = None, **call: Any) -> Request:
    negative = NEGATIVE[number] if FAMILIES[kind].has_negative else ""
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 32, "width": 64}
    return Request(
        inputs={"prompt": text or TEXTS[number], "negative_prompt": negative},
        seed=2**40 + number,
        call=Call(**{**arguments, **call}),
    )


def pixels(results: Sequence[Any]) -> list[bytes]:
    """Bytes of pictures; a fault fails the test."""
    return [np.asarray(r.pixels if isinstance(r, Made) else r, np.uint8).tobytes() for r in results]


def draw(pipeline: FamilyPipeline, kind: str, *numbers: int, **call: Any) -> list[bytes]:
    return pixels(pipeline.generate([request(number, kind, **call) for number in numbers]))


def rewrite(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: v for name, v in values.items() if v != "absent"}))


@pytest.fixture
def copied(model: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """`copied(kind)` -> a copy of a tiny model, to be changed."""
    return lambda kind: Path(shutil.copytree(model(kind), tmp_path / kind))


# An image is its request's alone


def test_every_row_has_a_tiny_model() -> None:
    assert MAKERS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_its_request_alone(kind: str, model: Callable[[str], Path]) -> None:
    pipeline = load(model(kind))
    random.seed(5)
    np.random.seed(5)
    states = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())
    first = draw(pipeline, kind, 0, 1, 2, 3)
    assert len(set(first)) == 4
    assert draw(pipeline, kind, 0, 1, 2, 3) == first
    assert draw(pipeline, kind, 3, 2, 1, 0) == first[::-1]
    assert draw(pipeline, kind, 4, 5, 0)[2] == first[0]
    assert draw(pipeline, kind, 1) == [first[1]]
    assert draw(pipeline, kind, 0, guidance_scale=7.0) != [first[0]]
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tobytes() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_bits_do_not_follow_the_neighbours_texts(
    kind: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before rounding: beside short texts, and beside the longest there are."""
    pipeline = load(model(kind))
    drawn: list[torch.Tensor] = []
    draw_rows = FamilyCall.draw

    def noting(self: FamilyCall, requests: Sequence[Request]) -> torch.Tensor:
        images = draw_rows(self, requests)
        drawn.extend(i for i, r in zip(images, requests, strict=True) if r.seed == 2**40)
        return images

    monkeypatch.setattr(FamilyCall, "draw", noting)
    for texts in (["b", "c", "d"], ["x" * 40, "y" * 120, "z" * 600]):
        others = [request(3, kind, text) for text in texts]
        pipeline.generate([*others, request(0, kind, "a")])
        pipeline.generate([request(0, kind, "a"), *others])
    assert len(drawn) >= 4
    assert all(torch.equal(image, drawn[0]) for image in drawn)


def test_texts_of_one_call_have_one_length_where_a_call_has_none(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Z-Image computes on the tokens of a batch in one row: at two threads their number showed."""
    pipeline = load(model(Z_IMAGE))
    transformer = pipeline._call.loaded.denoiser
    forward, lengths = transformer.forward, list[set[int]]()

    def noting(images: Any, times: Any, texts: Any, **named: Any) -> Any:
        assert len(texts) == 8
        lengths.extend({-(-len(t) // 32) for t in half} for half in (texts[:4], texts[4:]))
        return forward(images, times, texts, **named)

    monkeypatch.setattr(transformer, "forward", noting)
    draw(pipeline, Z_IMAGE, 0, 1, 2, 4)
    assert {len(found) for found in lengths} == {1}
    assert set.union(*lengths) == {1, 3, 4}


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_diffusers(kind: str, model: Callable[[str], Path]) -> None:
    """The same call of the pipeline that diffusers itself loads, to the rounding of a pixel."""
    requests = [request(number, kind) for number in (1, 2, 4, 1)]
    ours = load(model(kind)).generate(requests)
    options = {"use_safetensors": True, "low_cpu_mem_usage": False}
    theirs = diffusers.DiffusionPipeline.from_pretrained(model(kind), **options)
    theirs.set_progress_bar_config(disable=True)
    call, family = requests[0].call, FAMILIES[kind]
    arguments: dict[str, Any] = {
        "prompt": [r.inputs["prompt"] for r in requests],
        "negative_prompt": [r.inputs["negative_prompt"] for r in requests],
        "generator": [make_generator(r.seed) for r in requests],
        family.guidance: call.guidance_scale,
        **{name: getattr(call, name) for name in ("num_inference_steps", "height", "width")},
        **family.fixed,
    }
    if not family.has_negative:
        del arguments["negative_prompt"]
    images = np.round(theirs(**arguments, output_type="np").images * 255)
    assert np.abs(np.stack(ours).astype(int) - images.astype(int)).max() <= 1


def test_no_negative_prompt_is_not_an_empty_one_where_the_model_says_so(
    model: Callable[[str], Path], copied: Callable[[str], Path]
) -> None:
    """SDXL was trained with zeros in place of an empty text, in any batch."""
    folder = copied(SDXL)
    rewrite(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    zeros, texts = load(model(SDXL)), load(folder)
    assert draw(zeros, SDXL, 0, 1)[1] == draw(texts, SDXL, 0, 1)[1]
    assert draw(zeros, SDXL, 0, 1)[0] != draw(texts, SDXL, 0, 1)[0]
    assert draw(zeros, SDXL, 0, 3)[0] == draw(zeros, SDXL, 0, 1)[0]


@pytest.mark.parametrize("kind", sorted({*KINDS} - {QWEN}))
def test_a_prompt_that_is_cut_says_so(kind: str, model: Callable[[str], Path]) -> None:
    pipeline = load(model(kind), batch_size=3)
    limit, short = pipeline._call.loaded.max_tokens, pipeline.count_tokens(["a"])[0].num_tokens
    whole = "a" * (limit - short + 1)
    counts = pipeline.count_tokens([whole, f"{whole}a"])
    assert [(c.num_tokens, c.is_truncated) for c in counts] == [(limit, False), (limit + 1, True)]
    texts = [f"{whole[:-1]}b", f"{whole}a", f"{whole}b"]
    call = Call(num_inference_steps=2, guidance_scale=3.0, height=32, width=32)
    inputs = [{"prompt": text, "negative_prompt": ""} for text in texts]
    drawn = pipeline._call.draw([Request(inputs=i, seed=1, call=call) for i in inputs])
    assert torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_tokens_of_a_text_that_is_encoded_alone(model: Callable[[str], Path]) -> None:
    call = load(model(QWEN))._call
    for text in ("a cat", "x" * 80):
        assert len(call._encode(text)) == call.count([text])[0].num_tokens
    [cut] = call.count(["x" * 600])
    assert cut.is_truncated
    assert call.count([]) == []


# Noise


NOISY = [
    (SD, SchedulerConfig(name="ddim"), 1.0),
    (SDXL, SchedulerConfig(name="euler_a"), 0.0),
    (PIXART, SchedulerConfig(name="dpmpp_sde"), 0.0),
    (SANA, SchedulerConfig(settings={"stochastic_sampling": True}), 0.0),
]


@pytest.mark.parametrize(("kind", "scheduler", "eta"), NOISY)
def test_noise_of_every_step_is_the_images_own(
    kind: str, scheduler: SchedulerConfig, eta: float, model: Callable[[str], Path]
) -> None:
    pipeline = load(model(kind), scheduler)
    first = draw(pipeline, kind, 0, 1, 2, eta=eta)
    assert draw(pipeline, kind, 2, 4, 1, 0, eta=eta) == [first[2], *pixels_of(pipeline, kind, eta)]
    still = load(model(kind), SchedulerConfig(name="ddim") if eta else None)
    assert draw(still, kind, 0, 1, 2) != first


@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_of_the_list_draws_each_image_by_itself(
    name: str, model: Callable[[str], Path]
) -> None:
    pipeline = load(model(SD), SchedulerConfig(name=name), batch_size=2)
    first = draw(pipeline, SD, 0, 1, eta=0.5, num_inference_steps=5)
    assert draw(pipeline, SD, 2, 0, eta=0.5, num_inference_steps=5)[1] == first[0]
    assert draw(pipeline, SD, 1, eta=0.5, num_inference_steps=5) == first[1:]


def pixels_of(pipeline: FamilyPipeline, kind: str, eta: float) -> list[bytes]:
    """Rows 4, 1 and 0, in another batch."""
    made = draw(pipeline, kind, 0, 5, 1, 4, eta=eta)
    return [made[3], made[2], made[0]]


def test_a_model_as_sana_is_published(copied: Callable[[str], Path]) -> None:
    """By a solver of its own, which may draw noise."""
    folder = copied(SANA)
    solver = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    solver.save_pretrained(folder / "scheduler")
    rewrite(folder / "model_index.json", scheduler=["diffusers", type(solver).__name__])
    for settings in ({}, {"algorithm_type": "sde-dpmsolver++"}):
        pipeline = load(folder, SchedulerConfig(settings=settings))
        first = draw(pipeline, SANA, 0, 1)
        assert draw(pipeline, SANA, 1, 2, 0) == [first[1], draw(pipeline, SANA, 2)[0], first[0]]


def test_a_setting_that_a_pipeline_overrules_is_refused(model: Callable[[str], Path]) -> None:
    with pytest.raises(JobError, match=r"settings.steps_offset=0: StableDiffusionPipeline takes 1"):
        load(model(SD), SchedulerConfig(settings={"steps_offset": 0}))


@pytest.mark.parametrize("kind", [SD3, FLUX, Z_IMAGE, QWEN])
def test_noise_that_would_leak_is_refused_by_name(kind: str, model: Callable[[str], Path]) -> None:
    leaking = SchedulerConfig(settings={"stochastic_sampling": True})
    with pytest.raises(JobError, match=f"FlowMatchEulerDiscreteScheduler draws noise .* {kind}"):
        load(model(kind), leaking)


@pytest.mark.parametrize("kind", [SD3, FLUX, Z_IMAGE, QWEN])
def test_the_probe_finds_a_leak_that_the_table_does_not_know(
    kind: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting = {**FAMILIES, kind: dataclasses.replace(FAMILIES[kind], has_own_noise=True)}
    monkeypatch.setattr(family_files, "FAMILIES", trusting)
    leaking = SchedulerConfig(settings={"stochastic_sampling": True})
    with pytest.raises(JobError, match=f"{kind} with FlowMatchEulerDiscreteScheduler drew noise"):
        load(model(kind), leaking)


def test_the_probe_asks_for_all_the_noise_that_a_row_may(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a pipeline that hands DDIM its eta and no generator."""
    monkeypatch.setattr(
        diffusers.StableDiffusionPipeline,
        "prepare_extra_step_kwargs",
        lambda _self, _generator, eta: {"eta": eta},
    )
    with pytest.raises(JobError, match=f"{SD} with DDIMScheduler drew noise .* or eta 0"):
        load(model(SD))


def test_a_leak_in_the_middle_of_a_job_stops_it(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load(model(FLUX))
    step = diffusers.FlowMatchEulerDiscreteScheduler.step

    def leaking(*arguments: Any, **named: Any) -> Any:
        torch.randn(1)
        return step(*arguments, **named)

    monkeypatch.setattr(diffusers.FlowMatchEulerDiscreteScheduler, "step", leaking)
    with pytest.raises(JobError, match="drew noise from torch's global generator"):
        draw(pipeline, FLUX, 0)


# Otherwise than planned


@pytest.mark.parametrize("kind", KINDS)
def test_parts_may_have_dtypes_of_their_own(kind: str, model: Callable[[str], Path]) -> None:
    dtypes = {"dtype": "bfloat16", "text_encoder_dtype": "float32", "decode_dtype": "float32"}
    pipeline = load(model(kind), vae_slicing=True, vae_tiling=True, **dtypes)
    first = draw(pipeline, kind, 0, 1)
    assert draw(pipeline, kind, 1, 0) == first[::-1]
    told = pipeline.describe()["dtypes"]
    assert {told.pop(FAMILIES[kind].denoiser)} == {"bfloat16"}
    assert {*told.values()} == {"float32"}
    vae = pipeline._call.loaded.pipe.vae
    assert (vae.use_slicing, vae.use_tiling) == (True, True)


def test_what_half_precision_cannot_draw_is_drawn_in_float32(
    model: Callable[[str], Path],
) -> None:
    pipeline, whole = load(model(SDXL), dtype="bfloat16"), load(model(SDXL))
    for weight in pipeline._call.loaded.pipe.vae.parameters():
        weight.data.fill_(float("nan"))
    made = pipeline.generate([request(0, SDXL), request(1, SDXL)])
    assert [how_made(one) for one in made] == [MadeAs(is_float32=True)] * 2
    assert pixels(made) == draw(whole, SDXL, 0, 1)
    again = pipeline.as_made(MadeAs(is_float32=True))
    assert pixels(again.generate([request(1, SDXL)])) == pixels(made[1:])


def test_an_image_that_is_not_finite_in_float32_is_none(model: Callable[[str], Path]) -> None:
    pipeline = load(model(FLUX))
    for weight in pipeline._call.loaded.pipe.vae.parameters():
        weight.data.fill_(float("nan"))
    [fault] = pipeline.generate([request(0, FLUX)])
    assert isinstance(fault, Fault)
    assert fault.reason is Reason.NOT_FINITE


def test_where_memory_runs_out_the_batch_is_made_in_fewer_rows(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, draw_rows = load(model(SD3)), FamilyCall.draw

    def small(self: FamilyCall, requests: Sequence[Request]) -> torch.Tensor:
        if len(requests) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return draw_rows(self, requests)

    expected = draw(whole.as_made(MadeAs(batch_size=2)), SD3, 0, 1)
    monkeypatch.setattr(FamilyCall, "draw", small)
    made = whole.generate([request(number, SD3) for number in range(4)])
    assert [how_made(one) for one in made] == [MadeAs(batch_size=2)] * 4
    assert pixels(made)[:2] == expected
    assert "out of memory at 4" in whole.pop_notes()[0]
    assert whole.pop_notes() == []
    monkeypatch.undo()
    assert pixels(whole.generate([request(0, SD3)])) == draw(load(model(SD3)), SD3, 0)


def test_a_batch_size_is_found_by_trying(model: Callable[[str], Path], tmp_path: Path) -> None:
    config = ModelConfig(engine="diffusers", path=str(model(PIXART)))
    call = request(0, PIXART).call
    memory = tmp_path / "sizes.json"
    found = find_batch_size(
        config,
        SchedulerConfig(),
        call,
        candidates=(1, 2),
        memory=memory,
        load=lambda: load(model(PIXART), batch_size=1),
    )
    assert found in (1, 2)
    assert [*json.loads(memory.read_text()).values()] == [found]


# What a row asks in vain


@pytest.mark.parametrize(
    ("kind", "call", "told"),
    [
        (FLUX, {"eta": 0.5}, "eta: 0.5, but FluxPipeline has none"),
        (QWEN, {"guidance_rescale": 0.7}, "guidance_rescale: 0.7, but QwenImagePipeline has none"),
        (PIXART, {"height": 36}, "height: 36 is not a multiple of 8, which this model needs"),
    ],
)
def test_what_a_pipeline_cannot_do_is_the_rows_fault(
    kind: str, call: dict[str, Any], told: str, model: Callable[[str], Path]
) -> None:
    assert load(model(kind)).generate([request(0, kind, **call)]) == [
        Fault(Reason.OUT_OF_RANGE, told)
    ]


def test_one_rows_fault_leaves_its_neighbours_alone(model: Callable[[str], Path]) -> None:
    pipeline = load(model(FLUX))
    one, two = request(0, FLUX), request(1, FLUX)
    asking = dataclasses.replace(two, inputs={**two.inputs, "negative_prompt": "ugly"})
    made = pipeline.generate([one, asking, two])
    assert made[1] == Fault(Reason.OUT_OF_RANGE, "negative_prompt: FluxPipeline takes none")
    assert pixels([made[0], made[2]]) == draw(pipeline, FLUX, 0, 1)


def test_a_batch_has_one_call(model: Callable[[str], Path]) -> None:
    pipeline = load(model(FLUX))
    with pytest.raises(ValueError, match="same call"):
        pipeline.generate([request(0, FLUX), request(1, FLUX, guidance_scale=1.0)])
    with pytest.raises(ValueError, match="must be 1 to 4"):
        pipeline.generate([request(0, FLUX)] * 5)


# The files


@pytest.fixture(scope="module")
def opened() -> Iterator[list[str]]:
    """Paths that Python opens from here on; an audit hook stays, so it has a switch."""
    paths: list[str] = []
    is_on = [True]

    def note(event: str, arguments: Any) -> None:
        if is_on[0] and event == "open" and isinstance(arguments[0], str):
            paths.append(arguments[0])

    sys.addaudithook(note)
    yield paths
    is_on[0] = False


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_loading_reads_is_locked(
    kind: str, model: Callable[[str], Path], opened: list[str]
) -> None:
    folder = model(kind)
    lock = lock_model(folder)
    opened.clear()
    config = ModelConfig(engine="diffusers", path=str(folder))
    family_load.load_family(config, SchedulerConfig())
    within = {path for path in opened if path.startswith(f"{folder}/")}
    assert {str(Path(path).relative_to(folder)) for path in within} - lock.keys() == set()
    assert "model_index.json" in lock
    parts = [*FAMILIES[kind].parts, "scheduler"]
    assert all(any(path.startswith(f"{name}/") for path in lock) for name in parts)


def test_a_file_that_changed_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied(FLUX)
    lock = lock_model(folder)
    (folder / "tokenizer_2" / "tokenizer.json").write_text("{}")
    config = ModelConfig(engine="diffusers", path=str(folder))
    with pytest.raises(JobError, match=r"tokenizer_2/tokenizer.json .* is not the planned one"):
        family_load.load_family(config, SchedulerConfig(), lock=lock)


def test_weights_in_parts_and_pickled_ones_draw_the_same(
    model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LDM_BATCH_CACHE", str(tmp_path / "cache"))
    expected = draw(load(model(FLUX)), FLUX, 0, 1)
    pipe = diffusers.FluxPipeline.from_pretrained(model(FLUX), low_cpu_mem_usage=False)
    pipe.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    names = needed_files(tmp_path / "parts")
    assert "transformer/diffusion_pytorch_model.safetensors.index.json" in names
    assert "text_encoder_2/model.safetensors.index.json" in names
    assert draw(load(tmp_path / "parts"), FLUX, 0, 1) == expected
    shutil.copytree(model(FLUX), tmp_path / "pickled")
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        for path in (tmp_path / "pickled" / name).glob("*.safetensors"):
            path.unlink()
        stem = files.weight_name(name, files.PICKLED, None)
        torch.save(getattr(pipe, name).state_dict(), tmp_path / "pickled" / stem)
    assert draw(load(tmp_path / "pickled"), FLUX, 0, 1) == expected


def test_a_model_without_its_largest_text_encoder(
    model: Callable[[str], Path], copied: Callable[[str], Path]
) -> None:
    folder = copied(SD3)
    for name in ("text_encoder_3", "tokenizer_3"):
        rewrite(folder / "model_index.json", **{name: [None, None]})
        shutil.rmtree(folder / name)
    pipeline = load(folder)
    assert draw(pipeline, SD3, 0) != draw(load(model(SD3)), SD3, 0)
    [count] = pipeline.count_tokens(["x" * 80])
    assert (count.num_tokens, count.is_truncated) == (82, True)


def test_a_part_by_its_older_name(
    model: Callable[[str], Path], copied: Callable[[str], Path]
) -> None:
    """As PixArt-Sigma was published."""
    folder = copied(PIXART)
    rewrite(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    rewrite(folder / "transformer" / "config.json", _class_name="Transformer2DModel")
    assert draw(load(folder), PIXART, 0) == draw(load(model(PIXART)), PIXART, 0)


def test_a_safety_checker_is_recorded_and_never_loaded(copied: Callable[[str], Path]) -> None:
    folder = copied(SD)
    expected = draw(load(folder), SD, 0)
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"no pickle at all")
    named = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    processor = {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
    rewrite(folder / "model_index.json", **named, **processor, requires_safety_checker=True)
    pipeline = load(folder)
    assert draw(pipeline, SD, 0) == expected
    assert pipeline.describe()["not_loaded"] == ["safety_checker", "feature_extractor"]
    assert not any(path.startswith("safety_checker") for path in lock_model(folder))


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("model_index.json", {"_class_name": "Flux2Pipeline"}, "holds a Flux2Pipeline; engine"),
        ("model_index.json", {"controlnet": ["a", "B"]}, "unknown component 'controlnet'"),
        (
            "model_index.json",
            {"transformer": ["mine", "MyTransformer"]},
            "transformer is a MyTransformer; supported are FluxTransformer2DModel",
        ),
        ("model_index.json", {"tokenizer_2": "absent"}, "lacks the component tokenizer_2"),
        ("model_index.json", {"scheduler": "absent"}, "lacks the component scheduler"),
        ("transformer/config.json", {"auto_map": {}}, "auto_map is not supported"),
        ("text_encoder/config.json", {"quantization_config": {}}, "quantization_config is not"),
        ("text_encoder_2/config.json", {"text": {"auto_map": 1}}, "auto_map is not supported"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {}}, "auto_map is not supported"),
        ("text_encoder/adapter_config.json", {}, "adapter_config.json is never read"),
        ("vae/diffusion_pytorch_model.safetensors.index.json", {}, "keep one of the two"),
        ("transformer/config.json", {"num_layers": 2}, "missing keys"),
        ("text_encoder_2/config.json", {"d_ff": 8}, "text_encoder_2"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "DDIMScheduler"},
            "the model ships DDIMScheduler; FluxPipeline takes FlowMatchEulerDiscreteScheduler",
        ),
    ],
)
def test_what_is_not_of_the_table_is_refused_by_name(
    file: str, changes: dict[str, Any], told: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(FLUX)
    if not (folder / file).exists():
        (folder / file).write_text("{}")
    rewrite(folder / file, **changes)
    with pytest.raises(JobError, match=told):
        load(folder)


def test_weights_that_are_not_finite_are_refused(copied: Callable[[str], Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(Z_IMAGE)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["x_pad_token"].fill_(float("inf"))
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(JobError, match="weight x_pad_token is not finite"):
        load(folder)
