"""Jobs by diffusers' own pipelines: made, verified, resumed; and what is refused when planned."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import run
from hub_server import REPO_ID, REVISION, Hub, hub_server
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from test_family import FLUX, KINDS, NEGATIVE, PIXART, SD, SD3, SDXL, TEXTS, rewrite
from test_family import copied as copied
from test_family import model as model

from ldm_batch.commands.verify.regenerate import Sample
from ldm_batch.commands.verify.verification import EXIT_RIGHT, verify
from ldm_batch.config import (
    CallConfig,
    ClusterConfig,
    JobConfig,
    ModelConfig,
    SchedulerConfig,
    SinkConfig,
    SourceConfig,
    UpscaleConfig,
)
from ldm_batch.diffusion import batch_size
from ldm_batch.diffusion.family import files as family_files
from ldm_batch.diffusion.family.table import FAMILIES
from ldm_batch.diffusion.models import files
from ldm_batch.drive import run_job
from ldm_batch.errors import JobError
from ldm_batch.generate.choose import validate_job
from ldm_batch.run import config_folder
from ldm_batch.storage import Store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own, of numpy

NUMBERS = range(6)
GUIDANCE = (3.0, 1.0, 3.0, 3.0, 1.0, 3.0)
"""Of each row: two calls in every shard."""


@pytest.fixture
def prompts(tmp_path: Path, write_parquet: Callable[..., str]) -> Callable[..., str]:
    """`prompts(kind)` -> a table of six rows, negative prompts where the class takes them."""

    def write(kind: str, order: range = NUMBERS, **more: list[Any]) -> str:
        columns = {
            "id": [f"row {number}" for number in order],
            "prompt": [TEXTS[number] for number in order],
            "guidance_scale": [GUIDANCE[number] for number in order],
            **more,
        }
        if FAMILIES[kind].has_negative:
            columns["negative_prompt"] = [NEGATIVE[number] for number in order]
        return write_parquet(tmp_path / f"{kind}{order[0]}.parquet", **columns)

    return write


def make_job(folder: Path, source: str, sink: Path, **changes: Any) -> JobConfig:
    """Two steps of a tiny model; `section__field=value` changes a section."""
    job = JobConfig(
        model=ModelConfig(engine="diffusers", path=str(folder)),
        call=CallConfig(num_inference_steps=2, height=32, width=32),
        source=SourceConfig(uri=source),
        sink=SinkConfig(uri=str(sink)),
        cluster=ClusterConfig(executor="in_process"),
        batch_size=3,
        rows_per_shard=4,
    )
    for path, value in changes.items():
        section, _, field = path.rpartition("__")
        if section:
            value = dataclasses.replace(getattr(job, section), **{field: value})
        job = dataclasses.replace(job, **{section or field: value})
    return job


def made(job: JobConfig) -> str:
    """Run a job to its end; what it told."""
    told = io.StringIO()
    assert run_job(job, out=told) == 0
    return told.getvalue()


def objects(job: JobConfig) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(str(job.sink.uri), "data").iterdir())}


def records(job: JobConfig) -> dict[str, dict[str, Any]]:
    """Rows of a dataset by key, without images."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(Path(str(job.sink.uri), "data").iterdir()):
        table = pq.read_table(path)
        rows = table.drop_columns(["image"]).to_pylist()
        found |= {row["key"]: row for row in rows}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_is_made_verified_resumed_and_made_in_reverse(
    kind: str, model: Callable[[str], Path], prompts: Callable[..., str], tmp_path: Path
) -> None:
    job = make_job(model(kind), prompts(kind), tmp_path / "out")
    made(job)
    before, rows = objects(job), records(job)
    assert len(rows) == len({row["pixel_sha256"] for row in rows.values()}) == 6
    assert {row["prompt_tokens"] > 0 for row in rows.values()} == {True}
    found = verify(Store(str(job.sink.uri)), Sample(4))
    assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)

    (tmp_path / "out" / "data" / "00001.parquet").unlink()
    made(job)
    assert objects(job) == before

    reverse = prompts(kind, NUMBERS[::-1])
    other = make_job(model(kind), reverse, tmp_path / "reverse", rows_per_shard=6)
    made(other)
    assert {k: r["pixel_sha256"] for k, r in records(other).items()} == {
        k: r["pixel_sha256"] for k, r in rows.items()
    }


