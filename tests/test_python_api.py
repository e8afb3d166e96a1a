"""Pipelines from Python: what they default to, show, take and leave as it was."""

import io
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_overloads, get_type_hints

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import ldm_batch
from ldm_batch import SuperResolution, TextToImage
from ldm_batch.config import (
    JobConfig,
    ModelConfig,
    SchedulerConfig,
    SinkConfig,
    UpscaleConfig,
)
from ldm_batch.config.job import check_own_fields
from ldm_batch.diffusion import super_resolution, text_to_image
from ldm_batch.diffusion.pipeline import LoadedPipeline
from ldm_batch.diffusion.sampler import count_steps
from ldm_batch.diffusion.threads import limit_threads
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import choose
from ldm_batch.records import Call, Request

PROMPT = "a red circle on a blue background"
CALL = Call(num_inference_steps=1, height=64, width=64)
PACKAGE = Path(ldm_batch.__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy


@cache
def painter() -> TextToImage:
    return TextToImage.from_pretrained("demo:text_to_image", device="cpu")


@cache
def enlarger() -> SuperResolution:
    return SuperResolution.from_pretrained("demo:super_resolution", device="cpu")


def small(side: int = 8) -> Image.Image:
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def damaged(*, is_closed: bool = False) -> Image.Image:
    """An image of a file that ends too soon, or is closed."""
    content = io.BytesIO()
    small(64).save(content, "PNG")
    image = Image.open(io.BytesIO(content.getvalue()[:3000]))
    if is_closed:
        image.close()
    return image


BOTH: list[tuple[Callable[[], LoadedPipeline], Any]] = [(painter, PROMPT), (enlarger, small())]


def test_what_there_is_is_listed() -> None:
    assert {"TextToImage", "SuperResolution", "run_job", "open_dataset"} <= set(dir(ldm_batch))
    assert set(ldm_batch.__all__) <= set(dir(ldm_batch))
    assert all(getattr(ldm_batch, name) is not None for name in ldm_batch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'TextToImages'"):
        _ = ldm_batch.TextToImages


def test_what_a_pipeline_is_without_being_told() -> None:
    one = painter()
    assert (one.batch_size, one.num_threads, one.is_float32) == (1, 1, True)
    assert repr(one) == (
        "TextToImage(demo:text_to_image, scheduler=DDIMScheduler, device=cpu, dtype=float32, "
        "batch_size=1)"
    )
    assert "SuperResolution(demo:super_resolution, scheduler=" in repr(enlarger())
    has_cuda = torch.cuda.is_available()
    anywhere = TextToImage.from_pretrained("demo:text_to_image")
    assert anywhere.device.type == ("cuda" if has_cuda else "cpu")


def test_one_picture_is_one_row_of_the_model() -> None:
    rows: list[int] = []
    hook = painter()._unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    painter()(PROMPT, num_inference_steps=2, seed=0)
    painter()(PROMPT, num_inference_steps=1, guidance_scale=2.0, seed=0)
    hook.remove()
    assert rows == [1, 1, 2]


@pytest.mark.parametrize(("load", "given"), BOTH)
def test_a_scheduler_by_its_name(load: Callable[[], Any], given: Any) -> None:
    named = load().with_scheduler("dpmpp_2m")
    assert repr(named) == repr(load()).replace("DDIMScheduler", "DPMSolverMultistepScheduler")
    assert (named.batch_size, named.num_threads) == (1, 1)
    call = {"num_inference_steps": 3, "seed": 1, "output_type": "np"}
    told = load().with_scheduler(SchedulerConfig(name="dpmpp_2m"))(given, **call).images
    assert np.array_equal(named(given, **call).images, told)
    with pytest.raises(JobError, match=r"scheduler\.name=dpmpp_3m: unknown; known are: .*dpmpp_2m"):
        load().with_scheduler("dpmpp_3m")
    with pytest.raises(JobError, match=r"scheduler: type; must be a name, e\.g\. dpmpp_2m"):
        load().with_scheduler(diffusers.DDIMScheduler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path_or_repo_id": 3}, "path_or_repo_id: int; must be a folder, demo:NAME or a hub id"),
        ({"batch_size": "8"}, "batch_size='8': must be a whole number"),
        ({"batch_size": 0}, "batch_size=0: must be 1 to 4096"),
        ({"batch_size": 4097}, "batch_size=4097: must be 1 to 4096"),
        ({"num_threads": 1.5}, "num_threads=1.5: must be a whole number"),
        ({"num_threads": 0}, "num_threads=0: must be 1 to 1024"),
        ({"num_threads": 1025}, "num_threads=1025: must be 1 to 1024"),
        ({"device": "gpu"}, "device: unknown value 'gpu'"),
        ({"dtype": torch.float16}, "dtype: unknown value torch.float16; did you"),
        ({"scheduler": None}, "scheduler: NoneType; must be a name"),
        ({"revision": 3}, "revision: int; must be a full commit sha, or None"),
        ({"variant": 3}, "variant: int; must be a name such as fp16, or None"),
        ({"variant": "fp16"}, "variant=fp16: .* has no weights of this variant"),
        ({"revision": "main"}, "revision=main: must be the full commit sha of demo:text_to_image"),
        ({"path_or_repo_id": ""}, "path_or_repo_id='': no folder here; .* such as OWNER/NAME"),
        ({"path_or_repo_id": "gpt2"}, "path_or_repo_id='gpt2': no folder here"),
        ({"path_or_repo_id": Path("no/where")}, "path_or_repo_id='no/where': no folder here"),
        ({"path_or_repo_id": "a" * 999}, "path_or_repo_id='a+': no folder here"),
        ({"path_or_repo_id": "~nobody/x\0"}, "path_or_repo_id=.*: no folder here"),
        ({"path_or_repo_id": PACKAGE}, "path_or_repo_id=.*: .* has no model_index.json"),
        ({"path_or_repo_id": "demo:no"}, "path_or_repo_id=demo:no: no such demo model"),
    ],
)
def test_wrong_settings_are_a_sentence(arguments: dict[str, Any], message: str) -> None:
    """Of the arguments of the call, not of a job's fields."""
    with pytest.raises(JobError, match=f"^{message}"):
        TextToImage.from_pretrained(**{"path_or_repo_id": "demo:text_to_image", **arguments})


def test_a_batch_size_has_the_bounds_of_a_job() -> None:
    with pytest.raises(JobError, match="batch_size=4097: must be 1 to 4096"):
        painter().with_batch_size(4097)
    assert list(check_own_fields(JobConfig(sink=SinkConfig(uri="out"), batch_size=4096))) == []
    assert [*check_own_fields(JobConfig(sink=SinkConfig(uri="out"), batch_size=4097))] != []


# Arguments of the wrong type

OF_BOTH: list[tuple[dict[str, Any], str]] = [
    ({"num_inference_steps": "50"}, "num_inference_steps='50': must be a whole number"),
    ({"num_inference_steps": 50.0}, r"num_inference_steps=50\.0: must be a whole number"),
    ({"num_inference_steps": None}, "num_inference_steps=None: must be a whole number"),
    ({"num_inference_steps": 10**6}, "num_inference_steps=1000000: more than .* can take"),
    ({"eta": "0"}, "eta='0': must be a number"),
    ({"seed": 1.5}, r"seed=1\.5: must be a whole number, a list of them, or None"),
    ({"seed": "a"}, "seed='a': must be a whole number, a list of them, or None"),
    ({"seed": True}, "seed=True: must be a whole number"),
    ({"seed": ["a"]}, r"seed\[0\]='a': must be a whole number"),
    ({"seed": np.array([[1]])}, r"seed\[0\]: ndarray: must be a whole number"),
    ({"generator": 3}, "generator=3: must be a torch.Generator, .* a number is given as seed"),
    ({"generator": [3]}, r"generator\[0\]=3: must be a torch.Generator"),
    ({"generator": [torch.Generator(), "a"]}, r"generator\[1\]='a': must be a torch.Generator"),
    ({"generator": []}, "generator: list: must be a torch.Generator"),
    ({"seed": []}, "seed: must be a whole number, a list of at least one, or None"),
    ({"seed": {1, 2}}, "seed: set: must be a whole number, a list of them, or None"),
    ({"generator": {torch.Generator()}}, "generator: set: must be a torch.Generator"),
    ({"output_type": 3}, "output_type=3: must be one of pil, np, pt"),
    ({"return_dict": "no"}, "return_dict='no': must be True or False"),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *OF_BOTH,
        ({"prompt": 3}, "prompt=3: must be a text or a list of texts"),
        ({"prompt": None}, "prompt=None: must be a text or a list of texts"),
        ({"prompt": ["a", b"b"]}, r"prompt\[1\]=b'b': must be a text"),
        ({"prompt": {"a": 1}}, "prompt: dict: must be a text or a list of texts"),
        ({"negative_prompt": 5}, "negative_prompt=5: must be a text or a list of texts"),
        ({"guidance_scale": None}, "guidance_scale=None: must be a number"),
        ({"guidance_scale": "2"}, "guidance_scale='2': must be a number"),
        ({"guidance_scale": True}, "guidance_scale=True: must be a number"),
        ({"guidance_rescale": [0.7]}, "guidance_rescale: list: must be a number"),
        ({"height": 64.0}, r"height=64\.0: must be a whole number"),
        ({"width": "64"}, "width='64': must be a whole number"),
        ({"num_images_per_prompt": True}, "num_images_per_prompt=True: must be a whole number"),
        ({"latents": [[0.0]]}, r"latents: list: must be a tensor \[images, C, h, w\], or None"),
        ({"latents": np.zeros((1, 8, 8, 8))}, "latents: ndarray: must be a tensor"),
        ({"latents": torch.zeros(1, 8, 8, 8, dtype=torch.int64)}, "latents: dtype torch.int64"),
        ({"latents": torch.full((1, 8, 8, 8), torch.nan)}, "latents: holds values that are not"),
        ({"latents": torch.full((1, 8, 8, 8), torch.inf)}, "latents: holds values that are not"),
        ({"prompt": {"a", "b"}}, "prompt: set: must be a text or a list of texts"),
        ({"prompt": frozenset("a")}, "prompt: frozenset: must be a text or a list of texts"),
        ({"prompt": "a\ud800"}, r"prompt: holds '\\ud800', half of a character"),
        ({"prompt": ["a", "\udfff"]}, r"prompt\[1\]: holds '\\udfff', half of a character"),
        ({"negative_prompt": "\ud800"}, r"negative_prompt: holds '\\ud800', half of a"),
        ({"guidance_scale": 10**400}, r"guidance_scale=10+\.\.\.0+: must be a number that a float"),
        ({"height": 10**9}, "height=1000000000: must be one of the multiples of 8, 4096 at most"),
        ({"width": 4104}, "width=4104: must be one of the multiples of 8, 4096 at most"),
        ({"num_images_per_prompt": 10**9}, "num_images_per_prompt=1000000000: must be 1 to 1000"),
    ],
)
def test_a_wrong_type_is_a_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        painter()(**{"prompt": PROMPT, "num_inference_steps": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *OF_BOTH,
        ({"image": None}, "image: NoneType; must be a PIL image, an array or a tensor, or a list"),
        ({"image": "a.png"}, r"image: str; must be .*; open a file with PIL\.Image\.open"),
        ({"image": Path("a.png")}, r"image: \w+Path; must be .*; open a file with PIL"),
        ({"image": b"\x89PNG"}, "image: bytes; must be a PIL image"),
        ({"image": [small(), [small()]]}, "image: list; must be a PIL image"),
        ({"image": np.array(["a"], object)}, r"image: shape \(1,\); an array must be"),
        ({"image": {1, 2}}, "image: set; must be a PIL image"),
        ({"image": Image.new("RGB", (0, 5))}, "image: size 0 x 5; must have pixels"),
        ({"image": damaged()}, "image: cannot be decoded: .*truncated"),
        ({"image": [small(), damaged(is_closed=True)]}, "image: cannot be decoded: .*closed"),
    ],
)
def test_a_wrong_type_of_an_image_is_a_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        enlarger()(**{"image": small(), "num_inference_steps": 1, **arguments})


