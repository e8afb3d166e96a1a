"""An initialisation by which an untrained autoencoder already passes pictures through.

The encoder starts as average pooling and the decoder as linear interpolation, with the residual
branches near zero. GroupNorm with one group and SiLU are made nearly linear by channel pairs x, -x
and constants K, -K that hold the norm's scale still; training starts at about 20 dB, not 7.
"""

import torch
from diffusers import VQModel
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn

HOLD = 6.0
NOISE = 0.02
IMAGE_CHANNELS = 3
LATENT_SCALE = 1.7


@torch.no_grad()
def make_pass_through(autoencoder: VQModel) -> None:
    """Initialise an autoencoder of RGB images with 3 latent channels and norms of one group."""
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    for part, scale in ((encoder, LATENT_SCALE), (decoder, 1 / LATENT_SCALE)):
        for module in part.modules():
            _initialise_block(module)
        _initialise_stem(part.conv_in)
        _initialise_head(part.conv_norm_out, part.conv_out, scale)
    for convolution in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        _set_identity(convolution, torch.ones(1, 1), noise=0.0)


def _initialise_block(module: nn.Module) -> None:
    if isinstance(module, ResnetBlock2D):
        module.conv2.weight.mul_(0.05)
        module.conv2.bias.zero_()
        if module.conv_shortcut is not None:
            _set_identity(module.conv_shortcut, torch.ones(1, 1), noise=NOISE)
    elif isinstance(module, Downsample2D):
        averaging = torch.zeros(3, 3)
        averaging[:2, :2] = 0.25
        _set_identity(module.conv, averaging, noise=NOISE)
    elif isinstance(module, Upsample2D):
        triangle = torch.tensor([0.25, 0.5, 0.25])
        _set_identity(module.conv, torch.outer(triangle, triangle), noise=NOISE / 3)


def _set_identity(convolution: nn.Conv2d, kernel: Tensor, *, noise: float) -> None:
    """Make each output channel its input channel filtered by `kernel`; spare ones are noise."""
    weight = convolution.weight
    num = min(weight.shape[:2])
    weight.normal_(0, noise) if noise else weight.zero_()
    weight[:num] = 0
    weight[:, :num] = 0
    for channel in range(num):
        weight[channel, channel] = kernel
    if convolution.bias is not None:
        convolution.bias.zero_()


def _initialise_stem(convolution: nn.Conv2d) -> None:
    """First outputs: the input, the input negated, and the constants HOLD and -HOLD."""
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    weight.mul_(0.5)
    bias.zero_()
    weight[: 2 * IMAGE_CHANNELS + 2] = 0
    for channel in range(IMAGE_CHANNELS):
        weight[channel, channel, 1, 1] = 1
        weight[IMAGE_CHANNELS + channel, channel, 1, 1] = -1
    bias[2 * IMAGE_CHANNELS] = HOLD
    bias[2 * IMAGE_CHANNELS + 1] = -HOLD


def _initialise_head(norm: nn.GroupNorm, convolution: nn.Conv2d, scale: float) -> None:
    """Recombine x and -x behind norm and SiLU: SiLU(a) - SiLU(-a) = a."""
    norm.weight.fill_(1)
    norm.bias.zero_()
    held_deviation = (2 * HOLD * HOLD / norm.num_channels) ** 0.5
    convolution.weight.mul_(0.1)
    assert convolution.bias is not None
    convolution.bias.zero_()
    convolution.weight[:IMAGE_CHANNELS] = 0
    for channel in range(IMAGE_CHANNELS):
        convolution.weight[channel, channel, 1, 1] = held_deviation * scale
        convolution.weight[channel, IMAGE_CHANNELS + channel, 1, 1] = -held_deviation * scale
