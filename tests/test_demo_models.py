"""The shipped models: plain diffusers loads them, and they are as good as they were."""

from pathlib import Path

import pytest
import torch
from diffusers import LDMSuperResolutionPipeline, LDMTextToImagePipeline

from ldm_batch.demo.evaluate import MODELS, folder_bytes
from ldm_batch.demo.measure_super_resolution import load_super_resolution, measure_scenes
from ldm_batch.demo.measure_text_to_image import (
    PictureCall,
    load_text_to_image,
    measure_autoencoder,
    measure_pictures,
)

TEXT_TO_IMAGE, SUPER_RESOLUTION = MODELS / "text_to_image", MODELS / "super_resolution"


@pytest.fixture(scope="module")
def painter() -> LDMTextToImagePipeline:
    return load_text_to_image(str(TEXT_TO_IMAGE))


@pytest.fixture(scope="module")
def enlarger() -> LDMSuperResolutionPipeline:
    return load_super_resolution(str(SUPER_RESOLUTION))


def test_text_to_image_draws_held_out_scenes(painter: LDMTextToImagePipeline) -> None:
    assert measure_pictures(painter, 24, 1, PictureCall())["is_right"] >= 0.8
    assert measure_pictures(painter, 24, 2, PictureCall())["is_right"] >= 0.7


def test_autoencoder_keeps_scenes_right(painter: LDMTextToImagePipeline) -> None:
    assert measure_autoencoder(painter, 64)["right"] >= 0.95


def test_different_seeds_give_different_pictures(painter: LDMTextToImagePipeline) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    prompts = ["a red circle on a white background"] * 4
    images = painter(prompts, num_inference_steps=5, generator=generators, output_type="np").images
    assert len({image.round(1).tobytes() for image in images}) > 1


def test_super_resolution_beats_bicubic(enlarger: LDMSuperResolutionPipeline) -> None:
    scores = measure_scenes(enlarger, 4, 2)
    assert scores["psnr_gain_db"] >= 6
    assert scores["ssim_gain"] > 0


def test_models_are_small_and_safe() -> None:
    assert folder_bytes(MODELS) <= 16 * 2**20
    allowed = {".json", ".safetensors", ".md"}
    assert {file.suffix for file in MODELS.rglob("*") if file.is_file()} <= allowed


def test_models_do_not_tell_where_they_were_trained() -> None:
    for file in MODELS.rglob("*.json"):
        assert "name_or_path" not in Path(file).read_text()
