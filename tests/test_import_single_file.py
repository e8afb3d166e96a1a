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
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ldm_batch.commands.import_model import Import, import_model
from ldm_batch.config import ModelConfig, SchedulerConfig
from ldm_batch.diffusion.family.pipeline import FamilyPipeline
from ldm_batch.diffusion.models.original.unet import ENDS, RESNET, SKIP, UNet, _places
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
    assert f"run model=local model.engine=diffusers model.path={tmp_path / 'out'} " in said
    model = ModelConfig(engine="diffusers", path=str(tmp_path / "out"))
    drawn = FamilyPipeline.from_config(model, SchedulerConfig(), batch_size=1, num_threads=1)
    assert drawn.describe()["pipeline"] == "StableDiffusionPipeline"
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


# Stable Diffusion 2 and XL: their text encoders are OpenCLIP's


LEVELS = {"block_out_channels": [32, 64], "layers_per_block": 1, "sample_size": 32}
NETWORKS: dict[str, dict[str, dict[str, Any]]] = {
    "StableDiffusionPipeline": {
        "unet": LEVELS
        | {
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "cross_attention_dim": 96,
            "attention_head_dim": [2, 4],
            "use_linear_projection": True,
        },
        "text_encoder": {"hidden_size": 96, "projection_dim": 96},
    },
    "StableDiffusionXLPipeline": {
        "unet": LEVELS
        | {
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "cross_attention_dim": 64 + 96,
            "attention_head_dim": [2, 4],
            "transformer_layers_per_block": [1, 2],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 96 + 6 * 8,
        },
        "text_encoder": {"hidden_size": 64, "projection_dim": 64},
        "text_encoder_2": {"hidden_size": 96, "projection_dim": 96},
    },
}
PREFIXES = {
    "StableDiffusionPipeline": {"text_encoder": "cond_stage_model.model."},
    "StableDiffusionXLPipeline": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
}
JOINED = ("weight", "bias")


def as_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a text encoder of transformers by OpenCLIP's names."""
    left = {key.removeprefix("text_model."): value for key, value in state.items()}
    made = {}
    for place in sorted({k.split(".self_attn.")[0] for k in left if ".self_attn." in k}):
        for kind in JOINED:
            parts = [left.pop(f"{place}.self_attn.{name}_proj.{kind}") for name in "qkv"]
            number = place.removeprefix("encoder.layers.")
            made[f"transformer.resblocks.{number}.attn.in_proj_{kind}"] = torch.cat(parts)
    if "text_projection.weight" in left:
        made["text_projection"] = left.pop("text_projection.weight").T.contiguous()
    for key, value in left.items():
        name = key
        for ours, theirs in OPEN_CLIP.items():
            name = name.replace("final_layer_norm", "ln_final").replace(ours, theirs)
        made[name] = value
    return made


def as_original_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a small UNet of two levels by the original's names."""
    numbers = UNet(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        widths=(32, 64),
        num_heads=(2, 4),
        has_attention=tuple(f"down_blocks.{i}.attentions.0.norm.weight" in state for i in (0, 1)),
        num_resnets=1,
        context_dim=96,
        depth=1,
        has_scale_shift=False,
        resamples_in_resnets=False,
    )
    names = {new: old for old, new in ENDS}
    names |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    for place in _places(numbers):
        if place.kind == "resnet":
            parts = {f"{place.new}.{new}": f"{place.old}.{old}" for old, new in (*RESNET, SKIP)}
            names |= parts
        else:
            names[place.new] = place.old
    made = {}
    for key, value in state.items():
        [new] = [new for new in names if key.startswith(f"{new}.")]
        made[names[new] + key.removeprefix(new)] = value
    return made


def make_text(config: dict[str, Any], number: int) -> Any:
    numbers = TEXT.to_dict() | config | {"hidden_act": "gelu"}
    kind = CLIPTextModelWithProjection if number else CLIPTextModel
    return _random(kind(CLIPTextConfig.from_dict(numbers)))


@pytest.mark.parametrize("pipeline", NETWORKS)
def test_later_versions_come_out_as_they_were(
    pipeline: str, settings: Path, original: Made, tmp_path: Path
) -> None:
    """Networks of diffusers, renamed as their single files name them, come back to the bit."""
    torch.manual_seed(2)
    folder = Path(shutil.copytree(settings, tmp_path / "settings"))
    configs = NETWORKS[pipeline]
    networks = {"unet": _random(diffusers.UNet2DConditionModel(**configs["unet"]))}
    tensors = {
        f"model.diffusion_model.{key}": value
        for key, value in as_original_unet(networks["unet"].state_dict()).items()
    }
    tensors |= {k: v for k, v in original[3].items() if k.startswith("first_stage_model.")}
    changes: dict[str, Any] = {"_class_name": pipeline}
    for number, (name, prefix) in enumerate(PREFIXES[pipeline].items()):
        text = networks[name] = make_text(configs[name], number)
        tokenizer = name.replace("text_encoder", "tokenizer")
        shutil.copytree(settings / "tokenizer", folder / tokenizer, dirs_exist_ok=True)
        text.config.save_pretrained(folder / name)
        changes |= {name: ["transformers", type(text).__name__]}
        changes |= {tokenizer: ["transformers", "CLIPTokenizer"]}
        state = {k: v for k, v in text.state_dict().items() if "position_ids" not in k}
        if ".model." in prefix:
            state = as_open_clip(state)
        else:
            state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
        tensors |= {prefix + key: value for key, value in state.items()}
    networks["unet"].save_config(folder / "unet")
    edit(folder, "model_index.json", **changes)
    save_file({k: v.detach().clone() for k, v in tensors.items()}, tmp_path / "a.safetensors")
    import_model(Import(str(tmp_path / "a.safetensors"), tmp_path / "out", folder))
    for name, network in networks.items():
        loaded = type(network).from_pretrained(tmp_path / "out" / name, local_files_only=True)
        wanted, found = network.state_dict(), loaded.state_dict()
        assert wanted.keys() == found.keys()
        assert not [key for key in wanted if not torch.equal(wanted[key], found[key])]


CHANGED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "a weight of the UNet": (
        lambda t: t.pop("model.diffusion_model.out.2.bias"),
        r"unet: 1 weights are missing: conv_out\.bias",
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
