"""The networks of CompVis/latent-diffusion, written anew: same weights by name, same outputs.

Plain torch, as small as their structure allows. Compared once by hand with the original's own
modules, on all its yamls.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=eps)


# The UNet


class ResBlock(nn.Module):
    def __init__(
        self, channels: int, out: int, time: int, *, scale_shift: bool = False, resample: str = ""
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        conv = nn.Conv2d(channels, out, 3, padding=1)
        self.in_layers = nn.Sequential(group_norm(channels, 1e-5), nn.SiLU(), conv)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, out * (1 + scale_shift)))
        conv = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(group_norm(out, 1e-5), nn.SiLU(), nn.Identity(), conv)
        self.skip_connection = nn.Identity() if out == channels else nn.Conv2d(channels, out, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return functional.avg_pool2d(x, 2)
        return functional.interpolate(x, scale_factor=2) if self.resample == "up" else x

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor | None) -> Tensor:
        h = self.in_layers[2](self._resampled(self.in_layers[1](self.in_layers[0](x))))
        x, moved = self._resampled(x), self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = moved.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + moved)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Of each head the qkv stand together: q, k, v of the first, then of the second, ..."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels, 1e-5)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor | None) -> Tensor:
        flat = x.flatten(2)
        num, channels, places = flat.shape
        width = channels // self.heads
        qkv = self.qkv(self.norm(flat)).reshape(num * self.heads, 3 * width, places)
        q, k, v = qkv.split(width, dim=1)
        attended = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(width), dim=-1)
        seen = (v @ attended.transpose(1, 2)).reshape(num, channels, places)
        return (flat + self.proj_out(seen)).reshape(x.shape)


class CrossAttention(nn.Module):
    def __init__(self, channels: int, context: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, heads * width, bias=False)
        self.to_k = nn.Linear(context, heads * width, bias=False)
        self.to_v = nn.Linear(context, heads * width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * width, channels), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        return self.to_out(heads_attend(q, k, v, self.heads))


def heads_attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of heads that stand one after the other in the last dimension."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    attended = torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, dim=-1)
    return (attended @ v).transpose(1, 2).flatten(2)


class GatedLinear(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        values, gate = self.proj(x).chunk(2, dim=-1)
        return values * functional.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, first: nn.Module, hidden: int, out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(first, nn.Identity(), nn.Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(channels, channels, heads, channels // heads)
        self.ff = FeedForward(GatedLinear(channels, 4 * channels), 4 * channels, channels)
        self.attn2 = CrossAttention(channels, context, heads, channels // heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), tokens)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, context: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, 1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        blocks = [TransformerBlock(channels, context, heads) for _ in range(depth)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x))
        flat = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            flat = block(flat, tokens)
        return x + self.proj_out(flat.transpose(1, 2).reshape(h.shape))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor | None) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor | None) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2))


class First(nn.Conv2d):
    def forward(self, x: Tensor, *others: object) -> Tensor:
        return super().forward(x)


class UNetModel(nn.Module):
    """By the numbers of a yaml's `unet_config.params`."""

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        attention_resolutions: Sequence[int],
        num_res_blocks: int,
        channel_mult: Sequence[int],
        num_heads: int = -1,
        num_head_channels: int = -1,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int = 0,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        **others: object,
    ) -> None:
        super().__init__()
        self.model_channels, time = model_channels, 4 * model_channels
        sequence = [nn.Linear(model_channels, time), nn.SiLU(), nn.Linear(time, time)]
        self.time_embed = nn.Sequential(*sequence)

        def resnet(channels: int, out: int, resample: str = "") -> nn.Module:
            kinds = {"scale_shift": use_scale_shift_norm, "resample": resample}
            return ResBlock(channels, out, time, **kinds)

        def attention(channels: int) -> nn.Module:
            heads = num_heads if num_head_channels == -1 else channels // num_head_channels
            if use_spatial_transformer:
                return SpatialTransformer(channels, context_dim, heads, transformer_depth)
            return AttentionBlock(channels, heads)

        width = model_channels
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([First(in_channels, width, 3, padding=1)])]
        )
        kept, last = [width], len(channel_mult) - 1
        for level, multiple in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers = [resnet(width, multiple * model_channels)]
                width = multiple * model_channels
                if 2**level in attention_resolutions:
                    layers.append(attention(width))
                self.input_blocks.append(nn.ModuleList(layers))
                kept.append(width)
            if level < last:
                down = resnet(width, width, "down") if resblock_updown else Downsample(width)
                self.input_blocks.append(nn.ModuleList([down]))
                kept.append(width)
        middle = [resnet(width, width), attention(width), resnet(width, width)]
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(last + 1)):
            for number in range(num_res_blocks + 1):
                out = channel_mult[level] * model_channels
                layers, width = [resnet(width + kept.pop(), out)], out
                if 2**level in attention_resolutions:
                    layers.append(attention(width))
                if level and number == num_res_blocks:
                    layers.append(
                        resnet(width, width, "up") if resblock_updown else Upsample(width)
                    )
                self.output_blocks.append(nn.ModuleList(layers))
        conv = nn.Conv2d(width, out_channels, 3, padding=1)
        self.out = nn.Sequential(group_norm(width, 1e-5), nn.SiLU(), conv)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        half = self.model_channels // 2
        rates = torch.exp(-math.log(10000) * torch.arange(half) / half)
        angles = timesteps[:, None].float() * rates
        time = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        kept = []
        for layers in self.input_blocks:
            for layer in layers:
                x = layer(x, time, context)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, time, context)
        for layers in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for layer in layers:
                x = layer(x, time, context)
        return self.out(x)


