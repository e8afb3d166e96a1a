"""How good the super-resolution model is, beside bicubic interpolation: PSNR and SSIM."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import LDMSuperResolutionPipeline
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from ldm_batch.demo.train.details import downsample, draw_scenes_in_detail
from ldm_batch.demo.train.scenes import to_tensor

SSIM_SIGMA = 1.5


def load_super_resolution(folder: str) -> LDMSuperResolutionPipeline:
    """Load the plain diffusers pipeline from a folder, without a progress bar."""
    pipeline = LDMSuperResolutionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def measure_scenes(
    pipeline: LDMSuperResolutionPipeline, num: int, num_inference_steps: int
) -> dict[str, float]:
    """PSNR in dB and SSIM on held-out scenes, 64 px to 256 px."""
    return compare(pipeline, draw_scenes_in_detail(2000, num), num_inference_steps)


def compare(
    pipeline: LDMSuperResolutionPipeline, images: Sequence[Image.Image], num_inference_steps: int
) -> dict[str, float]:
    """PSNR and SSIM of the model and of bicubic, from bicubic reductions by four of RGB images."""
    reduced = [downsample(image) for image in images]
    enlarged = [enlarge(pipeline, image, num_inference_steps) for image in reduced]
    bicubic = [
        small.resize(image.size, Image.Resampling.BICUBIC)
        for small, image in zip(reduced, images, strict=True)
    ]
    scores = {}
    for name, found in (("model", enlarged), ("bicubic", bicubic)):
        pairs = [(_array(f), _array(i)) for f, i in zip(found, images, strict=True)]
        scores[f"psnr_db_{name}"] = float(np.mean([psnr_db(f, i) for f, i in pairs]))
        scores[f"ssim_{name}"] = float(np.mean([ssim(f, i) for f, i in pairs]))
    scores["ssim_gain"] = scores["ssim_model"] - scores["ssim_bicubic"]
    scores["psnr_gain_db"] = scores["psnr_db_model"] - scores["psnr_db_bicubic"]
    return scores


def enlarge(
    pipeline: LDMSuperResolutionPipeline, image: Image.Image, num_inference_steps: int
) -> Image.Image:
    """Enlarge an RGB image by four, its noise seeded with 0."""
    enlarged: Image.Image = pipeline(
        to_tensor([image]),
        num_inference_steps=num_inference_steps,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    return enlarged


def psnr_db(image: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio of images in 0..255, in dB."""
    return float(20 * np.log10(255 / np.sqrt(np.mean((image - target) ** 2) + 1e-12)))


def ssim(image: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Structural similarity (Wang et al. 2004, Gaussian window of 1.5 px) of (H, W, 3), 0..255."""

    def blur(values: NDArray[np.float64]) -> NDArray[np.float64]:
        blurred: NDArray[np.float64] = gaussian_filter(values, (SSIM_SIGMA, SSIM_SIGMA, 0))
        return blurred

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = blur(image), blur(target)
    var_x, var_y = blur(image**2) - mean_x**2, blur(target**2) - mean_y**2
    covariance = blur(image * target) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float(np.mean(luminance * structure))


def _array(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image, np.float64)
