"""Groundwater: how permeable the ground is, from the pressure in a few wells.

Each of a thousand sites has eight wells, in which the pressure of the groundwater was measured once. Nobody has seen
the ground, and nobody has told what grounds there are. Given the wells of a held-out site, the permeability is drawn,
and compared with importance sampling and Markov chains, which are told the law of the grounds.

    python examples/darcy.py      # prints a table, writes darcy.png

The sites are synthetic, so that their law is known: NumPy makes them, and training does not get it. `--help` lists
sizes and files.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import stochinv as si
from instrument_scores import energy_score, print_figures, repeat, score, with_errors_of_others
from mixture_reference import best_gaussian, gauss_newton, mixture, posterior, standard_normal

CELLS, MODES = 12, 6
NOISE = 0.003  # of pressures, which are 0.06 on average
SPREAD = 0.4  # of the modes of a site about its kind of ground


def middles():
    """Rows and columns of the middles of cells, in [0, 1]."""
    return np.meshgrid(*2 * [(np.arange(CELLS) + 0.5) / CELLS], indexing="ij")


def karhunen_loeve(length=0.3):
    """The first modes of a Gaussian field whose correlation falls exponentially, times their standard deviations."""
    places = np.stack(middles(), -1).reshape(-1, 2)
    distances = np.linalg.norm(places[:, None] - places, axis=-1)
    variances, modes = np.linalg.eigh(np.exp(-distances / length))
    scaled = modes[:, ::-1] * np.sqrt(np.maximum(variances[::-1], 0))
    return np.float32(scaled[:, :MODES].T.reshape(MODES, CELLS, CELLS))


BASIS = karhunen_loeve()


def kinds_of_ground():
    """The modes of three grounds, `(3, MODES)`: gravel along a buried river that runs down or across, and silt."""
    down, across = middles()
    river = lambda x: 2 * np.exp(-0.5 * ((x - 0.5) / 0.12) ** 2)
    fields = np.stack([river(across), river(down), np.full_like(down, -1.0)])
    return np.float32(np.linalg.lstsq(BASIS.reshape(MODES, -1).T, fields.reshape(3, -1).T, rcond=None)[0].T)


KINDS = kinds_of_ground()
FLOW = si.forward.Darcy((CELLS, CELLS))


def field(modes):
    """The logarithm of the permeability of each cell."""
    return jnp.tensordot(modes, BASIS, 1)


def pressures(modes, wells):
    """The pressures in wells at places `(wells, 2)`."""
    return FLOW(field(modes), wells)


NAMES = {
    "stochinv": "",
    "the posterior, told the law of the sites": "_reference",
    "the posterior under the best Gaussian": "_gaussian",
    "the posterior under the start's standard normal": "_start",
    "Laplace's approximation, told the best Gaussian": "_laplace",
    "Gauss-Newton, with errors of others": "_gauss_newton",
}


@dataclass
class Config:
    """Groundwater: trains on the pressures in wells, draws the permeability of held-out sites, compares with NUTS."""

    records: int = 1000
    """Sites whose wells train."""
    wells: int = 8
    """Wells of each site."""
    steps: int = 3000
    """Training steps."""
    rounds: int = 8
    """Rounds of expectation maximisation."""
    sites: int = 60
    """Held-out sites in the table."""
    samples: int = 64
    """Samples per held-out site."""
    proposals: int = 4000
    """Proposals of importance sampling, for each held-out site."""
    chains: int = 2
    """Held-out sites that are compared with NUTS."""
    nuts: int = 500
    """Draws of each of its four chains, after as many to adapt."""
    seed: int = 0
    """Seed of everything random."""
    out: Path = Path("darcy.png")
    """Where the picture goes."""
    json: Path | None = None
    """Where the figures go, for scripts."""


def main(argv=None):
    config = tyro.cli(Config, args=argv)
    keys = [jr.key(config.seed + i) for i in range(5)]
    rng = np.random.default_rng(config.seed)
    _, data = measure(rng, config.records, config.wells)
    truth, contexts = measure(rng, config.sites, config.wells)

    # Pressures in, a trained problem out; then all held-out sites at once.
    signal = (MODES,)
    problem = si.StochasticInverseProblem(pressures, noise=NOISE, signal=signal)
    fit = problem.fit(data, key=keys[0], steps=config.steps, rounds=config.rounds)
    start = time.perf_counter()
    draws = fit.problem.sample_many(contexts, key=keys[1], num_samples=config.samples).signal
    jax.block_until_ready(draws)
    sample_seconds = time.perf_counter() - start

    # How good they are, beside simpler answers, and answers that are told the law of the sites.
    told = {"": law(), "_gaussian": best_gaussian(law()), "_start": standard_normal(MODES)}
    options = {"num_proposals": config.proposals, "num_draws": config.samples}
    starts = {"": jnp.asarray(KINDS)[:, None], "_gaussian": KINDS[None], "_start": KINDS[None]}
    of = lambda name, key: posterior(told[name], pressures, NOISE, contexts, starts[name], key=key, **options)
    right = {name: of(name, jr.fold_in(keys[2], i)) for i, name in enumerate(told)}
    reference, ess = right[""]
    points, laplace = gaussian_inversion(told["_gaussian"], contexts, config.samples, keys[3])
    ratio = jnp.std(draws, 1) / jnp.std(reference, 1)
    figures = {
        **score(draws, truth, repeat(pressures, draws, contexts), contexts.observation, NOISE),
        "energy_score_reference": energy_score(reference, truth),
        "energy_score_gaussian": energy_score(right["_gaussian"][0], truth),
        "energy_score_start": energy_score(right["_start"][0], truth),
        "energy_score_laplace": energy_score(laplace, truth),
        "energy_score_gauss_newton": energy_score(with_errors_of_others(points, truth), truth),
        "least_ess_of_reference": float(jnp.min(ess)),
        "std_over_reference": float(jnp.median(ratio)),
        "std_within_20_percent": float(jnp.mean(jnp.abs(ratio - 1) < 0.2)),
        **compare_with_nuts(fit.problem, contexts, config, keys[4]),
        "train_seconds": fit.history.seconds,
        "sample_seconds": sample_seconds,
    }
    print_figures(f"energy score of the modes of {config.sites} sites", figures, NAMES)
    draw(config, contexts, draws, reference, truth)
    if config.json is not None:
        config.json.write_text(json.dumps(figures, indent=2))
    return figures


def measure(rng, number, wells):
    """Sites, and the pressures in their wells: signals `(number, MODES)`, and a `View` with one view each."""
    modes = np.float32(KINDS[rng.integers(len(KINDS), size=number)] + SPREAD * rng.normal(size=(number, MODES)))
    places = np.float32(rng.uniform(0.05, 0.95, (number, 1, wells, 2)))
    exact = jax.jit(jax.vmap(jax.vmap(pressures, (None, 0))))(modes, places)
    noise = NOISE * np.float32(rng.normal(size=exact.shape))
    return jnp.asarray(modes), si.View(exact + noise, jnp.asarray(places))


def law():
    """The law that `measure` draws from, as those are told it who are compared with."""
    same = jnp.broadcast_to(SPREAD * jnp.eye(MODES), (len(KINDS), MODES, MODES))
    return mixture(jnp.ones(len(KINDS)) / len(KINDS), jnp.asarray(KINDS), same)


def gaussian_inversion(gaussian, contexts, number, key):
    """What is usually done: the most likely modes under a Gaussian, and draws of Laplace's approximation."""
    mean, root = gaussian.component_distribution.loc[0], gaussian.component_distribution.scale_tril[0]

    @jax.jit
    @jax.vmap
    def one(context, key):
        found, spread = gauss_newton(pressures, NOISE, mean, root, mean, context.observation[0], context.params[0])
        return found, found + jr.normal(key, (number, MODES)) @ spread.T

    return one(contexts, jr.split(key, len(contexts.observation)))


