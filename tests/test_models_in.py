"""The models that people have get in: pickled weights, variants, a hub's main, wrong betas."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import Ended
from commands import run as run_command
from hub_server import LATER, REPO_ID, REVISION, Hub, Refusal, hub_server
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from pickled_model import DEMO, HUBS, WEIGHTS, assert_same_weights, pickled
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ldm_batch.config import JobConfig, ModelConfig, SchedulerConfig
from ldm_batch.diffusion.from_model import load_model
from ldm_batch.diffusion.load import load
from ldm_batch.diffusion.models import cache, model_folder
from ldm_batch.diffusion.models.conversion import RECORD, read_conversion
from ldm_batch.diffusion.models.files import lock_model
from ldm_batch.diffusion.models.find import find_model
from ldm_batch.diffusion.models.pickles import as_tensors, read_pickle
from ldm_batch.diffusion.schedulers import (
    find_beta_trouble,
    find_config_trouble,
    make_scheduler,
)
from ldm_batch.diffusion.text_to_image import TextToImage
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import choose, validate_job
from ldm_batch.generate.text_to_image import TEXT_TO_IMAGE

CONVERTED = {f"{name}/{pickled_name}" for name, (_, pickled_name) in WEIGHTS.items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("LDM_BATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Pickled weights


@pytest.mark.parametrize("is_zip", [True, False], ids=["today's format", "before torch 1.6"])
def test_pickled_weights_come_in_once(tmp_path: Path, own_cache: Path, is_zip: bool) -> None:
    folder = pickled(tmp_path / "model", _use_new_zipfile_serialization=is_zip)
    model = ModelConfig(path=str(folder))
    found = find_model(model)
    assert_same_weights(found, DEMO)
    lock = lock_model(found)
    assert lock.pop("converter") == "1"
    assert lock == {path: cache.sha256(folder / path) for path in lock}
    assert lock.keys() >= CONVERTED
    made = {path: path.stat().st_mtime_ns for path in own_cache.rglob("*.safetensors")}
    assert find_model(model) == found
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(made) == 3


def test_the_same_pickles_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(path=str(pickled(tmp_path / "model")))
    results = []
    for home in "ab":
        monkeypatch.setenv("LDM_BATCH_CACHE", str(tmp_path / home))
        made = read_conversion(find_model(model))
        assert made is not None
        results.append(made.result)
    assert results[0] == results[1]


def test_parts_of_pickled_weights_and_tied_ones(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model")
    whole = folder / "unet" / "diffusion_pytorch_model.bin"
    state = torch.load(whole, weights_only=True)
    whole.unlink()
    first, second = list(state)[::2], list(state)[1::2]
    pair = [key for key in first if state[key].shape == state["conv_in.bias"].shape][:2]
    values = {key: torch.full_like(state[key], 0.25) for key in pair}
    values = dict.fromkeys(pair, values[pair[0]])  # one tensor, two names
    weight_map = {}
    for number, keys in enumerate((first, second), 1):
        part = f"diffusion_pytorch_model-{number:05d}-of-00002.bin"
        torch.save({key: values.get(key, state[key]) for key in keys}, folder / "unet" / part)
        weight_map |= dict.fromkeys(keys, part)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "unet" / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))

    found = find_model(ModelConfig(path=str(folder)))
    unet = load(found, lock=lock_model(found))["unet"].state_dict()
    assert all(torch.equal(unet[key], values.get(key, state[key])) for key in state)
    stored: list[str] = []
    for path in (found / "unet").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            stored += file.keys()
    assert set(state) - set(stored) == {pair[1]}
    assert len(stored) == len(state) - 1


def test_views_of_one_memory_and_other_strides_keep_their_values(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model")
    path = folder / "vqvae" / "diffusion_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    square = next(key for key, v in state.items() if v.ndim == 4 and v.shape[0] == v.shape[1])
    pair = [key for key, v in state.items() if v.ndim == 1 and len(v) == 32][:2]
    memory = torch.arange(64.0)
    changed = {pair[0]: memory[:32], pair[1]: memory[32:]}
    changed[square] = state[square].transpose(0, 1).contiguous().transpose(0, 1)
    assert not changed[square].is_contiguous()
    torch.save({**state, **changed}, path)
    found = find_model(ModelConfig(path=str(folder)))
    vqvae = load_file(found / "vqvae" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(vqvae[pair[0]], memory[:32])
    assert torch.equal(vqvae[pair[1]], memory[32:])
    assert torch.equal(vqvae[square], state[square])


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/ldm_batch_was_run",)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda state: {**state, "x": Evil()}, r"names (posix|os|nt)\.system: .* never code"),
        (lambda state: {**state, "step": 3}, r"step is a int, not a tensor"),
        (lambda state: {**state, 5: torch.ones(1)}, r"the key 5, which is no name"),
        (lambda state: {"state_dict": state}, r"state_dict is a dict, not a tensor"),
        (lambda state: list(state.values()), r"holds a list, not a mapping"),
        (lambda state: {**state, "x": torch.ones(1).expand(2**40)}, r"x claims 1099511627776"),
        (
            lambda state: {**state, "x": torch.eye(2).to_sparse()},
            r"names torch\._utils\._rebuild_sparse_tensor",
        ),
        (lambda _: {"a": torch.ones(1)}, r"missing keys|unexpected keys"),
    ],
)
def test_what_is_no_weights_is_refused_by_name(
    tmp_path: Path, own_cache: Path, value: Callable[[Any], Any], message: str, is_zip: bool
) -> None:
    folder = pickled(tmp_path / "model")
    path = folder / "unet" / "diffusion_pytorch_model.bin"
    torch.save(
        value(torch.load(path, weights_only=True)), path, _use_new_zipfile_serialization=is_zip
    )
    with pytest.raises(JobError, match=message) as raised:
        load(find_model(ModelConfig(path=str(folder))))
    assert "unet" in str(raised.value)
    assert not Path("/tmp/ldm_batch_was_run").exists()
    if "keys" not in message:
        assert not [p for p in own_cache.glob("models/*") if p.suffix != ".lock"]


class Large:
    """Asks for a gigabyte in a few bytes, by what torch's own reader would allow."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __reduce__(self) -> tuple[type[bytearray], tuple[int]]:
        return bytearray, (self.size,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_small_pickle_takes_little_memory(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "model.bin"
    torch.save({"x": Large(10**12)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(JobError, match=r"names (__builtin__|builtins)\.bytearray"):
        read_pickle(path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_a_dtype_that_no_weight_has_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = pickled(tmp_path / "model")
    path = folder / "unet" / "diffusion_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "conv_in.bias": state["conv_in.bias"].to(dtype)}, path)
    with pytest.raises(JobError, match=rf"conv_in\.bias is of {dtype}, no dtype of weights"):
        find_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`")],
)
def test_what_people_have_in_place_of_weights_is_told(
    tmp_path: Path, content: bytes, message: str
) -> None:
    folder = pickled(tmp_path / "model")
    (folder / "bert" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(JobError, match=rf"bert/pytorch_model\.bin: .*{message}"):
        find_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("damage", [b"PK\x03\x04", b"\x80\x02X" + b"\xff" * 50, b"\0" * 999])
def test_a_damaged_pickle_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(damage)
    with pytest.raises(JobError, match=r"model\.bin: cannot be read as a file of torch\.save"):
        as_tensors(read_pickle(path), path)


def test_a_changed_conversion_is_not_loaded(tmp_path: Path) -> None:
    model = ModelConfig(path=str(pickled(tmp_path / "model")))
    found = find_model(model)
    lock = lock_model(found)
    path = found / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(JobError, match="is not what was converted; delete that folder"):
        load(found, lock=lock)
    path.unlink()  # what is not whole is made again
    assert find_model(model) == found
    load(found, lock=lock)
    (tmp_path / "model" / "vqvae" / "config.json").write_text("{}")
    assert find_model(model) != found


def test_a_conversion_is_nobodys_link(tmp_path: Path) -> None:
    """A source that is edited in place, and put back, must not change what was made of it."""
    folder = pickled(tmp_path / "model")
    found = find_model(ModelConfig(path=str(folder)))
    lock = lock_model(found)
    path = folder / "scheduler" / "scheduler_config.json"
    before = path.read_text()
    path.write_text(before.replace("0.02", "0.5"))
    load(found, lock=lock)
    path.write_text(before)
    assert find_model(ModelConfig(path=str(folder))) == found


@pytest.mark.parametrize(
    "record", ["[" * 100_000, '{"source": 5, "result": [1], "tied": 3}', "{}", "[]", "\x00"]
)
def test_a_damaged_record_means_to_convert_again(tmp_path: Path, record: str) -> None:
    model = ModelConfig(path=str(pickled(tmp_path / "model")))
    found = find_model(model)
    (found / RECORD).write_text(record)
    (found.parent.parent / "digests.json").write_text(record)
    assert read_conversion(found) is None
    assert find_model(model) == found
    assert read_conversion(found) is not None


def test_a_full_disk_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(model_folder, "save_file", full)
    with pytest.raises(JobError, match=r"no room for its weights .* set LDM_BATCH_CACHE"):
        find_model(ModelConfig(path=str(pickled(tmp_path / "model"))))


def test_deep_json_is_one_message(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model")
    (folder / "model_index.json").write_text("[" * 200_000)
    with pytest.raises(JobError, match=r"model_index\.json cannot be read"):
        find_model(ModelConfig(path=str(folder)))


def test_messages_speak_of_what_the_user_named(tmp_path: Path, own_cache: Path) -> None:
    folder = pickled(tmp_path / "model")
    path = folder / "unet" / "diffusion_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "conv_in.bias": state["conv_in.bias"] * float("nan")}, path)
    with pytest.raises(JobError, match=r"conv_in\.bias is not finite") as raised:
        load_model(ModelConfig(path=str(folder)), SchedulerConfig())
    assert str(folder) in str(raised.value)
    assert str(own_cache) not in str(raised.value)


def test_a_model_of_another_kind_is_refused_before_it_is_converted(
    tmp_path: Path, own_cache: Path
) -> None:
    folder = pickled(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "LDMSuperResolutionPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    job = JobConfig(model=ModelConfig(path=str(folder)))
    with pytest.raises(JobError, match=r"model\.path: .* holds a LDMSuperResolutionPipeline"):
        choose(job).find_models()
    assert not (own_cache / "models").exists()


def test_another_converter_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(path=str(pickled(tmp_path / "model")))
    found = find_model(model)
    record = json.loads((found / RECORD).read_text())
    record["source"]["converter"] = "0"
    (found / RECORD).write_text(json.dumps(record))
    assert read_conversion(found) is None
    assert find_model(model) == found
    assert read_conversion(found) is not None


def test_where_nothing_can_be_written_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LDM_BATCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(JobError, match="set LDM_BATCH_CACHE to a folder with room"):
        find_model(ModelConfig(path=str(pickled(tmp_path / "model"))))


def test_processes_that_share_a_cache_convert_once(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model")
    program = (
        "from ldm_batch.config import ModelConfig\n"
        "from ldm_batch.diffusion.models.find import find_model\n"
        f"print(find_model(ModelConfig(path={str(folder)!r})))"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program]
    started = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    ended = [process.communicate(timeout=300) for process in started]
    assert len({out for out, _ in ended}) == 1, ended
    assert sum("converting" in err for _, err in ended) == 1


# Variants


def test_a_variant_is_loaded_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    for name in ("unet", "vqvae"):
        path = folder / name / "diffusion_pytorch_model.safetensors"
        half = {key: value.half() for key, value in load_file(path).items()}
        save_file(
            half, path.with_name("diffusion_pytorch_model.fp16.safetensors"), {"format": "pt"}
        )
        if name == "vqvae":
            path.unlink()
            torch.save(half, path.with_name("diffusion_pytorch_model.bin"))
    usual = ModelConfig(path=str(folder))
    fp16 = ModelConfig(path=str(folder), variant="fp16")
    lock = lock_model(find_model(fp16), "fp16")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in lock
    assert "bert/model.safetensors" in lock  # of which there is no variant
    assert "converter" not in lock
    assert "vqvae/diffusion_pytorch_model.bin" in lock_model(find_model(usual))
    unet = load_model(fp16, SchedulerConfig(), lock=lock)["unet"].state_dict()
    full = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(unet[key], value.half().float()) for key, value in full.items())
    with pytest.raises(JobError, match=r"model\.variant=bf16: .* no weights of this variant"):
        lock_model(find_model(ModelConfig(path=str(folder), variant="bf16")), "bf16")


# Digests


def test_a_digest_is_remembered_until_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a" * (cache.SMALL_BYTES + 1))
    os.utime(path, (1e9, 1e9))
    first = cache.remembered_sha256(path)
    assert first == cache.sha256(path)
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return real(path)

    real = cache.sha256
    monkeypatch.setattr(cache, "sha256", counted)
    assert cache.remembered_sha256(path) == first
    assert not read
    path.write_bytes(b"b" * (cache.SMALL_BYTES + 1))
    assert cache.remembered_sha256(path) == real(path) != first
    os.utime(path, (1e9, 1e9))
    path.with_name("link").symlink_to(path)
    assert cache.remembered_sha256(path.with_name("link")) == real(path)
    (tmp_path / "cache" / "digests.json").write_text("damaged")
    assert cache.remembered_sha256(path) == real(path)


# The noise schedule


def test_a_models_own_settings_are_corrected_before_any_scheduler(tmp_path: Path) -> None:
    path = DEMO / "scheduler" / "scheduler_config.json"
    own = json.loads(path.read_text())
    model = ModelConfig(path=str(DEMO), scheduler_config={"beta_end": 0.03, "steps_offset": 1})
    settings = load_model(model, SchedulerConfig()).scheduler_settings
    assert settings == {**own, "beta_end": 0.03, "steps_offset": 1}
    assert make_scheduler(settings, "dpmpp_2m").config.beta_end == 0.03
    assert make_scheduler(settings, "ddim").config.steps_offset == 1


CONF = Path(__file__).parent.parent / "conf"
CHOICES = sorted(
    f"{group}={path.stem}" for group in ("scheduler", "speed") for path in (CONF / group).iterdir()
)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_scheduler_and_speed_suits_the_papers_model(choice: str) -> None:
    ConfigStore.instance().store(name="job_schema", node=JobConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["conf=txt2img_1m", choice, "source.uri=in", "sink.uri=out"])
    job = OmegaConf.to_object(config)
    assert isinstance(job, JobConfig)
    validate_job(job)
    assert find_config_trouble(job.model.scheduler_config) is None
    own = {**HUBS, **job.model.scheduler_config}
    scheduler = make_scheduler(own, job.scheduler.name, job.scheduler.settings)
    assert scheduler.config.beta_schedule == "scaled_linear"
    papers = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # ldm/modules/diffusionmodules
    np.testing.assert_allclose(scheduler.betas.numpy(), papers, rtol=1e-5)
    assert not scheduler.config.get("set_alpha_to_one", False)
    assert scheduler.config.get("steps_offset", 1) == 1
    assert find_beta_trouble(own) is None
    assert find_beta_trouble(HUBS) is not None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedul": "linear"}, "model.scheduler_config.beta_schedul: no scheduler has such"),
        ({"beta_end": "high"}, "model.scheduler_config.beta_end='high': must be float"),
        ({"_class_name": "os"}, "model.scheduler_config._class_name: no scheduler has such"),
        ({"num_train_timesteps": -1}, "num_train_timesteps=-1; must be 1 to"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0; must be 1 to"),
        ({"num_train_timesteps": 20}, "num_inference_steps=50: DDIMScheduler"),
        ({"beta_start": -1.0}, "DDIMScheduler: "),
        ({"beta_end": float("nan")}, "beta_end=nan is not a finite number"),
        ({"trained_betas": [1, 2]}, ""),
    ],
)
def test_a_wrong_correction_is_named(config: dict[str, Any], message: str) -> None:
    model = ModelConfig(path=str(DEMO), scheduler_config=config)
    with pytest.raises(JobError, match=re.escape(message)):
        choose(JobConfig(model=model)).engine.check_models(JobConfig(model=model), TEXT_TO_IMAGE)


@pytest.mark.long
def test_the_warnings_remedy_can_be_pasted(prompts: Path) -> None:
    folder = pickled(prompts / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **HUBS}))
    job = ["source.uri=in.parquet", "sink.uri=out", "model=local", "model.path=model"]
    first = run_command(prompts, *job, "dry_run=true")
    [warning] = [line for line in first.out.splitlines() if line.startswith("warning: model: ")]
    remedy = shlex.split(warning.partition("; set ")[2])
    second = run_command(prompts, *job, *remedy, "dry_run=true")
    assert (second.code, "warning:" in second.out) == (0, False), second
    third = run_command(prompts, *job, "model.scheduler_config.beta_end=high", "dry_run=true")
    assert "model.scheduler_config.beta_end='high': must be float" in third.err


# A hub


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    prompts = ["a red circle", "a blue square", "a green star", "a yellow triangle"]
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "in.parquet")
    return tmp_path


def run_job(hub: Hub, folder: Path, *arguments: str, **env: str) -> Ended:
    """Run the default job on the hub's model, whatever its main is."""
    hidden = {"HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"}
    kept = {key: value for key, value in os.environ.items() if key not in hidden}
    command = [sys.executable, "-m", "ldm_batch.run", "conf=demo", "source.uri=in.parquet"]
    from_hub = ["sink.uri=out", "model.path=null", f"model.repo_id={REPO_ID}"]
    small = ["call.num_inference_steps=2", "batch_size=2", "rows_per_shard=2"]
    ended = subprocess.run(
        [*command, *from_hub, *small, *arguments],
        cwd=folder,
        env={**kept, **hub.environment, "HF_HOME": str(folder / "home"), **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def plan(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "out/.ldm_batch/plan.json").read_text())
    return document


def test_a_hubs_main_is_resolved_once_and_its_pickles_come_in(prompts: Path) -> None:
    with hub_server(pickled(prompts / "model")) as hub:
        hub.later = {"model_index.json": b"{}"}
        first = run_job(hub, prompts, "shards=[0]", "cluster.num_workers=2")
        assert first.code == 0, first
        assert f"model: {REPO_ID} at its main of today, {REVISION}" in first.out
        asked = {name for way, name in hub.requests if way == "GET"}
        assert asked >= {"main", "tree", *CONVERTED}
        assert not any(name.endswith((".py", ".safetensors")) for name in asked)
        hub.main = LATER
        hub.requests.clear()
        rest = run_job(hub, prompts, "cluster=in_process")
    assert rest.code == 0, rest
    assert f"model: {REPO_ID} at the plan's commit, {REVISION}" in rest.out
    assert not hub.requests
    document = plan(prompts)
    assert document["config"]["model"]["revision"] == REVISION
    assert document["models"][""] == f"{REPO_ID}@{REVISION}"
    files = document["images"]["model"]["files"]
    assert files["converter"] == "1"
    assert files.keys() >= CONVERTED
    assert set(document["environment"]["converted_models"]) >= {
        f"{name}/{safe}" for name, (safe, _) in WEIGHTS.items()
    }
    made = pq.read_table(prompts / "out" / "data").to_pydict()
    demo = TextToImage.from_pretrained("demo:text_to_image", batch_size=2, device="cpu")
    images = demo(
        made["prompt"],
        seed=made["seed"],
        num_inference_steps=2,
        guidance_scale=made["guidance_scale"][0],
        output_type="pil",
    ).images
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert digests == made["pixel_sha256"]


def test_a_main_that_cannot_be_asked_for_is_one_message(prompts: Path) -> None:
    with hub_server(DEMO) as hub:
        hub.refusals = [Refusal(401)]
        refused = run_job(hub, prompts, "cluster=in_process")
        assert refused.code == 2
        assert f"model.repo_id={REPO_ID}: cannot ask what its main is" in refused.err
        assert "model.revision=<full commit sha>" in refused.err
        assert "Traceback" not in refused.err
        assert not (prompts / "out").exists()
        refs = prompts / "home" / "hub" / f"models--{REPO_ID.replace('/', '--')}" / "refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text(REVISION)
        hub.requests.clear()
        offline = run_job(hub, prompts, "cluster=in_process", HF_HUB_OFFLINE="1")
        assert f"at its main of today, {REVISION}" in offline.out
        assert "HF_HUB_OFFLINE is set" in offline.err
        assert not hub.requests


@pytest.mark.parametrize(
    ("variant", "ending", "gets", "lacks"),
    [
        (None, "safetensors", "unet/diffusion_pytorch_model.safetensors", ("bin", "fp16")),
        ("fp16", "safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", ("bin",)),
        (None, "bin", "unet/diffusion_pytorch_model.bin", ("fp16",)),
    ],
)
def test_only_the_wanted_form_of_the_weights_is_fetched(
    tmp_path: Path,
    variant: str | None,
    ending: str,
    gets: str,
    lacks: tuple[str, ...],
) -> None:
    """As the paper's super-resolution repository: pickles, and safetensors in half precision."""
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    for name, (safe, bin_name) in WEIGHTS.items():
        state = load_file(folder / name / safe)
        half = {key: value.half() for key, value in state.items()}
        halved = safe.replace(".safetensors", ".fp16.safetensors")
        save_file(half, folder / name / halved, {"format": "pt"})
        torch.save(state, folder / name / bin_name)
        torch.save(half, folder / name / bin_name.replace(".bin", ".fp16.bin"))
        if ending == "bin":
            (folder / name / safe).unlink()
    with hub_server(folder) as hub:
        hub.files |= {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*")}
        program = (
            "from ldm_batch.config import ModelConfig\n"
            "from ldm_batch.diffusion.models.find import find_model\n"
            f"print(find_model(ModelConfig(repo_id={REPO_ID!r}, revision={REVISION!r}, "
            f"variant={variant!r})))"
        )
        env = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    asked = {name for way, name in hub.requests if way == "GET" and "/" in name}
    assert gets in asked
    assert not [name for name in asked for part in lacks if part in name.rpartition("/")[2]]
    found = Path(done.stdout.strip())
    unet = load(found, variant=variant)["unet"].state_dict()
    full = load_file(DEMO / "unet" / "diffusion_pytorch_model.safetensors")
    as_found = {key: value.half().float() if variant else value for key, value in full.items()}
    assert all(torch.equal(unet[key], value) for key, value in as_found.items())


# From Python


def in_python(hub: Hub, home: Path, program: str) -> Ended:
    """Run a user's program that sees the hub."""
    env = {**os.environ, **hub.environment, "HF_HOME": str(home)}
    env.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    return Ended(done.returncode, done.stdout, done.stderr)


def test_a_hub_id_without_a_revision_is_resolved_and_told(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **HUBS}))
    config = {"beta_schedule": "scaled_linear", "steps_offset": 1, "set_alpha_to_one": False}
    program = (
        "from ldm_batch import TextToImage\n"
        f"print(TextToImage.from_pretrained({REPO_ID!r}))\n"
        f"one = TextToImage.from_pretrained({REPO_ID!r}, revision={REVISION!r}, "
        f"scheduler_config={config!r})\n"
        "print(one.describe()['scheduler_settings']['beta_schedule'])\n"
    )
    with hub_server(folder) as hub:
        done = in_python(hub, tmp_path / "home", program)
    assert done.code == 0, done.err
    first, second = done.out.splitlines()
    assert first.startswith(f"TextToImage({REPO_ID}@{REVISION[:12]}, scheduler=DDIMScheduler")
    assert second == "scaled_linear"
    assert f"{REPO_ID}: its main is {REVISION}; revision=... stays with it" in done.err
    assert done.err.count("says beta_schedule: linear") == 1


def test_a_variant_that_a_hub_has_alone_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    for path in [*folder.glob("unet/*.safetensors"), *folder.glob("vqvae/*.safetensors")]:
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    with pytest.raises(JobError, match=r"; it has fp16: model\.variant=fp16"):
        find_model(ModelConfig(path=str(folder)))
    with hub_server(folder) as hub:
        del hub.files["unet/diffusion_pytorch_model.bin"]
        program = "import ldm_batch; ldm_batch.TextToImage.from_pretrained('org/model')"
        done = in_python(hub, tmp_path / "home", program)
    assert "no usual weights of unet" in done.err
    assert "it has fp16" in done.err


def test_what_is_neither_folder_nor_repository_says_so(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"path_or_repo_id=.*: no folder here"):
        TextToImage.from_pretrained("./models/ldm")
    with pytest.raises(JobError, match=r"scheduler_config\.beta_end='x': must be float"):
        TextToImage.from_pretrained("demo:text_to_image", scheduler_config={"beta_end": "x"})
    with pytest.raises(JobError, match=r"^variant: '\.\./x' is no name of a variant"):
        TextToImage.from_pretrained("demo:text_to_image", variant="../x")
    with hub_server(DEMO) as hub:
        hub.refusals = [Refusal(404)]
        program = "import ldm_batch; ldm_batch.TextToImage.from_pretrained('models/ldm')"
        done = in_python(hub, tmp_path / "home", program)
    assert "JobError: models/ldm is no folder here, and of the hub: " in done.err
