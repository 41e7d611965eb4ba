"""A training step of the U-Net beside the same in PyTorch, eager and compiled, where that is installed."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import tyro
from measuring import TrainingStep, record, seconds_per_call

import stochinv as si

try:
    import torch
    from unet_torch import TorchUNet
except ImportError:
    torch = None

EMBEDDING = 128


@dataclass(frozen=True)
class Options:
    """Speed of a U-Net's training steps."""

    batch_size: int = 64
    """Images per step."""
    size: int = 64
    """Height and width of the images in pixels."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Channels of each level."""
    quick: bool = False
    """Everything at a small size."""


def make_network(options: Options) -> si.nn.UNet:
    return si.nn.UNet(3, 3, embedding_size=EMBEDDING, channels=options.channels, key=jr.key(0))


def our_step(options: Options, dtype) -> TrainingStep:
    """A step of Adam on the squared error of one batch; parameters stay in single precision."""
    params, static = jax.tree.flatten(make_network(options))
    optimizer = optax.adam(1e-3)
    images = jr.normal(jr.key(1), (options.batch_size, options.size, options.size, 3))
    embeddings = jr.normal(jr.key(2), (options.batch_size, EMBEDDING))

    def step(state, batch):
        params, optimizer_state = state
        images, embeddings = batch

        def loss(params):
            network = jax.tree.unflatten(static, [x.astype(dtype) for x in params])
            predicted = jax.vmap(network)(images.astype(dtype), embeddings.astype(dtype))
            return jnp.mean((predicted.astype(jnp.float32) - images) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return (optax.apply_updates(params, updates), optimizer_state), value

    return TrainingStep(step, (params, optimizer.init(params)), (images, embeddings))


def torch_step(options: Options, device: str, bf16: bool, compiled: bool):
    """The same in PyTorch, with the same weights."""
    network = TorchUNet(make_network(options)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    images = torch.randn(options.batch_size, 3, options.size, options.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    embeddings = torch.randn(options.batch_size, EMBEDDING, device=device)
    forward = torch.compile(network) if compiled else network

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            predicted = forward(images, embeddings)
        value = torch.mean((predicted.float() - images) ** 2)
        value.backward()
        optimizer.step()
        return value

    return step


def measure_torch(options: Options):
    """Eager and compiled, the latter on a GPU alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # TF32 as in JAX.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    wait = lambda _: torch.cuda.synchronize() if device == "cuda" else None
    for compiled in (False, True) if device == "cuda" else (False,):
        for name in ("float32", "bfloat16"):
            step = torch_step(options, device, name == "bfloat16", compiled)
            rate = options.batch_size / seconds_per_call(step, options.quick, wait)
            record("unet", f"PyTorch {'compiled' if compiled else 'eager'}, {name}", rate, "images/s")


def main(argv=None):
    options = tyro.cli(Options, args=argv)
    if options.quick:
        options = replace(options, batch_size=2, size=8, channels=(8, 16))
    for name, dtype in {"float32": jnp.float32, "bfloat16": jnp.bfloat16}.items():
        step = our_step(options, dtype)
        note = f"batches of {options.batch_size}, {sum(x.size for x in step.state[0]) / 1e6:.3g} M parameters"
        rate = options.batch_size / seconds_per_call(step, options.quick)
        record("unet", f"stochinv, {name}", rate, "images/s", note)
    if torch is None or not (options.quick or torch.cuda.is_available()):
        record("unet", "PyTorch", "not measured", "", "no PyTorch with CUDA")
    else:
        measure_torch(options)


if __name__ == "__main__":
    main()
