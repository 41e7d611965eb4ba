r"""The U-Net against the same architecture in PyTorch. Prints one table.

Both networks are given the same weights, and have to compute the same function to 1e-4. PyTorch runs eagerly, in its
channels-last format and with its fused Adam; JAX runs one jitted function with donated buffers. A training step is
squared error of a batch, its gradient, and Adam. The two take turns, each first as often as the other, and ratios are
of medians over the turns: on the clock, then of processor time, which other programs on the machine disturb less. A/A,
a second run of ours over the first, tells how far off a ratio is by chance. Compilation is left out. Without PyTorch,
the times of ours are printed alone.

Both use as many threads as the process has cores, and PyTorch's wait without spinning, which would take the cores from
the other. For one thread, and for two:

    taskset -c 0 python benchmarks/unet.py [--quick] [--json PATH]
    taskset -c 0,1 python benchmarks/unet.py
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import tyro

import stochinv as si

# Read by PyTorch's threads when they start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
try:
    import torch
    from unet_torch import TorchUNet
except ImportError:
    torch = None

LEARNING_RATE, IN_CHANNELS, EMBEDDING_SIZE = 1e-3, 5, 128


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison."""

    image: int
    patch: int
    batch: int
    channels: tuple[int, ...] = (32, 64)


CASES = (Case(28, 2, 64), Case(28, 2, 16), Case(32, 2, 64), Case(32, 2, 16), Case(16, 1, 64), Case(16, 1, 16))
QUICK_CASES = (Case(8, 2, 2, (8, 16)), Case(8, 1, 2, (8, 16)))


@dataclass(frozen=True)
class Options:
    """Time of the U-Net over that of PyTorch's."""

    rounds: int = 20
    """How often each takes its turn."""
    cases: tuple[int, ...] = tuple(range(len(CASES)))
    """Which rows of the table."""
    quick: bool = False
    """Everything at a small size."""
    json: Path | None = None
    """Also write the figures to this file."""


