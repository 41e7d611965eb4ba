"""Rates of a differential equation, given counts of prey and predators at a few times.

`python dynamics.py` learns from counts alone in minutes, tells by a table whether its posteriors can be trusted
(`fit.check`), and writes dynamics.png: the four rates of one held-out record, drawn given its counts.
"""

from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

import stochinv as si

TIMES, NOISE = 5, 0.1

# A signal may be any numbers of size about one: rates are positive by `exp`.
signal = (4,)


def forward(rates, times):
    """Logarithms of prey and predators, shape (times, 2), at increasing times between 0 and 5."""
    growth, hunting, breeding, death = jnp.exp(0.5 * rates)

    def motion(t, logs, args):
        prey, predators = jnp.exp(logs)
        return jnp.stack([growth - hunting * predators, breeding * prey - death])

    term, start, saveat = diffrax.ODETerm(motion), jnp.array([0.5, -0.5]), diffrax.SaveAt(ts=times)
    solution = diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 5.0, 0.2, start, saveat=saveat, max_steps=32)
    return solution.ys


def moments(shape, key):
    return jnp.sort(jr.uniform(key, (*shape, TIMES), maxval=5.0))


params = moments((32,), jr.key(3))  # some times, for `stochinv check` alone


def made_up(number, key):
    """Rates at random, and noisy logarithms of counts at random times, which differ from record to record."""
    keys = jr.split(key, 3)
    rates = jr.normal(keys[0], (number, 4))
    times = moments((number, 1), keys[1])
    clean = jax.jit(jax.vmap(jax.vmap(forward, (None, 0))))(rates, times)
    return rates, clean + NOISE * jr.normal(keys[2], clean.shape), times


def main(records: int = 1200, steps: int = 400, out: Path = Path("dynamics.png")):
    # Your own data go here: logarithms of counts (records, 1, TIMES, 2), and their times (records, 1, TIMES). Rates are
    # known only because they are made up; nothing but the picture looks at them.
    rates, counts, times = made_up(records, jr.key(0))
    data = si.View(counts, times)
    kept = records // 6  # of each six records one is held out
    train, held_out = (jax.tree.map(lambda x, i=i: x[i], data) for i in (slice(kept, None), slice(kept)))

    problem = si.StochasticInverseProblem(forward, noise=NOISE, signal=signal)
    fit = problem.fit(train, key=jr.key(1), steps=steps, rounds=2)
    print(fit.check(held_out))

    posterior = fit.problem.posterior(jax.tree.map(lambda x: x[0], held_out))
    draws = posterior.sample(jr.key(2), 1000)
    names = ["growth", "hunting", "breeding", "death"]
    si.plot.corner(draws, truth=rates[0], names=names).savefig(out)
    print(f"Rates {draws.mean(0)} ± {draws.std(0)}, made up as {rates[0]}; the picture is in {out}.")


if __name__ == "__main__":
    tyro.cli(main)