def test_a_generator_is_made_of_a_whole_number() -> None:
    for wrong in (1.5, "a", None, True):
        with pytest.raises(ValueError, match=f"seed={wrong!r}: must be a whole number"):
            ldm_batch.make_generator(wrong)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    plain = painter()(PROMPT, num_inference_steps=2, guidance_scale=2, seed=7, output_type="np")
    numpys = {"num_inference_steps": np.int64(2), "guidance_scale": np.float32(2)}
    again = painter()(
        (PROMPT,), seed=np.array([7], np.uint64), output_type="np", height=np.int32(64), **numpys
    )
    assert np.array_equal(plain.images, again.images)


@pytest.mark.parametrize(("load", "given"), BOTH)
def test_whatever_has_an_order_is_a_list(load: Callable[[], Any], given: Any) -> None:
    call: dict[str, Any] = {"num_inference_steps": 1, "output_type": "np"}
    usual = load()([given, given], seed=[1, 2], **call).images
    again = load()(iter((given, given)), seed=(seed for seed in (1, 2)), **call)
    assert np.array_equal(usual, again.images)


@pytest.mark.parametrize("output_type", ["pil", "np"])
def test_values_that_are_not_finite_are_told(
    output_type: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Latents so large that the model's own numbers overflow, beside usual ones."""
    usual = torch.randn(1, *painter()._latent_shape(CALL), generator=torch.Generator())
    latents = torch.cat([usual, torch.full_like(usual, 3e38)])
    call = {"num_inference_steps": 1, "latents": latents, "output_type": output_type}
    assert len(painter()([PROMPT] * 2, **call).images) == 2
    assert "not finite, which a picture cannot show, in images [1], from 0" in caplog.text
    caplog.clear()
    painter()(PROMPT, num_inference_steps=1, latents=usual)
    assert caplog.text == ""


# torch's threads


@pytest.fixture
def three_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("load", "given"), BOTH)
def test_threads_are_lent_for_a_call(load: Callable[[], Any], given: Any) -> None:
    seen: list[int] = []

    def look(*_: object) -> None:
        seen.append(torch.get_num_threads())
        if len(seen) == 2:
            raise RuntimeError("in the middle")

    hook = load()._unet.register_forward_pre_hook(look)
    try:
        load()(given, num_inference_steps=1)
        assert torch.get_num_threads() == 3
        with pytest.raises(RuntimeError, match="in the middle"):
            load()(given, num_inference_steps=1)
    finally:
        hook.remove()
    assert (seen, torch.get_num_threads()) == ([1, 1], 3)
    load()(given, num_inference_steps=1)  # its lock is free again


