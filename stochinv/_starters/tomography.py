"""Slices of a body, given a few projections of each.

`python tomography.py` learns from projections alone in minutes, tells by a table whether its posteriors can be
trusted (`fit.check`), and writes tomography.png: for four held-out slices, draws given their projections.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

import stochinv as si

SIZE, VIEWS, NOISE = 16, 4, 0.02

# A slice is measured by its line integrals at an angle in degrees, here in units of its width.
signal = (SIZE, SIZE, 1)
params = jnp.linspace(0.0, 180.0, 32, endpoint=False)  # some angles, for `stochinv check` alone
scanner = si.forward.ParallelBeam((SIZE, SIZE))


def forward(image, angle):
    return scanner(image, angle) / SIZE


def made_up(number, key):
    """Ellipses with an organ in each, and noisy projections of them at random angles."""
    keys = jr.split(key, 5)
    x, y = jnp.meshgrid(*[jnp.linspace(-1, 1, SIZE)] * 2)
    soft = lambda r: jax.nn.sigmoid(8 * (1 - r))
    width, height = jr.uniform(keys[0], (2, number, 1, 1), minval=0.5, maxval=0.9)
    left, top = jr.uniform(keys[1], (2, number, 1, 1), minval=-0.3, maxval=0.3)
    organ = jr.uniform(keys[2], (number, 1, 1)) * soft(jnp.hypot(x - left, y - top) / 0.25)
    slices = (soft(jnp.hypot(x / width, y / height)) + organ)[..., None]
    angles = jr.uniform(keys[3], (number, VIEWS), maxval=180.0)
    clean = jax.jit(jax.vmap(jax.vmap(forward, (None, 0))))(slices, angles)
    return slices, clean + NOISE * jr.normal(keys[4], clean.shape), angles


def main(records: int = 600, steps: int = 400, out: Path = Path("tomography.png")):
    # Your own data go here: projections (records, views, bins), and their angles (records, views). Slices are known
    # only because they are made up; nothing but the picture looks at them.
    slices, projections, angles = made_up(records, jr.key(0))
    data = si.View(projections, angles)
    kept = records // 6  # of each six records one is held out
    train, held_out = (jax.tree.map(lambda x, i=i: x[i], data) for i in (slice(kept, None), slice(kept)))

    problem = si.StochasticInverseProblem(forward, noise=NOISE, signal=signal)
    fit = problem.fit(train, key=jr.key(1), steps=steps, rounds=2)
    print(fit.check(held_out))

    contexts = jax.tree.map(lambda x: x[:4], held_out)
    draws = fit.problem.sample_many(contexts, key=jr.key(2), num_samples=32).signal
    columns = {"draws": draws, "mean": draws.mean(1), "std. dev.": draws.std(1), "the slice": slices[:4]}
    si.plot.images(columns, own_scale="std. dev.", num_draws=4).savefig(out)
    print(f"Draws are in {out}.")


if __name__ == "__main__":
    tyro.cli(main)
