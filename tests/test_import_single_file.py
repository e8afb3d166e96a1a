"""Stable Diffusion in one file becomes a folder that gives its outputs, without a network."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from original_checkpoints import KL_F8, _random, save_lightning
from original_modules import FirstStage, UNetModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ldm_batch.commands.import_model import Import, import_model
from ldm_batch.errors import JobError

NUMBERS = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 64,
}
TEXT = CLIPTextConfig(
    vocab_size=99,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=77,
    projection_dim=64,
)
Made = tuple[UNetModel, FirstStage, CLIPTextModel, dict[str, Tensor]]


@pytest.fixture(scope="module")
def original() -> Made:
    """The networks of a small Stable Diffusion 1, and its state dict."""
    torch.manual_seed(0)
    unet, first = _random(UNetModel(**NUMBERS)), _random(FirstStage(**KL_F8["params"]))
    text = _random(CLIPTextModel(TEXT))
    before = "cond_stage_model.transformer.text_model."
    tensors = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in first.state_dict().items()}
    tensors |= {before + k.removeprefix("text_model."): v for k, v in text.state_dict().items()}
    tensors["alphas_cumprod"] = torch.ones(1000)
    return unet, first, text, {key: value.detach() for key, value in tensors.items()}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of diffusers' settings and a tokenizer, with no weights."""
    folder = tmp_path_factory.mktemp("settings")
    kinds = ["DownBlock2D"] * 4
    configs: dict[str, dict[str, Any]] = {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": 32,
            "block_out_channels": [32, 64, 128],
            "down_block_types": ["CrossAttnDownBlock2D"] * 2 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 2,
            "cross_attention_dim": 64,
            "attention_head_dim": 8,
            "layers_per_block": 2,
        },
        "vae": {
            "_class_name": "AutoencoderKL",
            "block_out_channels": [32, 64, 128, 128],
            "down_block_types": [kind.replace("Block", "EncoderBlock") for kind in kinds],
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "latent_channels": 4,
            "layers_per_block": 2,
            "sample_size": 256,
        },
        "text_encoder": TEXT.to_dict() | {"architectures": ["CLIPTextModel"]},
    }
    for name, config in configs.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    diffusers.PNDMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(
        json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2})
    )
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@torch.no_grad()
def gaps(original: Made, folder: Path) -> dict[str, float]:
    """How far the networks of a folder are from the original's, relative to the largest value."""
    unet, first, text, _ = original
    made = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, local_files_only=True
    )
    x, times, tokens = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 77, 64)
    ids = torch.randint(99, (1, 77))
    pairs = {
        "unet": (unet(x, times, tokens), made.unet(x, times, tokens).sample),
        "vae": (first.decode(x), made.vae.decode(x).sample),
        "text_encoder": (text(ids).last_hidden_state, made.text_encoder(ids).last_hidden_state),
    }
    return {k: ((a - b).abs().max() / a.abs().max()).item() for k, (a, b) in pairs.items()}


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_the_folder_gives_the_originals_outputs(
    kind: str, original: Made, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / f"model.{kind}"
    (save_lightning if kind == "ckpt" else save_file)(original[3], path)
    said = import_model(Import(str(path), tmp_path / "out", settings))
    assert "no job of this version draws by StableDiffusionPipeline" in said
    assert max(gaps(original, tmp_path / "out").values()) < 1e-5
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert not {"safety_checker", "feature_extractor"} & index.keys()


def test_the_average_is_taken_where_there_is_one(
    original: Made, settings: Path, tmp_path: Path
) -> None:
    _, first, text, tensors = original
    torch.manual_seed(1)
    average = _random(UNetModel(**NUMBERS))
    named = {
        "model_ema." + f"diffusion_model.{key}".replace(".", ""): value
        for key, value in average.state_dict().items()
    }
    counts = {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones(()).int()}
    save_file(tensors | named | counts, tmp_path / "model.safetensors")
    import_model(Import(str(tmp_path / "model.safetensors"), tmp_path / "out", settings))
    assert gaps((average, first, text, tensors), tmp_path / "out")["unet"] < 1e-5
    assert gaps(original, tmp_path / "out")["unet"] > 0.01


CHANGED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "a weight of the UNet": (
        lambda t: t.pop("model.diffusion_model.out.2.bias"),
        r"diffusers does not read its unet as a UNet2DConditionModel .*out\.2\.bias",
    ),
    "a weight of the first stage": (
        lambda t: t.pop("first_stage_model.decoder.mid.block_1.norm1.bias"),
        r"vae: 1 weights are missing: decoder\.mid_block\.resnets\.0\.norm1\.bias",
    ),
    "a weight of the text encoder": (
        lambda t: t.pop("cond_stage_model.transformer.text_model.final_layer_norm.bias"),
        r"text_encoder: 1 weights are missing: \S*final_layer_norm\.bias",
    ),
    "the text encoder": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("cond_stage_model.")],
        "diffusers does not read its text_encoder as a CLIPTextModel of these settings",
    ),
    "a shape": (
        lambda t: t.update({"model.diffusion_model.out.2.bias": torch.ones(5)}),
        r"unet: conv_out\.bias is \(5,\)",
    ),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_diffusers_does_not_read_whole_is_refused(
    what: str, original: Made, settings: Path, tmp_path: Path
) -> None:
    change, message = CHANGED[what]
    tensors = dict(original[3])
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(JobError, match=message):
        import_model(Import(str(tmp_path / "model.safetensors"), tmp_path / "out", settings))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def edit(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SETTINGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another pipeline": (
        lambda f: edit(f, "model_index.json", _class_name="FluxPipeline"),
        "is of a FluxPipeline; single files are read of StableDiffusionPipeline",
    ),
    "a class from elsewhere": (
        lambda f: edit(f, "model_index.json", unet=["os", "system"]),
        r"unet must be \['diffusers', 'UNet2DConditionModel'\]",
    ),
    "an unknown component": (
        lambda f: edit(f, "model_index.json", evil=["os", "system"]),
        "unknown component 'evil'",
    ),
    "a scheduler from elsewhere": (
        lambda f: edit(f, "model_index.json", scheduler=["os", "system"]),
        "scheduler system is none of diffusers'",
    ),
    "code": (
        lambda f: edit(f, "unet/config.json", auto_map={"AutoModel": "evil.py"}),
        "auto_map is not supported",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer" / "merges.txt").unlink(),
        r"tokenizer has neither tokenizer\.json nor vocab\.json and merges\.txt",
    ),
    "no settings of a network": (
        lambda f: (f / "vae" / "config.json").unlink(),
        r"vae/config\.json cannot be read",
    ),
    "no index": (lambda f: (f / "model_index.json").unlink(), "cannot be read"),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_of_another_model_are_refused(
    what: str, original: Made, settings: Path, tmp_path: Path
) -> None:
    change, message = SETTINGS[what]
    folder = Path(shutil.copytree(settings, tmp_path / "settings"))
    change(folder)
    save_file(original[3], tmp_path / "model.safetensors")
    with pytest.raises(JobError, match=message):
        import_model(Import(str(tmp_path / "model.safetensors"), tmp_path / "out", folder))


def test_a_single_file_needs_settings(original: Made, settings: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(original[3], path)
    with pytest.raises(JobError, match="for Stable Diffusion a folder with the settings and the"):
        import_model(Import(str(path), tmp_path / "out"))
    with pytest.raises(JobError, match="the folder of --config has its own"):
        import_model(Import(str(path), tmp_path / "out", settings, tokenizer=settings))
