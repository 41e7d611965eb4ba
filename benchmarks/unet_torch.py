"""`stochinv.nn.UNet` written in PyTorch, with the weights of one of ours. `unet.py` times the two."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def parameter(x):
    return nn.Parameter(torch.tensor(np.asarray(x)))


def linear(ours):
    """The same affine map."""
    layer = nn.utils.skip_init(nn.Linear, *ours.weight.shape, bias=ours.bias is not None)
    layer.weight = parameter(ours.weight.T)
    if ours.bias is not None:
        layer.bias = parameter(ours.bias)
    return layer


def conv(kernel, bias, **settings):
    """A convolution with a kernel of shape `(height, width, in, out)`."""
    height, width, inward, outward = kernel.shape
    sizes = (inward, outward, (height, width))
    layer = nn.utils.skip_init(nn.Conv2d, *sizes, bias=bias is not None, **settings)
    layer.weight = parameter(kernel.transpose(3, 2, 0, 1))
    if bias is not None:
        layer.bias = parameter(bias)
    return layer


def conv3(ours):
    return conv(ours.weight, ours.bias, padding="same")


def conv1(ours):
    return conv(ours.weight[None, None], ours.bias)


def blocks_last(x, patch, axis):
    """Our order of the channels of a block of pixels, `(row, column, channel)`, to PyTorch's, channel first."""
    x = np.moveaxis(np.asarray(x), axis, 0)
    x = x.reshape(patch, patch, -1, *x.shape[1:])
    return np.moveaxis(np.moveaxis(x, 2, 0).reshape(-1, *x.shape[3:]), 0, axis)


class GroupNorm(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.groups, self.eps = ours.groups, ours.eps
        self.weight = None if ours.weight is None else parameter(ours.weight)
        self.bias = None if ours.bias is None else parameter(ours.bias)

    def forward(self, x):
        return functional.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class ResidualBlock(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(ours.norm1), conv3(ours.conv1)
        self.norm2, self.conv2 = GroupNorm(ours.norm2), conv3(ours.conv2)
        self.film = linear(ours.film.linear)

    def forward(self, x, condition):
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        return x + self.conv2(functional.silu(self.norm2(h) * (1 + scale) + shift))


class Blocks(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.blocks = nn.ModuleList(map(ResidualBlock, ours.blocks))

    def forward(self, x, condition):
        for block in self.blocks:
            x = block(x, condition)
        return x


class AttentionBlock(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.norm, self.heads = GroupNorm(ours.norm), ours.attention.heads
        self.to_qkv, self.to_out = linear(ours.attention.to_qkv), linear(ours.attention.to_out)

    def forward(self, x):
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        qkv = self.to_qkv(tokens).reshape(batch, height * width, 3, self.heads, channels // self.heads)
        attended = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        out = self.to_out(attended.transpose(1, 2).reshape(tokens.shape))
        return x + out.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


class Level(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.down_blocks, self.up_blocks = Blocks(ours.down_blocks), Blocks(ours.up_blocks)
        kernel = ours.to_coarse.weight
        self.to_coarse = conv(kernel.reshape(2, 2, -1, kernel.shape[1]), ours.to_coarse.bias, stride=2)
        self.from_coarse, self.skip = conv1(ours.from_coarse), conv1(ours.skip)

    def down(self, x, condition):
        kept = self.down_blocks(x, condition)
        return kept, self.to_coarse(kept)

    def up(self, kept, coarse, condition):
        coarse = functional.interpolate(self.from_coarse(coarse), scale_factor=2, mode="nearest")
        return self.up_blocks(self.skip(kept) + coarse, condition)


class TorchUNet(nn.Module):
    """For images whose sizes need no padding."""

    def __init__(self, ours):
        super().__init__()
        self.patch = ours.patch
        self.conditioning = linear(ours.conditioning.linear)
        self.conv_in = conv(blocks_last(ours.conv_in.weight, self.patch, 2), ours.conv_in.bias, padding="same")
        self.levels = nn.ModuleList(map(Level, ours.levels))
        self.middle, self.middle_after = Blocks(ours.middle), Blocks(ours.middle_after)
        self.attention = AttentionBlock(ours.attention)
        self.norm_out = GroupNorm(ours.norm_out)
        kernel, bias = (blocks_last(x, self.patch, -1) for x in (ours.conv_out.weight, ours.conv_out.bias))
        self.conv_out = conv(kernel, bias, padding="same")

    def forward(self, x, embedding):
        condition = functional.silu(self.conditioning(embedding))
        h, kept = self.conv_in(functional.pixel_unshuffle(x, self.patch)), []
        for level in self.levels:
            finer, h = level.down(h, condition)
            kept.append(finer)
        h = self.middle_after(self.attention(self.middle(h, condition)), condition)
        for level, finer in zip(reversed(self.levels), reversed(kept), strict=True):
            h = level.up(finer, h, condition)
        y = self.conv_out(functional.silu(self.norm_out(h)))
        return functional.pixel_shuffle(y, self.patch)
