"""A training step of the U-Net of `unet_torch.py`."""

import torch
from unet_torch import TorchUNet


def training_step(ours, shape, embedding_size, *, bf16, compiled):
    """A step of Adam on the squared error of one batch by the U-Net `ours` in PyTorch, and a function to wait with."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # As JAX does by default.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    batch, height, width, image_channels = shape
    network = TorchUNet(ours).to(device, memory_format=torch.channels_last)
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
    return step, wait
