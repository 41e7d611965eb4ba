"""The U-Net of `stochinv.nn` in PyTorch, layer by layer, with a training step."""

import torch
import torch.nn.functional as F
from torch import nn


class ResidualBlock(nn.Module):
    def __init__(self, channels, embedding_size, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels, affine=False)
        self.film = nn.Linear(embedding_size, 2 * channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, condition):
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        scale, shift = self.film(condition)[..., None, None].chunk(2, 1)
        return x + self.conv2(F.silu(h * (1 + scale) + shift))


class AttentionBlock(nn.Module):
    def __init__(self, channels, groups, heads):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        self.heads = heads

    def forward(self, x):
        batch, channels, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.to_qkv(tokens).reshape(batch, -1, 3, self.heads, channels // self.heads)
        attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        out = self.to_out(attended.transpose(1, 2).reshape(batch, -1, channels))
        return x + out.transpose(1, 2).reshape(batch, channels, height, width)


class Level(nn.Module):
    def __init__(self, channels, coarse, embedding_size, groups):
        super().__init__()
        self.down_block = ResidualBlock(channels, embedding_size, groups)
        self.to_coarse = nn.Conv2d(channels, coarse, 2, stride=2)
        self.from_coarse = nn.Conv2d(coarse, channels, 1, bias=False)
        self.skip = nn.Conv2d(channels, channels, 1)
        self.up_block = ResidualBlock(channels, embedding_size, groups)

    def up(self, kept, coarse, condition):
        return self.up_block(self.skip(kept) + F.interpolate(self.from_coarse(coarse), scale_factor=2), condition)


class UNet(nn.Module):
    """One residual block per level and way, attention at the lowest."""

    def __init__(self, image_channels, embedding_size, channels, groups=8, heads=4):
        super().__init__()
        self.conditioning = nn.Linear(embedding_size, embedding_size)
        self.conv_in = nn.Conv2d(image_channels, channels[0], 3, padding=1)
        pairs = zip(channels[:-1], channels[1:], strict=True)
        self.levels = nn.ModuleList(Level(a, b, embedding_size, groups) for a, b in pairs)
        self.middle = ResidualBlock(channels[-1], embedding_size, groups)
        self.attention = AttentionBlock(channels[-1], groups, heads)
        self.middle_after = ResidualBlock(channels[-1], embedding_size, groups)
        self.norm_out = nn.GroupNorm(groups, channels[0])
        self.conv_out = nn.Conv2d(channels[0], image_channels, 3, padding=1)

    def forward(self, x, embedding):
        condition = F.silu(self.conditioning(embedding))
        h, kept = self.conv_in(x), []
        for level in self.levels:
            kept.append(level.down_block(h, condition))
            h = level.to_coarse(kept[-1])
        h = self.middle_after(self.attention(self.middle(h, condition)), condition)
        for level, finer in zip(reversed(self.levels), reversed(kept), strict=True):
            h = level.up(finer, h, condition)
        return self.conv_out(F.silu(self.norm_out(h)))


def training_step(shape, embedding_size, channels, *, bf16, compiled):
    """A step of Adam on the squared error over one batch, a function to wait with, and the number of parameters."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # As JAX does by default.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    batch, height, width, image_channels = shape
    network = UNet(image_channels, embedding_size, channels).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=device == "cuda")
    images = torch.randn(batch, image_channels, height, width, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    embedding = torch.randn(batch, embedding_size, device=device)
    forward = torch.compile(network) if compiled else network

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            predicted = forward(images, embedding)
        loss = torch.mean((predicted.float() - images) ** 2)
        loss.backward()
        optimizer.step()
        return loss

    wait = lambda _: torch.cuda.synchronize() if device == "cuda" else None
    return step, wait, sum(p.numel() for p in network.parameters())
