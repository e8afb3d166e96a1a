"""Original checkpoints become folders that give the original's outputs, or are refused by name."""

import copy
import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, VQModel
from original_checkpoints import (
    DIFFUSION,
    FIRST_STAGES,
    WIDTH,
    Original,
    make_original,
    make_small,
    save,
    save_lightning,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from test_decode import png
from torch import Tensor

from ldm_batch.commands.import_model import Import, import_model, main
from ldm_batch.config import (
    CallConfig,
    ClusterConfig,
    JobConfig,
    ModelConfig,
    SinkConfig,
    SourceConfig,
)
from ldm_batch.diffusion import load as loading
from ldm_batch.diffusion.load import Components, load
from ldm_batch.diffusion.models.conditioners import load_class_embedder, load_rescaler
from ldm_batch.diffusion.models.files import lock_model
from ldm_batch.diffusion.sampler import sample
from ldm_batch.diffusion.schedulers import make_scheduler
from ldm_batch.drive import run_job
from ldm_batch.errors import JobError

OF_TEXT = ("txt2img-large", "text2img256")
PIPELINES = {
    "txt2img-large": "LDMTextToImagePipeline",
    "text2img256": "LDMTextToImagePipeline",
    "bsr_sr": "LDMSuperResolutionPipeline",
    "celeba": "LDMPipeline",
    "ffhq": "LDMPipeline",
    "lsun_beds": "LDMPipeline",
    "lsun_churches": "LDMPipeline",
    "cin256": "LDMClassToImagePipeline",
    "cin256-v2": "LDMClassToImagePipeline",
    "inpainting_big": "LDMInpaintPipeline",
    "layout2img": "LDMLayoutToImagePipeline",
    "semantic_synthesis256": "LDMSemanticSynthesisPipeline",
    "semantic_synthesis512": "LDMSemanticSynthesisPipeline",
}
TIMES = torch.tensor([981, 21])
CLOSE = 1e-5
"""Of the largest value."""
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Imported = tuple[Original, Path]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture(scope="module")
def imported(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Path
) -> Callable[[str], Imported]:
    """`imported(name)` -> a released model at reduced width, and what the command made of it."""
    done: dict[str, Imported] = {}

    def make(name: str) -> Imported:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            original = make_original(name)
            options = ["--tokenizer", str(tokenizer)] if name in OF_TEXT else []
            main([str(save(original, folder / "in")), str(folder / "out"), *options])
            done[name] = original, folder / "out"
        return done[name]

    return make


@pytest.fixture(scope="module")
def parts() -> Callable[[Path], Components]:
    """`parts(folder)` -> all that it holds, loaded as a job's parts are, whatever draws by it."""
    done: dict[Path, Components] = {}

    def load_parts(folder: Path) -> Components:
        if folder not in done:
            index = json.loads((folder / "model_index.json").read_text())
            names = tuple(name for name in index if not name.startswith("_"))
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(loading.PIPELINE_COMPONENTS, index["_class_name"], names)
                done[folder] = load(folder, lock=lock_model(folder))
        return done[folder]

    return load_parts


def gap(right: Tensor, made: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    assert right.shape == made.shape
    return ((right - made).abs().max() / right.abs().max()).item()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def unet_inputs(original: Original) -> tuple[Tensor, Tensor | None]:
    numbers = original.settings["params"]["unet_config"]["params"]
    has_tokens = "context_dim" in numbers
    return random(2, numbers["in_channels"], 16, 16), random(2, 5, WIDTH) if has_tokens else None


@torch.no_grad()
def unet_gap(original: Original, module: Any, network: Any = None) -> float:
    """How far a loaded UNet is from the one by which the original samples."""
    x, tokens = unet_inputs(original)
    right = (network or original.sampled)(x, TIMES, tokens)
    given = {} if tokens is None else {"encoder_hidden_states": tokens}
    return gap(right, module(x, TIMES, **given).sample)


@torch.no_grad()
def first_stage_gap(original: Original, module: Any) -> float:
    """How far a loaded first stage is from the original, both ways."""
    numbers = original.first_stage
    x, z = random(1, 3, 64, 64), random(1, numbers.post_quant_conv.in_channels, 4, 4)
    encoded = module.encode(x)
    latents = encoded.latents if isinstance(module, VQModel) else encoded.latent_dist.parameters
    return max(gap(numbers.encode(x), latents), gap(numbers.decode(z), module.decode(z).sample))


# The same outputs


@pytest.mark.parametrize("name", DIFFUSION)
def test_unet_and_first_stage_are_the_originals(
    name: str, imported: Callable[[str], Imported], parts: Callable[[Path], Components]
) -> None:
    original, folder = imported(name)
    loaded = parts(folder)
    assert loaded.pipeline == PIPELINES[name]
    assert unet_gap(original, loaded["unet"]) < CLOSE
    assert first_stage_gap(original, loaded["vqvae"]) < CLOSE


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_first_stage_alone_is_the_original(
    name: str, imported: Callable[[str], Imported]
) -> None:
    original, folder = imported(name)
    kind = AutoencoderKL if name.startswith("kl") else VQModel
    module = kind.from_pretrained(folder / "vqvae", use_safetensors=True).eval()
    assert first_stage_gap(original, module) < CLOSE
    with pytest.raises(JobError, match=f"pipeline {kind.__name__} is none of LDMTextToImage"):
        load(folder)


@pytest.mark.parametrize("name", [*OF_TEXT, "layout2img"])
@torch.no_grad()
def test_text_encoders_are_the_originals(
    name: str, imported: Callable[[str], Imported], parts: Callable[[Path], Components]
) -> None:
    original, folder = imported(name)
    bert = parts(folder)["bert"]
    number = bert.config.max_position_embeddings
    assert number == (92 if name == "layout2img" else 77)
    tokens = torch.randint(8192, (2, number), generator=torch.Generator().manual_seed(1))
    assert gap(original.condition(tokens), bert(tokens)[0]) < CLOSE


@torch.no_grad()
def test_other_conditions_are_the_originals(imported: Callable[[str], Imported]) -> None:
    for name, classes in (("cin256", [0, 999]), ("cin256-v2", [0, 1000])):
        original, folder = imported(name)
        numbers = torch.tensor(classes)
        assert torch.equal(original.condition(numbers), load_class_embedder(folder)(numbers))
    for name in ("semantic_synthesis256", "semantic_synthesis512"):
        original, folder = imported(name)
        maps = random(1, 182, 16, 16)
        assert gap(original.condition(maps), load_rescaler(folder)(maps)) < CLOSE
    with pytest.raises(JobError, match="no model of classes"):
        load_class_embedder(folder)


# Traps


def test_the_average_is_what_is_sampled_with(
    imported: Callable[[str], Imported], parts: Callable[[Path], Components]
) -> None:
    original, folder = imported("celeba")
    unet = parts(folder)["unet"]
    assert unet_gap(original, unet, original.average) < CLOSE
    assert unet_gap(original, unet, original.unet) > 0.01
    assert "moving average (EMA)" in (folder / "README.md").read_text()


def test_plain_weights_where_the_yaml_says_so(tmp_path: Path) -> None:
    original = make_small()
    tensors = original.state_dict()
    original.settings["params"]["use_ema"] = False
    import_model(Import(str(save(original, tmp_path / "in", tensors=tensors)), tmp_path / "out"))
    assert (
        "the moving average in the checkpoint was left" in (tmp_path / "out/README.md").read_text()
    )
    made = load_file(tmp_path / "out" / UNET_WEIGHTS)["conv_in.weight"]
    assert torch.equal(made, original.unet.state_dict()["input_blocks.0.0.weight"])


def scaling_factor(folder: Path) -> float:
    return json.loads((folder / "vqvae" / "config.json").read_text())["scaling_factor"]


def test_the_scale_factor_of_the_checkpoint_wins(tmp_path: Path) -> None:
    original = make_original("lsun_churches")
    original.settings["params"]["scale_factor"] = 0.5
    import_model(Import(str(save(original, tmp_path / "in")), tmp_path / "out"))
    assert scaling_factor(tmp_path / "out") == pytest.approx(0.22)


def test_scale_factors(imported: Callable[[str], Imported]) -> None:
    assert scaling_factor(imported("txt2img-large")[1]) == 0.18215
    for name in ("text2img256", "cin256", "bsr_sr", "vq-f4", "kl-f8"):
        assert scaling_factor(imported(name)[1]) == 1.0


def test_qkv_stand_together_head_by_head(
    imported: Callable[[str], Imported], parts: Callable[[Path], Components]
) -> None:
    original, folder = imported("bsr_sr")
    [block] = [m for m in original.sampled.middle_block if hasattr(m, "qkv")]
    assert block.heads == 4
    attention = parts(folder)["unet"].mid_block.attentions[0]
    assert attention.heads == 4
    second_head = slice(32, 64)
    rows = block.qkv.weight[3 * 32 : 6 * 32, :, 0].split(32)
    for layer, right in zip((attention.to_q, attention.to_k, attention.to_v), rows, strict=True):
        assert torch.equal(layer.weight[second_head], right)


@pytest.mark.parametrize("name", ["lsun_churches", "inpainting_big"])
def test_heads_are_set_after_building(
    name: str,
    imported: Callable[[str], Imported],
    parts: Callable[[Path], Components],
    tmp_path: Path,
) -> None:
    original, folder = imported(name)
    num_levels = len(original.settings["params"]["unet_config"]["params"]["channel_mult"])
    side = json.loads((folder / "ldm_batch.json").read_text())
    assert side == {"converter": 1, "num_heads": {"unet": [8] * num_levels}}
    assert "ldm_batch.json" in lock_model(folder)
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "ldm_batch.json").unlink()
    assert unet_gap(original, parts(bare)["unet"]) > 1e-3
    assert unet_gap(original, parts(folder)["unet"]) < CLOSE


@pytest.mark.parametrize("name", ["txt2img-large", "bsr_sr"])
def test_steps_are_those_of_the_original(name: str, imported: Callable[[str], Imported]) -> None:
    """Its DDIM: betas linear in their roots, steps from 1 on, the last one to the first alpha."""
    original, folder = imported(name)
    params = original.settings["params"]
    roots = np.linspace(params["linear_start"] ** 0.5, params["linear_end"] ** 0.5, 1000)
    alphas = np.cumprod(1 - roots**2)
    times = np.arange(0, 1000, 20) + 1
    before = np.concatenate([alphas[:1], alphas[times[:-1]]])

    def noise_of(x: Tensor, time: Any) -> Tensor:
        return torch.tanh(x * (0.5 + float(time) / 1000)) + 0.1 * x

    start = random(1, 4, 8, 8)
    x = start.double()
    for time, here, there in zip(times[::-1], alphas[times][::-1], before[::-1], strict=True):
        noise = noise_of(x, time)
        clean = (x - (1 - here) ** 0.5 * noise) / here**0.5
        x = there**0.5 * clean + (1 - there) ** 0.5 * noise
    own = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    made = sample(
        lambda latents, time: noise_of(latents, time),
        start,
        make_scheduler(own, "ddim"),
        num_inference_steps=50,
        generators=[torch.Generator()],
    )
    assert gap(x.float(), made) < CLOSE


def test_nothing_of_another_class_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = save(make_small(), tmp_path / "in")
    torch.save({"state_dict": {}, "callbacks": Evil()}, path)
    with pytest.raises(JobError, match=r"names posix.mkdir: .*nothing of it was run"):
        import_model(Import(str(path), tmp_path / "out"))
    assert not (tmp_path / "ran").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


# What is written


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    hashed = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return dict(zip((str(p.relative_to(folder)) for p in files), hashed, strict=True))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    path = save(make_original("cin256"), tmp_path / "in")
    (tmp_path / "second").mkdir()  # an empty folder is as good as none
    for target in ("first", "second"):
        import_model(Import(str(path), tmp_path / target))
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    plain = tmp_path / "plain"
    plain.touch()
    modes = {p.stat().st_mode for p in (tmp_path / "first").rglob("*") if p.is_file()}
    assert modes == {plain.stat().st_mode}
    assert set(digests(tmp_path / "first")) == {
        *("README.md", "ldm_batch.json", "model_index.json", "class_embedder/model.safetensors"),
        *("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
        *("vqvae/config.json", "vqvae/diffusion_pytorch_model.safetensors"),
        "scheduler/scheduler_config.json",
    }
    readme = (tmp_path / "first" / "README.md").read_text()
    for source in (path, path.parent / "config.yaml"):
        assert hashlib.sha256(source.read_bytes()).hexdigest() in readme


def test_weights_keep_their_dtype_and_come_as_safetensors_too(
    tmp_path: Path,
) -> None:
    original, folder = make_small(), tmp_path / "whole"
    path = save(original, tmp_path / "in")
    import_model(Import(str(path), folder))
    path.unlink()
    halved = {
        name: value.half() if name.startswith("model_ema.diffusion") else value.clone()
        for name, value in original.state_dict().items()
    }
    save_file(halved, tmp_path / "in" / "model.safetensors")
    import_model(Import(str(tmp_path / "in" / "model.safetensors"), tmp_path / "out"))
    changed = {name for name, d in digests(folder).items() if digests(tmp_path / "out")[name] != d}
    assert changed == {"README.md", UNET_WEIGHTS}
    dtypes = {value.dtype for value in load_file(tmp_path / "out" / UNET_WEIGHTS).values()}
    assert dtypes == {torch.float16}


def job(model: Path, source: Path, sink: Path, **changes: Any) -> JobConfig:
    made = JobConfig(
        model=ModelConfig(path=str(model)),
        call=CallConfig(num_inference_steps=2),
        source=SourceConfig(uri=str(source)),
        sink=SinkConfig(uri=str(sink)),
        cluster=ClusterConfig(executor="in_process"),
        batch_size=1,
    )
    return dataclasses.replace(made, **changes)


def test_a_job_draws_by_an_imported_model(
    imported: Callable[[str], Imported], tmp_path: Path
) -> None:
    call = CallConfig(num_inference_steps=2, guidance_scale=2.0, height=64, width=64)
    pq.write_table(pa.table({"prompt": ["a red cat"]}), tmp_path / "prompts.parquet")
    for name in OF_TEXT:
        _, folder = imported(name)
        wanted = job(folder, tmp_path / "prompts.parquet", tmp_path / name, call=call)
        assert run_job(wanted, out=io.StringIO()) == 0
        [row] = pq.read_table(tmp_path / name / "data").to_pylist()
        assert (row["height"], row["width"], row["prompt"]) == (64, 64, "a red cat")


def test_a_job_enlarges_by_an_imported_model(
    imported: Callable[[str], Imported], tmp_path: Path
) -> None:
    _, folder = imported("bsr_sr")
    small = png(Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)))
    pq.write_table(pa.table({"image": pa.array([small], pa.binary())}), tmp_path / "in.parquet")
    wanted = job(folder, tmp_path / "in.parquet", tmp_path / "out", task="super_resolution")
    assert run_job(wanted, out=io.StringIO()) == 0
    [row] = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert (row["height"], row["width"]) == (32, 32)


