"""Checkpoints as the original code left them: its yamls at reduced width, random weights.

Structure, keys and training settings are those of the released yamls; widths, codebooks and the
depth of text encoders are small. A checkpoint is saved as Lightning does.
"""

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from original_modules import CONDITIONS, FirstStage, UNetModel
from torch import Tensor, nn

LATENT_DIFFUSION = "ldm.models.diffusion.ddpm.LatentDiffusion"
UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
ENCODERS = "ldm.modules.encoders.modules"
CALLBACK = "pytorch_lightning.callbacks.model_checkpoint"
TRAINING = {
    "num_timesteps_cond": 1,
    "timesteps": 1000,
    "log_every_t": 200,
    "monitor": "val/loss_simple_ema",
}
WARM_UP = {"target": "ldm.lr_scheduler.LambdaLinearScheduler", "params": {"f_max": [1.0]}}
LOSS = {"target": "torch.nn.Identity"}
WIDTH = 64
"""Of tokens."""


def _unet(multiples: list[int], attends: list[int], image_size: int, **others: Any) -> dict:
    channels = {"in_channels": 3, "out_channels": 3, "model_channels": 32}
    return {
        "image_size": image_size,
        **channels,
        "attention_resolutions": attends,
        "num_res_blocks": 2,
        "channel_mult": multiples,
        **others,
    }


def _tokens(depth: int = 1) -> dict[str, Any]:
    return {"use_spatial_transformer": True, "transformer_depth": depth, "context_dim": WIDTH}


def _numbers(multiples: list[int], z: int, *, attends: Sequence[int] = (), **others: Any) -> dict:
    return {
        "double_z": False,
        "z_channels": z,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": multiples,
        "num_res_blocks": 2,
        "attn_resolutions": list(attends),
        "dropout": 0.0,
        **others,
    }


def _vq(multiples: list[int], z: int, **others: Any) -> dict[str, Any]:
    return {
        "target": "ldm.models.autoencoder.VQModelInterface",
        "params": {
            "embed_dim": z,
            "n_embed": 64,
            "monitor": "val/rec_loss",
            "ddconfig": _numbers(multiples, z, **others),
            "lossconfig": LOSS,
        },
    }


def _kl(multiples: list[int], z: int, **others: Any) -> dict[str, Any]:
    return {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": z,
            "ddconfig": _numbers(multiples, z, double_z=True, **others),
            "lossconfig": LOSS,
        },
    }


def _condition(name: str, **params: Any) -> dict[str, Any]:
    return {"target": f"{ENCODERS}.{name}", "params": params}


