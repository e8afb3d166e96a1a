"""Parts kept in the processor's memory; and that accelerate and peft change nothing by themselves.

A CPU stands in for the device: hooks, their order and every weight's absence are real (of
`sequential` weights are on torch's meta device between calls), transfers are not.
"""

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_family import FLUX, KINDS, PIXART, SD, draw, load, pixels, request
from test_family import copied as copied
from test_family import model as model
from test_family_jobs import make_job
from test_family_jobs import prompts as prompts
from test_lora import lora as lora

from ldm_batch.config import JobConfig, LoraConfig, ModelConfig, SinkConfig, SourceConfig
from ldm_batch.config.identified import identify_model
from ldm_batch.diffusion.batch_size import _key
from ldm_batch.diffusion.family import offload
from ldm_batch.diffusion.family.call import FamilyCall
from ldm_batch.drive import run_job
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import validate_job
from ldm_batch.made_as import MadeAs, how_made

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

HOWS = ("model", "sequential")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU be the device that parts are brought to."""
    by_layers = accelerate.cpu_offload

    def cpu_offload(module: torch.nn.Module, device: torch.device, **options: Any) -> Any:
        return by_layers(module, torch.device(device.type), **options)  # it trips over `cpu:0`

    monkeypatch.setattr(accelerate, "cpu_offload", cpu_offload)
    monkeypatch.setattr(offload, "DEVICES", ("cpu", "cuda"))


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("kind", KINDS)
def test_parts_that_are_brought_draw_the_same(kind: str, model: Callable[[str], Path]) -> None:
    expected = draw(load(model(kind)), kind, 0, 1, 2)
    for how in HOWS:
        pipeline = load(model(kind), offload=how, vae_slicing=True)
        assert draw(pipeline, kind, 0, 1, 2) == expected
        assert draw(pipeline, kind, 2, 0) == [expected[2], expected[0]]
        denoiser = pipeline._call.loaded.denoiser
        assert hasattr(denoiser, "_hf_hook")
        kept = {weight.device.type for weight in denoiser.parameters()}
        assert kept == {"meta" if how == "sequential" else "cpu"}
        told = pipeline.describe()
        assert (told["offload"], told["device"]) == (how, "cpu")
        assert {*told["dtypes"].values()} == {"float32"}
    assert "offload" not in load(model(kind)).describe()


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("how", HOWS)
def test_loras_half_precision_and_float32_go_with_it(
    how: str, model: Callable[[str], Path], lora: Callable[..., Path]
) -> None:
    settings: dict[str, Any] = {"dtype": "bfloat16", "loras": [LoraConfig(str(lora(SD)))]}
    usual, brought = load(model(SD), **settings), load(model(SD), offload=how, **settings)
    expected = draw(usual, SD, 0, 1)
    assert draw(brought, SD, 0, 1) == expected
    in_float32 = draw(usual.as_made(MadeAs(is_float32=True)), SD, 0)
    again = brought.as_made(MadeAs(is_float32=True))
    assert again.describe()["offload"] == how
    assert draw(again, SD, 0) == in_float32


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("how", HOWS)
def test_where_memory_runs_out_in_the_middle_the_shape_is_halved(
    how: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, freed = load(model(FLUX), offload=how), list[int]()
    expected = draw(load(model(FLUX)).with_batch_size(2), FLUX, 0, 1)
    pipe = pipeline._call.loaded.pipe
    denoise, free = pipe.transformer.forward, pipe.maybe_free_model_hooks

    def small(*args: Any, **kwargs: Any) -> Any:
        if len(kwargs["hidden_states"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return denoise(*args, **kwargs)

    def freeing() -> None:
        freed.append(1)
        free()

    def draw_rows(self: FamilyCall, requests: Sequence[Any]) -> torch.Tensor:
        pipe.transformer.forward = small  # hooks are laid anew after every call
        return drawing(self, requests)

    drawing = FamilyCall.draw
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", freeing)
    monkeypatch.setattr(FamilyCall, "draw", draw_rows)
    made = pipeline.generate([request(number, FLUX) for number in range(4)])
    assert [how_made(one) for one in made] == [MadeAs(batch_size=2)] * 4
    assert pixels(made)[:2] == expected
    assert len(freed) == 3  # what failed, and two that did not


# Refused, and identified


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"offload": "disk"},
            "model.offload: unknown value 'disk'; known: none, model, sequential",
        ),
        ({"offload": "modle"}, "unknown value 'modle'; did you mean 'model'"),
        ({"offload": "model", "device": "cpu"}, "model.offload: model, but model.device=cpu comp"),
        ({"offload": "model", "compile": True}, "model.compile: cannot be combined with model.off"),
        ({"offload": "model", "engine": "ldm"}, "model.offload: only engine diffusers knows it"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    model = ModelConfig(**{"engine": "diffusers", "path": "m", **changes})
    job = JobConfig(model=model, source=SourceConfig(uri="in"), sink=SinkConfig(uri="out"))
    with pytest.raises(JobError, match=told):
        validate_job(job)


def test_without_accelerate_nothing_is_stored(
    model: Callable[[str], Path],
    prompts: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job(model(SD), prompts(SD), tmp_path / "out", model__offload="sequential")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(
        JobError, match=r"needs accelerate, .*: pip install 'ldm-batch\[offload\]'$"
    ):
        run_job(job, out=io.StringIO())
    assert not [path for path in tmp_path.rglob("out/**/*") if path.is_file()]


def test_a_worker_without_a_device_has_nothing_to_bring(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a dataset of a GPU is verified anywhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pipeline = load(model(SD), offload="sequential")
    assert "offload" not in pipeline.describe()
    assert draw(pipeline, SD, 0) == draw(load(model(SD)), SD, 0)
    with pytest.raises(JobError, match=r"model\.device=cuda: this worker has no CUDA device"):
        load(model(SD), offload="model", device="cuda")


def test_it_identifies_images_and_a_batch_size(model: Callable[[str], Path]) -> None:
    call = request(0, PIXART).call
    models = [
        ModelConfig(engine="diffusers", path=str(model(PIXART)), offload=how)
        for how in ("none", *HOWS)
    ]
    assert len({_key(one, call) for one in models}) == 3
    assert "offload" not in identify_model(models[0], {}, "diffusers")
    assert identify_model(models[1], {}, "diffusers")["offload"] == "model"


# accelerate and peft are extras

DRAW = """
import sys
for name in sys.argv[3:]:
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import diffusers.utils, hashlib
from pathlib import Path
from test_family import FLUX, draw, load
assert diffusers.utils.is_accelerate_available() == ("accelerate" not in sys.argv)
assert diffusers.utils.is_peft_available() == ("peft" not in sys.argv)
for dtype in ("float32", "bfloat16"):
    pipeline = load(Path(sys.argv[2]), dtype=dtype)
    drawn = b"".join(draw(pipeline, FLUX, 0, 1))
    told = sorted(pipeline.describe()["dtypes"].items())
    print(dtype, hashlib.sha256(drawn).hexdigest(), told)
"""


@pytest.mark.long
def test_without_accelerate_and_peft_the_same_is_drawn(
    model: Callable[[str], Path],
) -> None:
    tests, told = Path(__file__).parent, []
    for hidden in ((), ("accelerate", "peft")):
        command = [sys.executable, "-c", DRAW, str(tests), str(model(FLUX)), *hidden]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tests.parent,
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert told[0] == told[1]
    here = b"".join(draw(load(model(FLUX)), FLUX, 0, 1))
    assert hashlib.sha256(here).hexdigest() in told[0]
    assert len(told[0].splitlines()) == 2


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_a_weight_that_is_missing_is_never_left_random(
    part: str, copied: Callable[[str], Path]
) -> None:
    [path] = (copied(FLUX) / part).glob("*.safetensors")
    weights = load_file(path)
    del weights[max(name for name in weights if name.endswith("weight"))]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(JobError, match=rf"{part}: \d missing keys: "):
        load(path.parents[1])