# Refused


@pytest.fixture(scope="module")
def small() -> tuple[Original, dict[str, Tensor]]:
    original = make_small()
    return original, original.state_dict()


MISSING = "model_ema.diffusion_modelout2bias"
CHANGED_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no average": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("model_ema.")],
        r"use_ema .*averaged weights, of which all are missing .*say use_ema: false",
    ),
    "part of the average": (lambda t: t.pop(MISSING), f"of which 1 of .* missing .{MISSING}"),
    "an average of nothing": (
        lambda t: t.update({"model_ema.diffusion_modelextra": torch.ones(1)}),
        "model_ema.diffusion_modelextra averages no weight",
    ),
    "a weight of the UNet": (
        lambda t: [t.pop("model.diffusion_model.out.2.bias"), t.pop(MISSING)],
        r"model\.diffusion_model\.out\.2\.bias is missing",
    ),
    "a weight of the first stage": (
        lambda t: t.pop("first_stage_model.decoder.conv_out.bias"),
        r"first_stage_model\.decoder\.conv_out\.bias is missing",
    ),
    "a weight too many": (
        lambda t: t.update({"first_stage_model.encoder.extra": torch.ones(1)}),
        r"first_stage_model\.encoder\.extra: 1 tensors have no place",
    ),
    "another part": (
        lambda t: t.update({"safety.weight": torch.ones(1)}),
        r"safety\.weight: 1 tensors have no place",
    ),
    "another shape": (
        lambda t: t.update({"model_ema.diffusion_modelout2bias": torch.ones(5)}),
        r"conv_out\.bias is \(5,\), the yaml's numbers make it \(3,\)",
    ),
    "not finite": (
        lambda t: t.update({MISSING: torch.full((3,), torch.nan)}),
        r"conv_out\.bias is not finite",
    ),
    "whole numbers": (
        lambda t: t.update({MISSING: torch.ones(3).long()}),
        "is of torch.int64, which is no dtype",
    ),
    "another schedule": (
        lambda t: t.update({"alphas_cumprod": t["alphas_cumprod"] * 0.99}),
        "alphas_cumprod of the checkpoint is not that of the yaml",
    ),
    "a condition": (
        lambda t: t.update({"cond_stage_model.embedding.weight": torch.ones(1)}),
        r"cond_stage_model\.embedding\.weight: 1 tensors have no place",
    ),
}


