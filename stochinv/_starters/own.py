"""Two numbers behind a decaying curve: a forward model of your own, to be replaced.

`python own.py` learns from curves alone in minutes, tells by a table whether its posteriors can be trusted
(`fit.check`), and writes own.png: the two numbers of one held-out record, drawn given its curve.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

import stochinv as si

TIMES, NOISE = 6, 0.05

# What you want to know, as numbers of size about one.
signal = (2,)


def forward(numbers, times):
    """What one noise-free measurement is, given the signal and what is known of the measurement: here its times."""
    size, rate = jnp.exp(0.5 * numbers)  # positive, whatever the numbers
    return size * jnp.exp(-rate * times)


params = jr.uniform(jr.key(3), (32, TIMES), maxval=3.0)  # of some measurements, for `stochinv check` alone


def made_up(number, key):
    """Numbers that go together, and noisy curves at random times."""
    keys = jr.split(key, 3)
    numbers = jr.normal(keys[0], (number, 2)) @ jnp.array([[1.0, 0.8], [0.0, 0.6]])
    times = jr.uniform(keys[1], (number, 1, TIMES), maxval=3.0)
    clean = jax.vmap(jax.vmap(forward, (None, 0)))(numbers, times)
    return numbers, clean + NOISE * jr.normal(keys[2], clean.shape), times


def main(records: int = 3000, steps: int = 1000, out: Path = Path("own.png")):
    # Your own data go here: measurements, and what is known of each, both with axes of records and views in front. The
    # numbers behind them are known only because they are made up; nothing but the picture looks at them.
    numbers, curves, times = made_up(records, jr.key(0))
    data = si.View(curves, times)
    kept = records // 6  # of each six records one is held out
    train, held_out = (jax.tree.map(lambda x, i=i: x[i], data) for i in (slice(kept, None), slice(kept)))

    problem = si.StochasticInverseProblem(forward, noise=NOISE, signal=signal)
    fit = problem.fit(train, key=jr.key(1), steps=steps, rounds=3)
    print(fit.check(held_out))

    posterior = fit.problem.posterior(jax.tree.map(lambda x: x[0], held_out))
    draws = posterior.sample(jr.key(2), 1000)
    si.plot.corner(draws, truth=numbers[0], names=["log size", "log rate"]).savefig(out)
    print(f"Numbers {draws.mean(0)} ± {draws.std(0)}, made up as {numbers[0]}; the picture is in {out}.")


if __name__ == "__main__":
    tyro.cli(main)