@pytest.mark.usefixtures("three_threads")
def test_a_number_of_threads_of_ones_own() -> None:
    with pytest.raises(JobError):
        TextToImage.from_pretrained("demo:nothing")
    assert torch.get_num_threads() == 3
    seen: dict[int | None, int] = {}
    for wanted in (2, None):
        one = TextToImage.from_pretrained("demo:text_to_image", device="cpu", num_threads=wanted)
        derived = one.with_batch_size(2).with_scheduler("euler")
        hook = derived._unet.register_forward_pre_hook(
            lambda *_, wanted=wanted: seen.update({wanted: torch.get_num_threads()})
        )
        derived(PROMPT, num_inference_steps=1)
        hook.remove()
        assert derived.describe()["num_threads"] == (wanted or 3)
    assert (seen, torch.get_num_threads()) == ({2: 2, None: 3}, 3)


@pytest.mark.usefixtures("three_threads")
def test_a_job_computes_in_its_own_threads_and_leaves_torchs() -> None:
    demo, larger = (ModelConfig(path=f"demo:{n}") for n in ("text_to_image", "super_resolution"))
    chained = UpscaleConfig(model=larger, num_inference_steps=1)
    one = JobConfig(model=demo, batch_size=1, num_threads=2)
    two = replace(one, upscale=chained)
    alone = replace(one, task="super_resolution", model=larger)
    described = [load_job(job).describe() for job in (one, two, alone)]
    told = [*described, described[1]["upscale"]]
    assert [stage["num_threads"] for stage in told] == [2] * 4
    pipeline, seen = load_job(one), []
    hook = pipeline._unet.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    call = Call(num_inference_steps=2, guidance_scale=1.0, eta=0.0, height=64, width=64)
    pipeline.generate([Request(inputs={"prompt": "a", "negative_prompt": ""}, seed=0, call=call)])
    hook.remove()
    assert (seen, torch.get_num_threads()) == ([2, 2], 3)