@pytest.mark.parametrize("what", CHANGED_TENSORS)
def test_a_checkpoint_of_another_model_is_refused(
    what: str, small: tuple[Original, dict[str, Tensor]], tmp_path: Path
) -> None:
    change, message = CHANGED_TENSORS[what]
    original, tensors = small
    tensors = dict(tensors)
    change(tensors)
    path = save(original, tmp_path / "in", tensors=tensors)
    with pytest.raises(JobError, match=message):
        import_model(Import(str(path), tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


CHANGED_SETTINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another model": (
        lambda m: m.update(target="ldm.models.diffusion.ddpm.Layout2ImgDiffusion"),
        "ddpm.Layout2ImgDiffusion cannot be imported; known is .*LatentDiffusion",
    ),
    "another UNet": (
        lambda m: m["params"]["unet_config"].update(target="os.system"),
        r"unet_config\.target: os\.system cannot be imported",
    ),
    "another first stage": (
        lambda m: m["params"]["first_stage_config"].update(target="a.B"),
        r"first_stage_config\.target: a\.B cannot be imported",
    ),
    "another condition": (
        lambda m: m["params"].update(cond_stage_config={"target": "a.B"}),
        r"cond_stage_config\.target: a\.B cannot be imported",
    ),
    "Stable Diffusion": (
        lambda m: m["params"].update(
            cond_stage_config={"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
        ),
        "is of Stable Diffusion; name with --config a folder",
    ),
    "unknown setting": (
        lambda m: m["params"].update(parametrisation="v"),
        "parametrisation is no setting that can be imported",
    ),
    "unknown setting of the UNet": (
        lambda m: m["params"]["unet_config"]["params"].update(num_classes=10),
        r"params\.num_classes: must be None to be imported, not 10",
    ),
    "prediction": (
        lambda m: m["params"].update(parameterization="v"),
        r"parameterization: must be 'eps' or 'x0' to be imported, not 'v'",
    ),
    "schedule": (
        lambda m: m["params"].update(beta_schedule="cosine"),
        r"beta_schedule: must be 'linear' or 'sqrt_linear'",
    ),
    "a number": (
        lambda m: m["params"].update(linear_start="small"),
        r"linear_start: must be a number, not 'small'",
    ),
    "a width": (
        lambda m: m["params"]["unet_config"]["params"].update(model_channels=-3),
        r"model_channels: must be a whole number of 1 to 1000000, not -3",
    ),
    "heads": (
        lambda m: m["params"]["unet_config"]["params"].update(num_head_channels=33),
        "32 channels do not divide into 0 heads",
    ),
    "levels": (
        lambda m: m["params"]["unet_config"]["params"].update(channel_mult=[1] * 17),
        r"channel_mult: must be 1 to 16 whole numbers",
    ),
    "channels": (
        lambda m: m["params"]["unet_config"]["params"].update(in_channels=6),
        "6 channels in, 3 out; a LDMPipeline of this first stage has 3 and 3",
    ),
    "no channels": (
        lambda m: m["params"]["unet_config"]["params"].pop("in_channels"),
        "in_channels is missing",
    ),
    "no scale": (
        lambda m: m["params"].update(scale_by_std=True),
        "has no scale_factor, which scale_by_std of the yaml asks for",
    ),
    "attention": (
        lambda m: m["params"]["first_stage_config"]["params"]["ddconfig"].update(
            attn_type="linear"
        ),
        r"attn_type: must be 'vanilla' or 'none' to be imported, not 'linear'",
    ),
}


@pytest.mark.parametrize("what", CHANGED_SETTINGS)
def test_a_yaml_of_another_model_is_refused(
    what: str, small: tuple[Original, dict[str, Tensor]], tmp_path: Path
) -> None:
    change, message = CHANGED_SETTINGS[what]
    original, tensors = small
    settings = copy.deepcopy(original.settings)
    change(settings)
    path = save(dataclasses.replace(original, settings=settings), tmp_path, tensors=tensors)
    with pytest.raises(JobError, match=message):
        import_model(Import(str(path), tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "is no YAML of plain values"),
        ("model: !!python/object/apply:os.getcwd []", "is no YAML of plain values"),
        ("- a\n- b\n", "has no section `model`"),
        ("model: 3", "must be a mapping of settings, not 3"),
        ("#" * (1024 * 1024 + 1), "is larger than 1048576 bytes"),
        ("[" * 100_000, "is no YAML of plain values"),
        ("a: &a [1, 2]\nmodel: [*a, *a]", "it has an alias, which is not read"),
        ("model: 0x" + "f" * 9000, "not a number of more than 64 bits"),
        ("\x00", "is no YAML of plain values"),
    ],
)
def test_what_is_no_yaml_of_a_model_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"never read")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(JobError, match=message):
        import_model(Import(str(tmp_path / "model.ckpt"), tmp_path / "out"))


