"""Pictures, of each of which only some pixels are known.

`python inpainting.py` learns from pictures with holes alone in minutes, tells by a table whether its posteriors
can be trusted (`fit.check`), and writes inpainting.png: for four held-out pictures, draws given the pixels that are
known.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

import stochinv as si

SIZE, KNOWN, NOISE = 16, 0.4, 0.05

# A picture is measured by its product with a mask: 1 where a pixel is known, 0 where it is not.
signal = (SIZE, SIZE, 1)
forward = si.forward.Mask()


def masks(shape, key):
    return jr.bernoulli(key, KNOWN, (*shape, SIZE, SIZE, 1)).astype(jnp.float32)


params = masks((32,), jr.key(3))  # some masks, for `stochinv check` alone


def made_up(number, key):
    """Waves of random directions with a bright disc, and noisy pixels of them."""
    keys = jr.split(key, 5)
    x, y = jnp.meshgrid(*[jnp.linspace(-1, 1, SIZE)] * 2)
    across, down = 3 * jr.normal(keys[0], (2, number, 1, 1))
    waves = jnp.sin(across * x + down * y + jr.uniform(keys[1], (number, 1, 1), maxval=2 * jnp.pi))
    left, top = jr.uniform(keys[2], (2, number, 1, 1), minval=-0.6, maxval=0.6)
    disc = jax.nn.sigmoid(20 * (0.4 - jnp.hypot(x - left, y - top)))
    pictures = (0.5 * waves * (1 - disc) + disc)[..., None]
    known = masks((number, 1), keys[3])
    return pictures, known * (pictures[:, None] + NOISE * jr.normal(keys[4], known.shape)), known


def main(records: int = 1200, steps: int = 400, out: Path = Path("inpainting.png")):
    # Your own data go here: pictures with zeros in their holes, and masks, both (records, 1, SIZE, SIZE, 1). Whole
    # pictures are known only because they are made up; nothing but the last picture looks at them.
    pictures, holed, known = made_up(records, jr.key(0))
    data = si.View(holed, known)
    kept = records // 6  # of each six records one is held out
    train, held_out = (jax.tree.map(lambda x, i=i: x[i], data) for i in (slice(kept, None), slice(kept)))

    problem = si.StochasticInverseProblem(forward, noise=NOISE)
    fit = problem.fit(train, key=jr.key(1), steps=steps, rounds=2)
    print(fit.check(held_out))

    contexts = jax.tree.map(lambda x: x[:4], held_out)
    draws = fit.problem.sample_many(contexts, key=jr.key(2), num_samples=32).signal
    given = jnp.where(known[:4, 0] > 0, holed[:4, 0], jnp.nan)
    columns = {"known": given, "draws": draws, "mean": draws.mean(1), "std. dev.": draws.std(1), "all": pictures[:4]}
    si.plot.images(columns, own_scale="std. dev.", num_draws=4).savefig(out)
    print(f"Draws are in {out}.")


if __name__ == "__main__":
    tyro.cli(main)
