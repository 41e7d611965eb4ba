r"""What a training step holds in memory, whole, in parts, and with blocks computed twice. Prints one table.

The step is that of `stochinv.step` for a transformer on images, in measurement space. Megabytes are those that the
compiled step needs besides its arguments and results, as XLA plans them; times are medians over steps that take turns,
over those of the whole step.

    python benchmarks/memory.py [--quick] [--json PATH]
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import stochinv as si


@dataclass(frozen=True)
class Options:
    """Memory and time of a training step."""

    batch_size: int = 32
    """Images per step."""
    image: int = 32
    """Height and width of the images."""
    width: int = 128
    """Features of a token."""
    depth: int = 8
    """Blocks of the transformer."""
    accumulate: int = 4
    """In how many parts a batch is worked on."""
    turns: int = 9
    """How often the steps take turns."""
    quick: bool = False
    """Tiny sizes."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclass(frozen=True)
class Row:
    """A step, the memory that it plans, over the whole one's, and its time over the whole one's."""

    step: str
    megabytes: float
    memory: float
    time: float


class Denoiser(eqx.Module):
    """A transformer from the noised image, and the noise level, to an image."""

    network: si.nn.PatchTransformer
    embedding: si.nn.NoiseEmbedding

    def __call__(self, noisy, level, context, params, *, key=None):
        return noisy + self.network(noisy, self.embedding(level.log_snr))


def compiled_step(options: Options, checkpoint: bool, accumulate: int, precision: str):
    """The compiled step, and its arguments."""
    rng = np.random.default_rng(0)
    images = np.float32(rng.normal(size=(options.batch_size, options.image, options.image, 3)))
    view = si.View(images, np.zeros((options.batch_size, 0), np.float32))
    network_key, embedding_key = jr.split(jr.key(0))
    size = {"image_size": (options.image,) * 2, "width": options.width, "depth": options.depth}
    network = si.nn.PatchTransformer(3, 3, embedding_size=64, checkpoint=checkpoint, key=network_key, **size)
    denoiser = Denoiser(network, si.nn.NoiseEmbedding(64, key=embedding_key))
    signal = jax.ShapeDtypeStruct(images.shape[1:], jnp.float32)
    problem = si.StochasticInverseProblem(
        lambda signal, params: signal, denoiser, objective=si.SquaredError(), signal=signal
    )
    batch = si.Example(None, view, None)
    state = si.init(problem, batch, key=jr.key(1), accumulate=accumulate, precision=precision)
    arrays, rest = eqx.partition(state, eqx.is_array)
    moved = lambda arrays, batch: eqx.filter(si.step(eqx.combine(arrays, rest), batch)[0], eqx.is_array)
    batch = jax.tree.map(jnp.asarray, batch)
    return jax.jit(moved).lower(arrays, batch).compile(), (arrays, batch)


def main(argv=None):
    options = tyro.cli(Options, args=argv)
    if options.quick:
        options = Options(batch_size=4, image=8, width=16, depth=2, accumulate=2, turns=1, json=options.json)
    kinds = {
        "whole": (False, 1, "float32"),
        f"in {options.accumulate} parts": (False, options.accumulate, "float32"),
        "blocks computed twice": (True, 1, "float32"),
        "both": (True, options.accumulate, "float32"),
        "bfloat16": (False, 1, "bf16"),
    }
    steps = {name: compiled_step(options, *kind) for name, kind in kinds.items()}
    megabytes = {name: step.memory_analysis().temp_size_in_bytes / 2**20 for name, (step, _) in steps.items()}
    seconds = {name: [] for name in steps}
    for turn in range(options.turns + 1):
        for name, (step, arguments) in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            if turn:
                seconds[name].append(time.perf_counter() - start)
    ratio = lambda name: float(np.median(np.divide(seconds[name], seconds["whole"])))
    rows = [Row(name, mb, mb / megabytes["whole"], ratio(name)) for name, mb in megabytes.items()]
    print(f"{'step':24}{'MB':>10}{'memory':>10}{'time':>10}")
    for row in rows:
        print(f"{row.step:24}{row.megabytes:10.1f}{row.memory:10.2f}{row.time:10.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