def load_job(job: JobConfig) -> Any:
    chosen = choose(job)
    return chosen.load(chosen.find_models().lock)


@pytest.mark.usefixtures("three_threads")
def test_calls_that_overlap_leave_no_number_behind() -> None:
    """Each thread of Python computes in its own number; who comes after finds the usual one."""
    meet, inside, after = threading.Barrier(2), {}, {}

    def compute(number: int) -> None:
        with limit_threads(number):
            meet.wait()
            with limit_threads(number + 3):
                nested = torch.get_num_threads()
            inside[number] = (torch.get_num_threads(), nested)
            meet.wait()
        after[number] = torch.get_num_threads()

    threads = [threading.Thread(target=compute, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    late = threading.Thread(target=lambda: after.setdefault(0, torch.get_num_threads()))
    late.start()
    late.join()
    assert inside == {1: (1, 4), 2: (2, 5)}
    assert after == {1: 3, 2: 3, 0: 3}
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_threads_that_meet_torch_meanwhile_begin_with_the_usual_number() -> None:
    """And keep it, whether they compute themselves later or not."""
    meet = threading.Barrier(4)

    def compute(_: int) -> list[int]:
        meet.wait()
        seen = [torch.get_num_threads()]
        with limit_threads(1):
            seen.append(torch.get_num_threads())
            meet.wait()
        return [*seen, torch.get_num_threads()]

    with limit_threads(2), ThreadPoolExecutor(4) as pool:
        rounds = [[*pool.map(compute, range(4))] for _ in range(3)]
        assert torch.get_num_threads() == 2
    assert rounds == [[[3, 1, 3]] * 4] * 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3
        pool.submit(torch.set_num_threads, 5).result()
    with limit_threads(1):
        pass
    assert torch.get_num_threads() == 5


@pytest.mark.parametrize("batch_size", [2, 3])
def test_in_one_thread_no_bit_depends_on_the_place_in_the_batch(batch_size: int) -> None:
    prompts = [PROMPT, "two stars", "", "a large green square on white", "a cat", "x"]
    pipeline = painter().with_batch_size(batch_size)
    call = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}
    made = []
    for shift in range(batch_size):
        order = [(i + shift) % len(prompts) for i in range(len(prompts))]
        images = pipeline([prompts[i] for i in order], seed=order, **call).images
        made.append([images[order.index(i)] for i in range(len(prompts))])
    assert all(np.array_equal(one, made[0]) for one in made[1:])


# The bar


@pytest.mark.parametrize(
    ("scheduler", "num_prompts", "num_steps"),
    [("from_model", 1, 4), ("from_model", 3, 8), ("heun", 3, 14)],
)
def test_a_bar_shows_the_steps_of_all_batches(
    scheduler: str, num_prompts: int, num_steps: int
) -> None:
    shown = io.StringIO()
    pipeline = painter().with_scheduler(scheduler).with_batch_size(2)
    pipeline.set_progress_bar_config(file=shown, mininterval=0)
    pipeline([PROMPT] * num_prompts, num_inference_steps=4, seed=0)
    assert f"{num_steps}/{num_steps}" in shown.getvalue()
    assert count_steps(pipeline._scheduler, 4) * -(-num_prompts // 2) == num_steps


def test_a_bar_shows_the_steps_of_images_of_all_sizes() -> None:
    shown = io.StringIO()
    pipeline = enlarger().with_batch_size(2)
    pipeline.set_progress_bar_config(file=shown, mininterval=0)
    images = [small(8), small(8), small(8), small(16), small(132)]  # the last one in tiles
    pipeline(images, num_inference_steps=1, seed=0)
    assert "4/4" in shown.getvalue()


def test_a_bar_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = painter().with_batch_size(1)
    pipeline(PROMPT, num_inference_steps=3)
    assert "3/3" in capsys.readouterr().err
    pipeline.set_progress_bar_config(disable=True)
    pipeline(PROMPT, num_inference_steps=3)
    pipeline.with_scheduler("euler")(PROMPT, num_inference_steps=3)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="disabled: no argument of tqdm's; did you mean 'disable'"):
        pipeline.set_progress_bar_config(disabled=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"initial": "x"}, "initial='x': tqdm does not take it: "),
        ({"ncols": "wide"}, "ncols='wide': tqdm does not take it: "),
        ({"desc": 3, "disable": True}, "desc=3: tqdm does not take it: "),
        ({"bar_format": "{x}"}, "bar_format='{x}': tqdm does not take it: "),
        ({"position": "a"}, "position='a': must be a whole number"),
        ({"file": 3}, "file: int; must be an open text file, or None"),
    ],
)
def test_a_value_that_no_bar_takes_is_a_sentence(
    config: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        painter().with_batch_size(1).set_progress_bar_config(**config)
    usual = {"desc": "cats", "leave": False, "disable": None, "colour": "red", "position": 1}
    painter().with_batch_size(1).set_progress_bar_config(**usual)
    assert capsys.readouterr() == ("", "")


def test_a_job_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    call = Call(num_inference_steps=2, guidance_scale=1.0, eta=0.0, height=64, width=64)
    inputs = {"prompt": PROMPT, "negative_prompt": ""}
    painter().generate([Request(inputs=inputs, seed=0, call=call)])
    assert capsys.readouterr().err == ""


# Types


@pytest.mark.parametrize(
    ("pipeline", "arguments"),
    [
        (TextToImage, text_to_image.TextToImageArguments),
        (SuperResolution, super_resolution.SuperResolutionArguments),
    ],
)
def test_the_typed_arguments_are_those_of_the_call(pipeline: Any, arguments: Any) -> None:
    names = vars(sys.modules[pipeline.__module__]) | vars(diffusers)
    hints = get_type_hints(
        pipeline.__call__, names | vars(sys.modules["ldm_batch.diffusion.pixels"])
    )
    returned = [get_type_hints(each, names) for each in get_overloads(pipeline.__call__)]
    is_dict = [get_args(hint["return_dict"]) for hint in returned]
    assert is_dict == [(True,), (False,), ()]
    assert [get_origin(hint["return_dict"]) for hint in returned] == [Literal, Literal, None]
    assert returned[2]["return_dict"] is bool
    assert returned[0]["return"] is diffusers.ImagePipelineOutput
    assert get_origin(returned[1]["return"]) is tuple
    first = {"prompt", "image", "return_dict", "return"}
    assert get_type_hints(arguments) == {n: h for n, h in hints.items() if n not in first}


def test_a_users_code_is_checked(tmp_path: Path) -> None:
    """By mypy, with a stub in place of diffusers, whose own types take it a minute to read."""
    stub = tmp_path / "diffusers/pipelines/pipeline_utils.pyi"
    stub.parent.mkdir(parents=True)
    stub.write_text("class ImagePipelineOutput:\n    images: list[int]\n")
    (tmp_path / "user.py").write_text(
        "from ldm_batch import TextToImage, open_dataset, run_job\n"
        "pipeline = TextToImage.from_pretrained('demo:text_to_image').with_scheduler('ddim')\n"
        "reveal_type(pipeline('a', seed=3))\n"
        "reveal_type(pipeline(['a'], return_dict=False))\n"
        "reveal_type(pipeline(iter('ab'), return_dict=bool(pipeline.batch_size)))\n"
        "reveal_type(run_job(['conf=demo']).num_images)\n"
        "reveal_type(open_dataset('out').status().missing)\n"
        "pipeline('a', num_inference_steps='50')\n"
        "pipeline('a', stepz=50)\n"
    )
    foreign = "torch numpy PIL pyarrow hydra omegaconf transformers tqdm botocore fsspec ray scipy"
    others = ",".join(f"{name}.*" for name in foreign.split())
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nstrict = true\nfollow_imports = silent\nmypy_path = {PACKAGE.parent}:{tmp_path}\n"
        f"[mypy-{others}]\nfollow_imports = skip\nignore_missing_imports = true\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "user.py"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    told = re.findall(r'Revealed type is "(.*)"', ended.stdout)
    output = "diffusers.pipelines.pipeline_utils.ImagePipelineOutput"
    assert told == [output, "tuple[Any]", f"{output} | tuple[Any]", "int", "list[int]"]
    assert "user.py:8: error: No overload variant" in ended.stdout
    assert 'user.py:9: error: Unexpected keyword argument "stepz"' in ended.stdout
