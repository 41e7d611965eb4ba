"""Complex images of magnetic resonance, given a few lines of k-space of each.

`python mri.py` learns from lines of k-space alone in minutes, tells by a table whether its posteriors can be
trusted (`fit.check`), and writes mri.png: for four held-out images, draws given their lines.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

import stochinv as si

SIZE, LINES, VIEWS, NOISE = 16, 6, 2, 0.02

# An image is measured by some lines of its Fourier transform; `sensitivities=` has those of the coils.
signal = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.complex64)
forward = si.forward.CartesianMRI((SIZE, SIZE))


def scans(number, key):
    """Which lines are measured, of so many measurements: two at the centre always, and others at random."""
    lines = lambda k: si.forward.random_lines(SIZE, LINES, centre=2, key=k)
    return si.forward.MRIScan(jax.vmap(lines)(jr.split(key, number)))


params = scans(32, jr.key(3))  # some measurements, for `stochinv check` alone


def made_up(number, key):
    """Ellipses with a smooth phase, and noisy lines of their k-space."""
    keys = jr.split(key, 5)
    x, y = jnp.meshgrid(*[jnp.linspace(-1, 1, SIZE)] * 2)
    soft = lambda r: jax.nn.sigmoid(8 * (1 - r))
    width, height = jr.uniform(keys[0], (2, number, 1, 1), minval=0.5, maxval=0.9)
    left, top = jr.uniform(keys[1], (2, number, 1, 1), minval=-0.3, maxval=0.3)
    tissue = soft(jnp.hypot(x / width, y / height)) + soft(jnp.hypot(x - left, y - top) / 0.25)
    across, down = 0.5 * jr.normal(keys[2], (2, number, 1, 1))
    images = tissue * jnp.exp(1j * (across * x + down * y))
    measured = jax.tree.map(lambda x: x.reshape(number, VIEWS, -1), scans(number * VIEWS, keys[3]))
    clean = jax.jit(jax.vmap(jax.vmap(forward, (None, 0))))(images, measured)
    real, imaginary = NOISE * jr.normal(keys[4], (2, *clean.shape))
    return images, clean + real + 1j * imaginary, measured


def main(records: int = 600, steps: int = 300, out: Path = Path("mri.png")):
    # Your own data go here: complex k-space (records, views, coils, lines, SIZE), and the indices of its lines
    # (records, views, lines). Images are known only because they are made up; nothing but the picture looks at them.
    images, kspace, measured = made_up(records, jr.key(0))
    data = si.View(kspace, measured)
    kept = records // 6  # of each six records one is held out
    train, held_out = (jax.tree.map(lambda x, i=i: x[i], data) for i in (slice(kept, None), slice(kept)))

    problem = si.StochasticInverseProblem(forward, noise=NOISE)
    fit = problem.fit(train, key=jr.key(1), steps=steps, rounds=2)
    print(fit.check(held_out))

    contexts = jax.tree.map(lambda x: x[:4], held_out)
    draws = fit.problem.sample_many(contexts, key=jr.key(2), num_samples=32).signal[..., None]
    columns = {"draws": draws, "mean": draws.mean(1), "std. dev.": draws.std(1), "the image": images[:4, ..., None]}
    si.plot.images(columns, own_scale="std. dev.", num_draws=4).savefig(out)
    print(f"Draws are in {out}.")


if __name__ == "__main__":
    tyro.cli(main)