def test_which_yaml_is_meant_must_be_clear(tmp_path: Path) -> None:
    path = save(make_original("vq-f4"), tmp_path / "in")
    (path.parent / "other.yaml").write_text(yaml.safe_dump({"model": {}}))
    with pytest.raises(JobError, match=r"2 yaml files beside it.*--config"):
        import_model(Import(str(path), tmp_path / "out"))
    import_model(Import(str(path), tmp_path / "out", path.parent / "config.yaml"))
    for yaml_path in path.parent.glob("*.yaml"):
        yaml_path.unlink()
    with pytest.raises(JobError, match="0 yaml files beside it"):
        import_model(Import(str(path), tmp_path / "out2"))


def test_a_target_in_use_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mine").write_text("kept")
    with pytest.raises(JobError, match="is not empty; name another TARGET"):
        import_model(Import("no-such-file", target))
    with pytest.raises(JobError, match="is there already, and no folder"):
        import_model(Import("no-such-file", target / "mine"))
    with pytest.raises(JobError, match="there is no folder"):
        import_model(Import("no-such-file", tmp_path / "nowhere" / "out"))
    assert digests(target) == {"mine": hashlib.sha256(b"kept").hexdigest()}


def test_a_source_that_cannot_be_read_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(make_original("vq-f4"), tmp_path / "in")
    whole = path.read_bytes()
    for name, data, told in (
        ("model.ckpt", whole[:5000], "cannot be read as"),
        ("model.ckpt", b"", "is empty"),
        ("a.safetensors", b"no", "cannot be read as"),
    ):
        source = path.parent / name
        source.write_bytes(data)
        with pytest.raises(SystemExit) as ended:
            main([str(source), str(tmp_path / "out"), "--config", str(path.parent / "config.yaml")])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "other.ckpt"), str(tmp_path / "out")])
    assert "other.ckpt: there is no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path / "in"), str(tmp_path / "out")])
    assert "it holds model.ckpt: `python -m ldm_batch import`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_text_needs_a_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    original = make_original("text2img256")
    path = save(original, tmp_path / "in")

    def import_with(folder: Path | None) -> str:
        return import_model(Import(str(path), tmp_path / "out", tokenizer=folder))

    with pytest.raises(JobError, match=r"name with --tokenizer a folder .* bert-base-uncased"):
        import_with(None)
    with pytest.raises(JobError, match=r"neither tokenizer\.json nor vocab\.txt"):
        import_with(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(JobError, match="does not load"):
        import_with(tmp_path)
    large = tmp_path / "large"
    large.mkdir()
    words = (tokenizer / "vocab.txt").read_text() + "\n".join(f"word{i}" for i in range(40_000))
    (large / "vocab.txt").write_text(words)
    with pytest.raises(JobError, match="has 40009 tokens, the text encoder 30522"):
        import_with(large)
    stage = save(make_original("vq-f4"), tmp_path / "stage")
    with pytest.raises(JobError, match="this model reads no text"):
        import_model(Import(str(stage), tmp_path / "out", tokenizer=tokenizer))
    assert import_with(tokenizer).splitlines()[-1] == (
        f"  python -m ldm_batch run model=local model.path={tmp_path / 'out'} "
        "source.uri=PROMPTS sink.uri=DATASET"
    )


def test_masked_images_go_through_the_one_first_stage(tmp_path: Path) -> None:
    original = make_original("inpainting_big")
    tensors = original.state_dict()
    tensors["cond_stage_model.encoder.conv_in.bias"] = torch.ones(32)
    path = save(original, tmp_path, tensors=tensors)
    with pytest.raises(JobError, match=r"cond_stage_model\.\S+ is not that of the first stage"):
        import_model(Import(str(path), tmp_path / "out"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"converter": 2}, "converter must be 1"),
        ({"converter": 1, "code": "x"}, "code is none of its keys"),
        ({"converter": 1, "num_heads": {"unet": [0]}}, "damaged"),
        ({"converter": 1, "num_heads": {"unet": [8, 8]}}, r"num_heads\.unet has 2 levels"),
        ({"converter": 1, "num_heads": {"unet": [8, 8, 8, 7, 8]}}, "128 channels have no 7 heads"),
        ({"converter": 1, "class_embedder": {"num_classes": 3}}, "damaged"),
    ],
)
def test_a_damaged_side_file_is_refused(
    values: dict[str, Any],
    message: str,
    imported: Callable[[str], Imported],
    parts: Callable[[Path], Components],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(imported("lsun_churches")[1], tmp_path / "model"))
    (folder / "ldm_batch.json").write_text(json.dumps(values))
    with pytest.raises(JobError, match=message):
        parts(folder)


def test_lightning_state_is_left_alone(tmp_path: Path) -> None:
    """A pickle of what stands beside the weights: read, never built, nothing of it written."""
    tensors = make_original("vq-f4").state_dict()
    save_lightning(tensors, tmp_path / "a.ckpt")
    assert b"pytorch_lightning.callbacks.model_checkpoint" in (tmp_path / "a.ckpt").read_bytes()
    torch.save(tensors, tmp_path / "b.ckpt")
    save(make_original("vq-f4"), tmp_path / "in")
    for name in ("a", "b"):
        wanted = Import(str(tmp_path / f"{name}.ckpt"), tmp_path / name)
        import_model(dataclasses.replace(wanted, config=tmp_path / "in" / "config.yaml"))
    first, second = digests(tmp_path / "a"), digests(tmp_path / "b")
    assert {name for name in first if first[name] != second[name]} == {"README.md"}