VQ_F4 = _vq([1, 2, 4], 3)
KL_F8 = _kl([1, 2, 4, 4], 4)
UNCONDITIONAL = {
    "linear_start": 0.0015,
    "linear_end": 0.0195,
    "concat_mode": False,
    "cond_stage_trainable": False,
    "unet_config": _unet([1, 2, 3, 4], [8, 4, 2], 64, num_head_channels=32),
    "first_stage_config": VQ_F4,
    "cond_stage_config": "__is_unconditional__",
}
SEMANTIC = {
    "linear_start": 0.0015,
    "linear_end": 0.0205,
    "loss_type": "l1",
    "cond_stage_key": "segmentation",
    "concat_mode": True,
    "cond_stage_trainable": True,
    "unet_config": _unet([1, 4, 8], [32, 16, 8], 64, num_heads=8) | {"in_channels": 6},
    "first_stage_config": VQ_F4,
    "cond_stage_config": _condition("SpatialRescaler", n_stages=2, in_channels=182, out_channels=3),
}
FOUR = {"in_channels": 4, "out_channels": 4}
DIFFUSION: dict[str, dict[str, Any]] = {
    "txt2img-large": {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "cond_stage_key": "caption",
        "conditioning_key": "crossattn",
        "scale_factor": 0.18215,
        "use_ema": False,
        "unet_config": _unet(
            [1, 2, 4, 4], [4, 2, 1], 32, num_heads=8, use_checkpoint=True, legacy=False, **_tokens()
        )
        | FOUR,
        "first_stage_config": KL_F8,
        "cond_stage_config": _condition("BERTEmbedder", n_embed=WIDTH, n_layer=2),
    },
    "text2img256": {
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "cond_stage_key": "caption",
        "conditioning_key": "crossattn",
        "unet_config": _unet([1, 2, 3, 5], [8, 4, 2], 64, num_head_channels=32, **_tokens()),
        "first_stage_config": VQ_F4,
        "cond_stage_config": _condition("BERTEmbedder", n_embed=WIDTH, n_layer=2),
    },
    "bsr_sr": {
        "linear_start": 0.0015,
        "linear_end": 0.0155,
        "loss_type": "l2",
        "cond_stage_key": "LR_image",
        "concat_mode": True,
        "cond_stage_trainable": False,
        "unet_config": _unet([1, 2, 2, 4], [16, 8], 64, num_head_channels=32) | {"in_channels": 6},
        "first_stage_config": VQ_F4,
        "cond_stage_config": {"target": "torch.nn.Identity"},
    },
    "celeba": UNCONDITIONAL,
    "ffhq": UNCONDITIONAL,
    "lsun_beds": UNCONDITIONAL,
    "lsun_churches": {
        "linear_start": 0.0015,
        "linear_end": 0.0155,
        "loss_type": "l1",
        "cond_stage_key": "image",
        "concat_mode": False,
        "scale_by_std": True,
        "scheduler_config": WARM_UP,
        "unet_config": _unet(
            *([1, 2, 2, 4, 4], [1, 2, 4, 8], 32),
            num_heads=8,
            use_scale_shift_norm=True,
            resblock_updown=True,
        )
        | FOUR,
        "first_stage_config": KL_F8,
        "cond_stage_config": "__is_unconditional__",
    },
    "cin256": {
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "cond_stage_key": "class_label",
        "conditioning_key": "crossattn",
        "unet_config": _unet([1, 2, 4], [4, 2, 1], 32, num_head_channels=32, **_tokens()) | FOUR,
        "first_stage_config": _vq([1, 2, 2, 4], 4, attends=[32]),
        "cond_stage_config": _condition("ClassEmbedder", embed_dim=WIDTH, key="class_label"),
    },
    "cin256-v2": {
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "cond_stage_key": "class_label",
        "conditioning_key": "crossattn",
        "use_ema": False,
        "unet_config": _unet([1, 2, 3, 5], [8, 4, 2], 64, num_heads=1, **_tokens()),
        "first_stage_config": VQ_F4,
        "cond_stage_config": _condition(
            "ClassEmbedder", n_classes=1001, embed_dim=WIDTH, key="class_label"
        ),
    },
    "inpainting_big": {
        "linear_start": 0.0015,
        "linear_end": 0.0205,
        "loss_type": "l1",
        "cond_stage_key": "masked_image",
        "concat_mode": True,
        "scheduler_config": WARM_UP,
        "unet_config": _unet([1, 2, 3, 4], [8, 4, 2], 64, num_heads=8, resblock_updown=True)
        | {"in_channels": 7},
        "first_stage_config": _vq([1, 2, 4], 3, attn_type="none"),
        "cond_stage_config": "__is_first_stage__",
    },
    "layout2img": {
        "linear_start": 0.0015,
        "linear_end": 0.0205,
        "loss_type": "l1",
        "cond_stage_key": "coordinates_bbox",
        "conditioning_key": "crossattn",
        "unet_config": _unet([1, 2, 3, 4], [8, 4, 2], 64, num_head_channels=32, **_tokens(3)),
        "first_stage_config": VQ_F4,
        "cond_stage_config": _condition(
            *["BERTEmbedder"],
            n_embed=WIDTH,
            n_layer=2,
            vocab_size=8192,
            max_seq_len=92,
            use_tokenizer=False,
        ),
    },
    "semantic_synthesis256": SEMANTIC,
    "semantic_synthesis512": SEMANTIC
    | {"unet_config": SEMANTIC["unet_config"] | {"image_size": 128}},
}
"""`model.params` of each diffusion model; `unet_config` is what stands in its own `params`."""
FIRST_STAGES: dict[str, dict[str, Any]] = {
    "kl-f4": _kl([1, 2, 4], 3),
    "kl-f8": KL_F8,
    "kl-f16": _kl([1, 1, 2, 2, 4], 16, attends=[16]),
    "kl-f32": _kl([1, 1, 2, 2, 4, 4], 64, attends=[16, 8]),
    "vq-f4": VQ_F4,
    "vq-f4-noattn": _vq([1, 2, 4], 3, attn_type="none"),
    "vq-f8": _vq([1, 2, 2, 4], 4, attends=[32]),
    "vq-f8-n256": _vq([1, 2, 2, 4], 4, attends=[32]),
    "vq-f16": _vq([1, 1, 2, 2, 4], 8, attends=[16]),
}
"""`model` of each first stage alone."""


