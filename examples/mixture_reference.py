"""Right answers where signals are drawn from a mixture of Gaussians, by importance sampling."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpyro.distributions as dist
import optimistix as optx

WIDER = 1.25  # than Laplace's approximations are proposals, whose tails must not be lighter than the posterior's


def mixture(weights, means, roots):
    """A mixture of Gaussians, with roots of the covariances `(kinds, n, n)`."""
    return dist.MixtureSameFamily(dist.Categorical(weights), dist.MultivariateNormal(means, scale_tril=roots))


def best_gaussian(law):
    """The Gaussian with the moments of a mixture, as a mixture of one."""
    kinds, weights = law.component_distribution, law.mixing_distribution.probs
    centred = kinds.loc - law.mean
    covariance = jnp.einsum("k,kij->ij", weights, kinds.covariance_matrix + centred[:, :, None] * centred[:, None])
    return mixture(jnp.ones(1), law.mean[None], jnp.linalg.cholesky(covariance)[None])


def standard_normal(size):
    """From where training of signals of so many entries starts if the forward model is not affine, as a mixture."""
    return mixture(jnp.ones(1), jnp.zeros((1, size)), jnp.eye(size)[None])


def gauss_newton(forward, noise, mean, root, start, observed, params):
    """The most likely signal of a Gaussian given one measurement, by Levenberg-Marquardt from a start, and a root of
    the covariance of Laplace's approximation there."""

    def residual(white, _):
        return jnp.concatenate([(forward(mean + root @ white, params) - observed) / noise, white])

    solver = optx.LevenbergMarquardt(rtol=1e-4, atol=1e-4)
    start = jax.scipy.linalg.solve_triangular(root, start - mean, lower=True)
    found = optx.least_squares(residual, solver, start, max_steps=100, throw=False).value
    _, upper = jnp.linalg.qr(jax.jacfwd(residual)(found, None))
    spread = jax.scipy.linalg.solve_triangular(upper, jnp.eye(mean.size))
    return mean + root @ found, jnp.linalg.cholesky(root @ spread @ spread.T @ root.T)


def log_density(law, signals):
    """That of a mixture at signals `(number, n)`, without a triangular solve for each: jaxlib 0.10 may wait for ever
    where two threads do many of these at once."""
    kinds, size = law.component_distribution, signals.shape[1]
    inverse = jax.vmap(lambda x: jax.scipy.linalg.solve_triangular(x, jnp.eye(size), lower=True))(kinds.scale_tril)
    white = jnp.einsum("kij,nkj->nki", inverse, signals[:, None] - kinds.loc)
    scales = jnp.sum(jnp.log(jnp.diagonal(kinds.scale_tril, axis1=1, axis2=2)), 1)
    logs = -0.5 * jnp.sum(white**2, -1) - scales - 0.5 * size * jnp.log(2 * jnp.pi)
    return jax.nn.logsumexp(logs + jax.nn.log_softmax(law.mixing_distribution.logits), axis=1)


def posterior(law, forward, noise, contexts, starts, *, key, num_proposals, num_draws):
    """Draws of the posterior given each of many contexts of one view, and their effective sample sizes.

    Proposals are drawn from Laplace's approximations about the modes that are found under each of the law's Gaussians
    from its `starts` `(kinds, starts, n)`, and chosen by their weights.
    """
    kinds, number = law.component_distribution, starts.shape[0] * starts.shape[1]
    means, spreads = (jnp.repeat(x, starts.shape[1], axis=0) for x in (kinds.loc, kinds.scale_tril))
    starts = starts.reshape(means.shape)

    def one(inputs):
        observed, params, key = inputs
        laplace = lambda x: gauss_newton(forward, noise, *x, observed, params)
        points, roots = jax.lax.map(laplace, (means, spreads, starts))
        proposal = mixture(jnp.ones(number) / number, points, WIDER * roots)
        propose_key, choice_key = jr.split(key)
        signals = proposal.sample(propose_key, (num_proposals,))
        misfit = jax.lax.map(lambda x: jnp.sum((forward(x, params) - observed) ** 2), signals, batch_size=1000)
        logs = log_density(law, signals) - 0.5 * misfit / noise**2 - log_density(proposal, signals)
        weights = jax.nn.softmax(jnp.where(jnp.isnan(logs), -jnp.inf, logs))
        return jr.choice(choice_key, signals, (num_draws,), p=weights), 1 / jnp.sum(weights**2)

    params = jax.tree.map(lambda x: x[:, 0], contexts.params)
    inputs = (contexts.observation[:, 0], params, jr.split(key, len(contexts.observation)))
    return jax.jit(lambda *x: jax.lax.map(one, x))(*inputs)