def network_and_data(case):
    """The network, none of whose weights is zero, and one batch of images, embeddings and targets."""
    network_key, weights_key, *data_keys = jr.split(jr.PRNGKey(0), 5)
    sizes = {"embedding_size": EMBEDDING_SIZE, "channels": case.channels, "patch": case.patch}
    network = si.nn.UNet(IN_CHANNELS, 1, **sizes, key=network_key)
    params, static = eqx.partition(network, eqx.is_inexact_array)
    leaves, treedef = jax.tree.flatten(params)
    keys = jr.split(weights_key, len(leaves))
    leaves = [x + 0.05 * jr.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    network = eqx.combine(jax.tree.unflatten(treedef, leaves), static)
    shapes = [(case.image, case.image, IN_CHANNELS), (EMBEDDING_SIZE,), (case.image, case.image, 1)]
    data = [jr.normal(k, (case.batch, *shape)) for k, shape in zip(data_keys, shapes, strict=True)]
    return network, data


def jax_runs(network, data):
    """A forward pass and a training step of ours."""
    params, static = eqx.partition(network, eqx.is_inexact_array)
    optimizer = optax.adam(LEARNING_RATE)
    apply = lambda params, image, embedding: jax.vmap(eqx.combine(params, static))(image, embedding)

    def loss(params, image, embedding, target):
        return jnp.mean((apply(params, image, embedding) - target) ** 2)

    def step(state, *data):
        params, optimizer_state = state
        value, gradient = jax.value_and_grad(loss)(params, *data)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    forward, step = jax.jit(apply), jax.jit(step, donate_argnums=0)
    owned = jax.tree.map(jnp.array, params)
    state = (owned, optimizer.init(owned))

    def train():
        nonlocal state
        state, value = step(state, *data)
        return float(value)

    return lambda: np.asarray(forward(params, *data[:2])), train


def torch_runs(network, data):
    """A forward pass and a training step of PyTorch's."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    to_torch = lambda x: torch.tensor(np.asarray(x))
    channels_first = lambda x: x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    image, embedding, target = map(to_torch, data)
    image, target = channels_first(image), channels_first(target)
    # Training changes the weights of one of them.
    evaluated, trained = (TorchUNet(network).to(memory_format=torch.channels_last) for _ in range(2))
    optimizer = torch.optim.Adam(trained.parameters(), lr=LEARNING_RATE, fused=True)

    def forward():
        with torch.inference_mode():
            return evaluated(image, embedding).permute(0, 2, 3, 1).numpy()

    def train():
        optimizer.zero_grad()
        value = torch.mean((trained(image, embedding) - target) ** 2)
        value.backward()
        optimizer.step()
        return float(value.detach())

    return forward, train


def turns(functions, rounds):
    """Seconds on the clock and of all cores together, shape `(2, functions)`: medians over turns."""
    now = lambda: np.asarray([time.perf_counter(), time.process_time()])
    for function in functions:
        function()
    times = np.zeros((rounds, len(functions), 2))
    for turn in range(rounds):
        for index in np.roll(range(len(functions)), turn):
            start = now()
            functions[index]()
            times[turn, index] = now() - start
    return np.median(times, 0).T


def compare(case, rounds):
    """The rows of one case: forward pass and training step."""
    network, data = network_and_data(case)
    ours = jax_runs(network, data)
    theirs = (None, None) if torch is None else torch_runs(network, data)
    if torch is not None:
        # The first losses, and after one step of Adam the second ones.
        pairs = [(ours[0](), theirs[0]()), (ours[1](), theirs[1]()), (ours[1](), theirs[1]())]
        for mine, other in pairs:
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)
    parameters = sum(x.size for x in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))
    for what, mine, other in zip(("forward", "training step"), ours, theirs, strict=True):
        functions = [mine, mine, mine] if other is None else [mine, other, mine]
        times, cores = turns(functions, rounds)
        ratio = lambda x: float((x[0] + x[-1]) / 2 / x[1])
        yield {
            "what": what,
            "image": case.image,
            "patch": case.patch,
            "batch": case.batch,
            "parameters": parameters,
            "milliseconds": 1e3 * float(times[0]),
            "torch_milliseconds": None if other is None else 1e3 * float(times[1]),
            "ratio": None if other is None else ratio(times),
            "processor_ratio": None if other is None else ratio(cores),
            "a_over_a": float(times[-1] / times[0]),
        }


def print_table(title, header, rows):
    print(f"\n{title}")
    rows = [[str(x) for x in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [x.ljust(w) if i < 1 else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells), flush=True)


def main(argv: Sequence[str] | None = None):
    options = tyro.cli(Options, args=argv)
    cases, rounds = (QUICK_CASES, 2) if options.quick else ([CASES[i] for i in options.cases], options.rounds)
    threads = len(os.sched_getaffinity(0))
    print(f"stochinv {si.__version__}, jax {jax.__version__}, {jax.default_backend()}, {threads} threads")
    print("PyTorch is not installed" if torch is None else f"PyTorch {torch.__version__}")
    figures = [row for case in cases for row in compare(case, rounds)]
    shown = lambda x, digits: "–" if x is None else f"{x:.{digits}f}"
    print_table(
        f"U-Net: its time over that of PyTorch's, medians of {rounds} turns",
        ["", "image", "patch", "batch", "parameters", "ms", "PyTorch ms", "ratio", "processor", "A/A"],
        [
            [
                x["what"],
                x["image"],
                x["patch"],
                x["batch"],
                f"{x['parameters']:,}",
                shown(x["milliseconds"], 1),
                shown(x["torch_milliseconds"], 1),
                shown(x["ratio"], 3),
                shown(x["processor_ratio"], 3),
                shown(x["a_over_a"], 3),
            ]
            for x in figures
        ],
    )
    if options.json is not None:
        options.json.write_text(json.dumps({"threads": threads, "rows": figures}, indent=2))
    return {"threads": threads, "rows": figures}


if __name__ == "__main__":
    main()