@dataclass
class Original:
    """A model of the original code in memory; `average` is what it samples with."""

    settings: dict[str, Any]
    first_stage: FirstStage
    unet: UNetModel | None = None
    average: UNetModel | None = None
    condition: nn.Module | None = None

    @property
    def sampled(self) -> UNetModel:
        """The UNet by which the original samples."""
        chosen = self.average if self.settings["params"].get("use_ema", True) else self.unet
        assert chosen is not None
        return chosen

    def state_dict(self) -> dict[str, Tensor]:
        """The state dict of the original's LightningModule."""
        if self.unet is None or self.average is None:
            loss = {"loss.discriminator.main.0.weight": torch.randn(2, 3)}
            return self.first_stage.state_dict() | loss
        params = self.settings["params"]
        tensors = _schedule(params["linear_start"], params["linear_end"])
        tensors |= _prefixed("model.diffusion_model.", self.unet.state_dict())
        if params.get("use_ema", True):
            tensors |= {
                "model_ema." + f"diffusion_model.{name}".replace(".", ""): value
                for name, value in self.average.state_dict().items()
            }
            tensors["model_ema.decay"] = torch.tensor(0.9999)
            tensors["model_ema.num_updates"] = torch.tensor(7, dtype=torch.int)
        if params.get("scale_by_std"):
            tensors["scale_factor"] = torch.tensor(0.22)
        first = self.first_stage.state_dict()
        tensors |= _prefixed("first_stage_model.", first)
        if params["cond_stage_config"] == "__is_first_stage__":
            tensors |= _prefixed("cond_stage_model.", first)
        if self.condition is not None:
            tensors |= _prefixed("cond_stage_model.", self.condition.state_dict())
        return tensors


def make_original(name: str) -> Original:
    """Build one of the released models, random in every weight."""
    torch.manual_seed(len(name))
    if name in FIRST_STAGES:
        settings = FIRST_STAGES[name]
        return Original(settings, _random(FirstStage(**settings["params"])))
    params = TRAINING | DIFFUSION[name]
    numbers, condition = params["unet_config"], params["cond_stage_config"]
    params["unet_config"] = {"target": UNET, "params": numbers}
    kind = CONDITIONS.get(condition["target"]) if isinstance(condition, Mapping) else None
    return Original(
        {"base_learning_rate": 2.0e-06, "target": LATENT_DIFFUSION, "params": params},
        _random(FirstStage(**params["first_stage_config"]["params"])),
        _random(UNetModel(**numbers)),
        _random(UNetModel(**numbers)),
        _random(kind(**condition["params"])) if kind else None,
    )


def make_small() -> Original:
    """Build a model of the structure of `celeba` that is quick to save, as often as need be."""
    torch.manual_seed(0)
    numbers = _unet([1, 2], [2], 64, num_head_channels=32) | {"num_res_blocks": 1}
    first = _vq([1, 1], 3)
    params = TRAINING | UNCONDITIONAL | {"first_stage_config": first}
    params["unet_config"] = {"target": UNET, "params": numbers}
    return Original(
        {"target": LATENT_DIFFUSION, "params": params},
        _random(FirstStage(**first["params"])),
        _random(UNetModel(**numbers)),
        _random(UNetModel(**numbers)),
    )


def save(original: Original, folder: Path, *, tensors: dict[str, Tensor] | None = None) -> Path:
    """Write `model.ckpt` and `config.yaml` to a folder, as the original's archives hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"model": original.settings}, sort_keys=False)
    (folder / "config.yaml").write_text(text)
    path = folder / "model.ckpt"
    save_lightning(tensors if tensors is not None else original.state_dict(), path)
    return path


def save_lightning(tensors: dict[str, Tensor], path: Path) -> None:
    """Save a state dict with what Lightning 1.4 puts beside it, a class among it."""
    with _lightning() as callback:
        beside = {
            "epoch": 3,
            "global_step": 1000,
            "pytorch-lightning_version": "1.4.2",
            "callbacks": {callback: {"monitor": "val/loss", "best_model_score": torch.tensor(1.0)}},
            "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": torch.zeros(2)}}}],
            "lr_schedulers": [{"last_epoch": 3}],
        }
        torch.save(beside | {"state_dict": tensors}, path)


@contextmanager
def _lightning() -> Iterator[type]:
    """Lightning's callback class for as long as a checkpoint is saved; nothing here has it."""
    kind = type("ModelCheckpoint", (), {"__module__": CALLBACK})
    names = [CALLBACK.rsplit(".", depth)[0] for depth in (2, 1)]
    modules = {name: types.ModuleType(name) for name in [*names, CALLBACK]}
    modules[CALLBACK].ModelCheckpoint = kind  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield kind
    finally:
        for name in modules:
            del sys.modules[name]


def _random(module: Any) -> Any:
    """Move every weight that a new network has zero or one, so that none goes unnoticed."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim == 1 or not weight.any():
                weight.add_(torch.randn_like(weight) * 0.1)
    return module.eval()


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _schedule(start: float, end: float) -> dict[str, Tensor]:
    """Buffers of the original's schedule: betas linear in their roots."""
    betas = torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2
    left = torch.cumprod(1 - betas, dim=0)
    buffers = {"betas": betas, "alphas_cumprod": left, "sqrt_alphas_cumprod": left.sqrt()}
    return {name: value.float() for name, value in buffers.items()}