def compare_with_nuts(problem, contexts, config, key):
    """How far means are off, in standard deviations, and standard deviations, as a share, at worst."""
    means, ratios = [], []
    for index in range(config.chains):
        context = jax.tree.map(lambda x, i=index: x[i], contexts)
        nuts_key, key = jr.split(jr.fold_in(key, index))
        options = {"num_samples": config.nuts, "num_warmup": config.nuts}
        nuts = si.diagnostics.reference_posterior(law(), pressures, NOISE, context, key=nuts_key, **options).samples
        draws = problem.posterior(context).sample(key, config.nuts)
        means.append(jnp.abs(jnp.mean(draws, 0) - jnp.mean(nuts, 0)) / jnp.std(nuts, 0))
        ratios.append(jnp.std(draws, 0) / jnp.std(nuts, 0))
    return {
        "largest_mean_error_to_nuts": float(jnp.max(jnp.stack(means))),
        "least_std_over_nuts": float(jnp.min(jnp.stack(ratios))),
        "largest_std_over_nuts": float(jnp.max(jnp.stack(ratios))),
    }


def draw(config, contexts, draws, reference, truth):
    """Writes the picture: a row for each site, log-permeabilities on one grey scale."""
    pictures = lambda modes: field(modes)[..., None]
    columns = {
        "pressures": jax.vmap(place)(contexts.observation[:, 0], contexts.params[:, 0]),
        "samples": pictures(draws[:, :5]),
        "mean": pictures(jnp.mean(draws, 1)),
        "mean of\nreference": pictures(jnp.mean(reference, 1)),
        "std. dev.": jnp.std(pictures(draws), 1),
        "std. dev. of\nreference": jnp.std(pictures(reference), 1),
        "the ground,\nnever seen": pictures(truth),
    }
    apart = ("pressures", "std. dev.", "std. dev. of\nreference")
    si.plot.images(columns, own_scale=apart).savefig(config.out, dpi=120)


def place(observation, wells):
    """The pressures in the cells of the wells; others are not known."""
    rows, columns = (wells * CELLS).astype(int).T
    return jnp.full((CELLS, CELLS, 1), jnp.nan).at[rows, columns, 0].set(observation)


if __name__ == "__main__":
    main()
