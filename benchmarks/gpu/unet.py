"""A training step of the U-Net beside the same in PyTorch, eager and compiled, where that is installed."""

import importlib
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import tyro
from measuring import TrainingStep, record, seconds_per_call

import stochinv as si

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


def network_of(options: Options) -> si.nn.UNet:
    return si.nn.UNet(3, 3, embedding_size=EMBEDDING, channels=options.channels, key=jr.key(0))


def our_step(options: Options, dtype) -> TrainingStep:
    """A step of Adam on the squared error of one batch; parameters stay in single precision."""
    params, static = jax.tree.flatten(network_of(options))
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


def torch_module(quick: bool):
    """`torch_step`, or `None` where PyTorch cannot be imported or sees no GPU."""
    try:
        module = importlib.import_module("torch_step")
    except ImportError:
        return None
    return module if quick or module.torch.cuda.is_available() else None


def measure_torch(options: Options, module, name: str, compiled: bool):
    shape = (options.batch_size, options.size, options.size, 3)
    figure = f"PyTorch {'compiled' if compiled else 'eager'}, {name}"
    bf16 = name == "bfloat16"
    step, wait = module.training_step(network_of(options), shape, EMBEDDING, bf16=bf16, compiled=compiled)
    record("unet", figure, options.batch_size / seconds_per_call(step, options.quick, wait), "images/s")


def main(argv=None):
    options = tyro.cli(Options, args=argv)
    if options.quick:
        options = replace(options, batch_size=2, size=8, channels=(8, 16))
    dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
    for name, dtype in dtypes.items():
        step = our_step(options, dtype)
        note = f"batches of {options.batch_size}, {sum(x.size for x in step.state[0]) / 1e6:.3g} M parameters"
        record(
            "unet", f"stochinv, {name}", options.batch_size / seconds_per_call(step, options.quick), "images/s", note
        )
    module = torch_module(options.quick)
    if module is None:
        record("unet", "PyTorch", "not measured", "", "no PyTorch with CUDA")
        return
    for compiled in (False,) if options.quick else (False, True):
        for name in dtypes:
            measure_torch(options, module, name, compiled)


if __name__ == "__main__":
    main()
