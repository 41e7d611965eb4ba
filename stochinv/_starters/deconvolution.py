"""Sharp pictures, given blurred ones whose blur is known.

`python deconvolution.py` learns from blurred pictures alone in minutes, tells by a table whether its posteriors
can be trusted (`fit.check`), and writes deconvolution.png: for four held-out pictures, draws given blurred ones.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

import stochinv as si

SIZE, VIEWS, NOISE = 16, 2, 0.02

# A picture is measured through a telescope, of which the seeing is known: the full width of a star, in pixels.
signal = (SIZE, SIZE, 1)
params = jnp.linspace(1.5, 3.5, 32)  # some seeings, for `stochinv check` alone
blur = si.forward.Blur(boundary="constant")


def forward(image, seeing):
    return blur(image, si.forward.moffat_psf(seeing, 3.0, 9))


def made_up(number, key):
    """Elongated galaxies with a star beside each, and noisy exposures of them."""
    keys = jr.split(key, 6)
    x, y = jnp.meshgrid(*[jnp.linspace(-1, 1, SIZE)] * 2)
    angle = jr.uniform(keys[0], (number, 1, 1), maxval=jnp.pi)
    along, across = x * jnp.cos(angle) + y * jnp.sin(angle), y * jnp.cos(angle) - x * jnp.sin(angle)
    length = jr.uniform(keys[1], (number, 1, 1), minval=0.15, maxval=0.5)
    left, top = jr.uniform(keys[2], (2, number, 1, 1), minval=-0.8, maxval=0.8)
    star = jr.uniform(keys[3], (number, 1, 1)) * jnp.exp(-((x - left) ** 2 + (y - top) ** 2) / 0.01)
    pictures = (jnp.exp(-jnp.hypot(along / length, across / 0.15)) + star)[..., None]
    seeings = jr.uniform(keys[4], (number, VIEWS), minval=1.5, maxval=3.5)
    clean = jax.jit(jax.vmap(jax.vmap(forward, (None, 0))))(pictures, seeings)
    return pictures, clean + NOISE * jr.normal(keys[5], clean.shape), seeings


def main(records: int = 600, steps: int = 300, out: Path = Path("deconvolution.png")):
    # Your own data go here: exposures (records, views, SIZE, SIZE, 1), and the seeing of each (records, views). Sharp
    # pictures are known only because they are made up; nothing but the last picture looks at them.
    pictures, exposures, seeings = made_up(records, jr.key(0))
    data = si.View(exposures, seeings)
    kept = records // 6  # of each six records one is held out
    train, held_out = (jax.tree.map(lambda x, i=i: x[i], data) for i in (slice(kept, None), slice(kept)))

    problem = si.StochasticInverseProblem(forward, noise=NOISE, signal=signal)
    fit = problem.fit(train, key=jr.key(1), steps=steps, rounds=2)
    print(fit.check(held_out))

    contexts = jax.tree.map(lambda x: x[:4], held_out)
    draws = fit.problem.sample_many(contexts, key=jr.key(2), num_samples=32).signal
    columns = {"given": exposures[:4], "draws": draws, "mean": draws.mean(1), "std. dev.": draws.std(1)}
    si.plot.images(columns | {"sharp": pictures[:4]}, own_scale="std. dev.", num_draws=4).savefig(out)
    print(f"Draws are in {out}.")


if __name__ == "__main__":
    tyro.cli(main)