# First stages


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels, 1e-6), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(out, 1e-6), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, 1e-6)
        self.q, self.k, self.v = (nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        attended = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, dim=2)
        return x + self.proj_out((v @ attended.transpose(1, 2)).reshape(x.shape))


class Middle(nn.Module):
    def __init__(self, channels: int, has_attention: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels) if has_attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Resnets of one resolution, each with attention behind it or none."""

    def __init__(self, channels: int, out: int, num: int, has_attention: bool) -> None:
        super().__init__()
        blocks = [ResnetBlock(channels if i == 0 else out, out) for i in range(num)]
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList([AttnBlock(out) for _ in range(num * has_attention)])

    def run(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        return x


class Sampler(nn.Module):
    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=int(up))

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return self.conv(functional.interpolate(x, scale_factor=2.0))
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Encoder(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        widths = [config["ch"] * multiple for multiple in config["ch_mult"]]
        has_any = config.get("attn_type", "vanilla") != "none"
        self.conv_in = nn.Conv2d(config["in_channels"], config["ch"], 3, padding=1)
        self.down = nn.ModuleList()
        for index, width in enumerate(widths):
            attends = has_any and config["resolution"] // 2**index in config["attn_resolutions"]
            before = widths[index - 1] if index else config["ch"]
            level = Level(before, width, config["num_res_blocks"], attends)
            if index < len(widths) - 1:
                level.downsample = Sampler(width, up=False)
            self.down.append(level)
        self.mid = Middle(widths[-1], has_any)
        self.norm_out = group_norm(widths[-1], 1e-6)
        out = config["z_channels"] * (1 + config["double_z"])
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level.run(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(functional.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        widths = [config["ch"] * multiple for multiple in config["ch_mult"]]
        has_any = config.get("attn_type", "vanilla") != "none"
        self.conv_in = nn.Conv2d(config["z_channels"], widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], has_any)
        levels = []
        for index, width in enumerate(widths):
            attends = has_any and config["resolution"] // 2**index in config["attn_resolutions"]
            before = widths[min(index + 1, len(widths) - 1)]
            level = Level(before, width, config["num_res_blocks"] + 1, attends)
            if index:
                level.upsample = Sampler(width, up=True)
            levels.append(level)
        self.up = nn.ModuleList(levels)
        self.norm_out = group_norm(widths[0], 1e-6)
        self.conv_out = nn.Conv2d(widths[0], config["out_ch"], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level.run(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class Codebook(nn.Module):
    def __init__(self, num: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num, dim)

    def forward(self, z: Tensor) -> Tensor:
        flat = z.permute(0, 2, 3, 1)
        distances = (flat[..., None, :] - self.embedding.weight).square().sum(dim=-1)
        return self.embedding(distances.argmin(dim=-1)).permute(0, 3, 1, 2)


class FirstStage(nn.Module):
    """AutoencoderKL without `n_embed`, else VQModelInterface, by a yaml's `params`."""

    def __init__(
        self, *, ddconfig: dict, embed_dim: int, n_embed: int | None = None, **others: object
    ) -> None:
        super().__init__()
        double = 1 + ddconfig["double_z"]
        self.encoder, self.decoder = Encoder(ddconfig), Decoder(ddconfig)
        if n_embed is not None:
            self.quantize = Codebook(n_embed, embed_dim)
        self.quant_conv = nn.Conv2d(double * ddconfig["z_channels"], double * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)

    def encode(self, x: Tensor) -> Tensor:
        """Latents before the codebook; of a KL model mean and log variance."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        if hasattr(self, "quantize"):
            z = self.quantize(z)
        return self.decoder(self.post_quant_conv(z))


# Conditions


class SelfAttention(nn.Module):
    """Of x-transformers: eight heads of 64, whatever the width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, 512, bias=False) for _ in range(3))
        self.to_out = nn.Linear(512, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_out(heads_attend(self.to_q(x), self.to_k(x), self.to_v(x), 8))


class AttentionLayers(nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            first = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU())
            for layer in (SelfAttention(dim), FeedForward(first, 4 * dim, dim)):
                self.layers.append(nn.ModuleList([nn.LayerNorm(dim), layer]))


class Positions(nn.Module):
    def __init__(self, num: int, dim: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(num, dim)


class TransformerWrapper(nn.Module):
    def __init__(self, num_tokens: int, max_seq_len: int, dim: int, depth: int) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb = Positions(max_seq_len, dim)
        self.attn_layers = AttentionLayers(dim, depth)
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_emb(tokens) + self.pos_emb.emb.weight[: tokens.shape[1]]
        for norm, layer in self.attn_layers.layers:
            x = x + layer(norm(x))
        return self.norm(x)


class BERTEmbedder(nn.Module):
    """By the numbers of a yaml's `cond_stage_config.params`."""

    def __init__(
        self,
        *,
        n_embed: int,
        n_layer: int,
        vocab_size: int = 30522,
        max_seq_len: int = 77,
        use_tokenizer: bool = True,
    ) -> None:
        super().__init__()
        self.transformer = TransformerWrapper(vocab_size, max_seq_len, n_embed, n_layer)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.transformer(tokens)


class ClassEmbedder(nn.Module):
    def __init__(self, *, embed_dim: int, n_classes: int = 1000, key: str = "class") -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def forward(self, classes: Tensor) -> Tensor:
        return self.embedding(classes[:, None])


class SpatialRescaler(nn.Module):
    def __init__(self, *, n_stages: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.n_stages = n_stages
        self.channel_mapper = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.n_stages):
            x = functional.interpolate(x, scale_factor=0.5, mode="bilinear")
        return self.channel_mapper(x)


CONDITIONS = {
    "ldm.modules.encoders.modules.BERTEmbedder": BERTEmbedder,
    "ldm.modules.encoders.modules.ClassEmbedder": ClassEmbedder,
    "ldm.modules.encoders.modules.SpatialRescaler": SpatialRescaler,
}