def test_the_real_commands(
    model: Callable[[str], Path], prompts: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(model(SDXL), tmp_path / "model")
    settings = (
        *("conf=sdxl_turbo", "model=local", "model.engine=diffusers", "model.path=model"),
        *(f"source.uri={prompts(SDXL)}", "sink.uri=out", "cluster=in_process"),
        *("call.height=32", "call.width=32", "batch_size=3", "model.vae_slicing=true"),
    )
    ended = run(tmp_path, *settings)
    assert (ended.code, ended.err) == (0, "")
    checked = run(tmp_path, "verify", "out", "--regenerate", "3", module="ldm_batch")
    assert checked.code == 0, checked.out + checked.err
    assert "3 with the same bytes" in checked.out
    refused = run(tmp_path, "tradeoff", "out", module="ldm_batch")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    told = "is measured of our own loop, engine ldm; this dataset's engine is diffusers"
    assert told in refused.err


def test_what_is_never_loaded_is_told_and_recorded(
    copied: Callable[[str], Path], prompts: Callable[..., str], tmp_path: Path
) -> None:
    folder = copied(SD)
    named = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    rewrite(folder / "model_index.json", **named)
    job = make_job(folder, prompts(SD), tmp_path / "out")
    assert "never loaded: safety_checker" in made(job)
    receipts = Path(str(job.sink.uri), ".ldm_batch", "receipts")
    told = [json.loads(path.read_text())["pipeline"] for path in receipts.iterdir()]
    assert [one["not_loaded"] for one in told] == [["safety_checker"]] * 2


def test_rows_that_ask_in_vain_are_rejected(
    model: Callable[[str], Path], prompts: Callable[..., str], tmp_path: Path
) -> None:
    source = prompts(FLUX, negative_prompt=["", "ugly", "", "", "bad", ""])
    job = make_job(model(FLUX), source, tmp_path / "out", max_rejected_fraction=1.0)
    made(job)
    assert sorted(records(job)) == ["row 0", "row 2", "row 3", "row 5"]
    found = verify(Store(str(job.sink.uri)))
    assert found.rejected == {"out_of_range": 2}


def test_a_leak_is_found_before_anything_is_stored(
    model: Callable[[str], Path],
    prompts: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        family_files,
        "FAMILIES",
        {**FAMILIES, FLUX: dataclasses.replace(FAMILIES[FLUX], has_own_noise=True)},
    )
    leaking = {"stochastic_sampling": True}
    job = make_job(model(FLUX), prompts(FLUX), tmp_path / "out", scheduler__settings=leaking)
    with pytest.raises(JobError, match="FluxPipeline with FlowMatchEulerDiscreteScheduler drew"):
        made(job)
    assert not [path for path in tmp_path.rglob("out/**/*") if path.is_file()]


def test_a_changed_file_stops_a_job(
    copied: Callable[[str], Path], prompts: Callable[..., str], tmp_path: Path
) -> None:
    folder = copied(PIXART)
    job = make_job(folder, prompts(PIXART), tmp_path / "out")
    made(job)
    (tmp_path / "out" / "data" / "00000.parquet").unlink()
    rewrite(folder / "scheduler" / "scheduler_config.json", beta_start=0.0002)
    with pytest.raises(JobError, match=r"scheduler/scheduler_config\.json"):
        made(job)


def test_images_are_enlarged_in_the_same_worker(
    model: Callable[[str], Path], prompts: Callable[..., str], tmp_path: Path
) -> None:
    second = UpscaleConfig(model=ModelConfig(path="demo:super_resolution"), num_inference_steps=1)
    job = make_job(model(SDXL), prompts(SDXL), tmp_path / "out", upscale=second)
    made(job)
    assert {(row["height"], row["width"]) for row in records(job).values()} == {(128, 128)}
    found = verify(Store(str(job.sink.uri)), Sample(2))
    assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)


def fetched(hub: Hub, home: Path) -> subprocess.CompletedProcess[str]:
    """Find the hub's model for engine `diffusers`, in a process of its own."""
    program = (
        "from ldm_batch.config import ModelConfig\n"
        "from ldm_batch.diffusion.models.files import lock_model\n"
        "from ldm_batch.diffusion.models.find import find_model\n"
        f"model = ModelConfig(engine='diffusers', repo_id={REPO_ID!r}, revision={REVISION!r})\n"
        "print(*lock_model(find_model(model)))"
    )
    env = {**os.environ, **hub.environment, "HF_HOME": str(home)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("kind", [SDXL, "StableDiffusionUpscalePipeline"])
def test_of_a_hub_only_what_is_read_is_fetched(
    kind: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(kind)
    for path in ("safety_checker/model.safetensors", "unet/code.py", "other.safetensors"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(b"x")
    rewrite(folder / "model_index.json", safety_checker=["a", "B"])
    with hub_server(folder) as hub:
        hub.files |= {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*")}
        done = fetched(hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*files.lock_model(folder)]
    asked = {name for way, name in hub.requests if way == "GET"}
    unread = ("safety_checker/model.safetensors", "unet/code.py", "other.safetensors")
    assert not asked & {*unread}


def test_of_another_pipeline_no_weights_are_fetched(
    copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(FLUX)
    rewrite(folder / "model_index.json", _class_name="Flux2Pipeline")
    with hub_server(folder) as hub:
        hub.files |= {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*")}
        done = fetched(hub, tmp_path / "home")
    assert "holds a Flux2Pipeline; engine diffusers draws by StableDiffusionPipeline" in done.stderr
    assert not [name for _, name in hub.requests if name.endswith(".safetensors")]


def test_a_batch_size_is_measured(
    model: Callable[[str], Path],
    prompts: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LDM_BATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(batch_size.find_batch_size.__kwdefaults__, "candidates", (1, 2))
    job = make_job(model(PIXART), prompts(PIXART), tmp_path / "out", batch_size="auto")
    made(job)
    found = verify(Store(str(job.sink.uri)), Sample(2))
    assert (found.problems, found.exit_code) == ([], EXIT_RIGHT)


# Refused when it is planned


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        (SD, {"call__strength": 0.5}, "call.strength: this task has no use for it; leave it out"),
        (SD, {"call__noise_level": 20}, "call.noise_level: this task has no use for it"),
        (SD, {"scheduler__guidance_interval": [0.0, 0.5]}, "scheduler.guidance_interval: "),
        (SD, {"scheduler__cache_interval": 2}, "scheduler.cache_interval: 2, but"),
        (SD, {"scheduler__name": "flow"}, "scheduler.name=flow: unknown"),
        (SD, {"scheduler__settings": {"prediction_type": "v_prediction"}}, "prediction_type"),
        (SD, {"model__scheduler_config": {"shift": 3.0}}, "model.scheduler_config.shift: no sch"),
        (SD, {"model__engine": "ldm"}, "StableDiffusionPipeline; .* model.engine=diffusers draws"),
        (FLUX, {"scheduler__name": "ddim"}, "scheduler.name=ddim: FluxPipeline is sampled by its"),
        (FLUX, {"scheduler__settings": {"shift": "x"}}, "scheduler.settings.shift='x': must be"),
        (FLUX, {"scheduler__settings": {"beta_start": 1.0}}, "has no such setting"),
        (
            FLUX,
            {"scheduler__settings": {"stochastic_sampling": True}},
            "FlowMatchEulerDiscreteScheduler draws noise at every step, and FluxPipeline",
        ),
        (FLUX, {"call__eta": 0.5}, "call.eta: 0.5, but FluxPipeline takes none"),
        (FLUX, {"call__negative_prompt": "ugly"}, "call.negative_prompt: 'ugly', but FluxPipeline"),
        (FLUX, {"call__guidance_rescale": 0.7}, "call.guidance_rescale: 0.7, but FluxPipeline"),
        (FLUX, {"scheduler__guidance_rescale": 0.7}, "scheduler.guidance_rescale: 0.7, but Flux"),
        (FLUX, {"model__attention": "plain"}, "model.attention: plain is for UNets"),
        ("SanaPipeline", {"call__height": 40}, "call.height: 40 is not a multiple of 32, which"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused_by_name(
    kind: str,
    changes: dict[str, Any],
    told: str,
    model: Callable[[str], Path],
    prompts: Callable[..., str],
    tmp_path: Path,
) -> None:
    job = make_job(model(kind), prompts(kind), tmp_path / "out", **changes)
    with pytest.raises(JobError, match=told) as refused:
        made(job)
    assert len(str(refused.value).splitlines()) == 1
    assert not [path for path in tmp_path.rglob("out/**/*") if path.is_file()]


@pytest.mark.parametrize("field", ["text_encoder_dtype", "vae_slicing", "vae_tiling"])
def test_our_own_loop_has_no_use_for_what_is_diffusers(field: str) -> None:
    value = "bfloat16" if field == "text_encoder_dtype" else True
    job = JobConfig(
        model=ModelConfig(path="demo:text_to_image", **{field: value}),
        source=SourceConfig(uri="in"),
        sink=SinkConfig(uri="out"),
    )
    with pytest.raises(JobError, match=f"model.{field}: only engine diffusers knows it"):
        validate_job(job)


def test_the_models_of_the_cards_compose() -> None:
    """Each with its repository and no revision, which is resolved when a job is planned."""
    ConfigStore.instance().store(name="job_schema", node=JobConfig)
    named = []
    for path in sorted((config_folder() / "model").glob("*.yaml")):
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = compose("config", [f"model={path.stem}", "source.uri=in", "sink.uri=out"])
        job = OmegaConf.to_object(composed)
        assert isinstance(job, JobConfig)
        if job.model.engine == "diffusers":
            validate_job(job)
            assert job.model.repo_id
            assert job.model.revision is None
            named.append(path.stem)
    assert len(named) == 14


def test_a_flowing_model_may_be_told_its_own_scheduler(
    model: Callable[[str], Path], prompts: Callable[..., str], tmp_path: Path
) -> None:
    own = SchedulerConfig(name="FlowMatchEulerDiscreteScheduler", settings={"shift": 2.0})
    usual = make_job(model(SD3), prompts(SD3), tmp_path / "usual")
    shifted = make_job(model(SD3), prompts(SD3), tmp_path / "out", scheduler=own)
    for job in (usual, shifted):
        made(job)
    digests = [{row["pixel_sha256"] for row in records(job).values()} for job in (usual, shifted)]
    assert not digests[0] & digests[1]
