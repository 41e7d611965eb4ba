"""How a network corrects what is known of a noised signal: as a vector, or as an image."""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import AnyCallable, FloatScalar, PyTree
from .._frozen import Frozen
from .._view import View, view_mask
from .flatten import flatten

# How many entries a signal may have for the network to see their covariance, besides their standard deviations.
LARGEST_COVARIANCE = 16


class AbstractCorrection(eqx.Module):
    """What a network makes of all that is known of a noised signal, in the coordinates in which it is noised."""

    @property
    @abc.abstractmethod
    def weights(self) -> Float[Array, "n n"] | None:
        """The matrix `W` by which errors count in training, `None` for the identity."""

    @abc.abstractmethod
    def __call__(
        self, parts: Float[Array, "parts n"], context: PyTree, embedding: Float[Array, " size"]
    ) -> Float[Array, " n"]:
        """The correction `r`, 0 from a fresh network.

        **Arguments:**

        - `parts`: five rows: the noised signal, `g` and the logarithms of its standard deviations, and both again
            without the noised signal.
        - `context`: what [`stochinv.AbstractEncodingDenoiser.encode`][] makes of the context.
        - `embedding`: that of the noise level.
        """

    @abc.abstractmethod
    def weigh(self, error: Float[Array, " n"], context: PyTree, precision: FloatScalar) -> Float[Array, " n"]:
        """An error of mean square 1 in all directions, as it counts in training: of mean square 1 over all.

        **Arguments:**

        - `error`: the error, times `P^(1/2)`.
        - `context`: what [`stochinv.AbstractEncodingDenoiser.encode`][] makes of the context.
        - `precision`: the scalar part of `P`.
        """


@final
class VectorCorrection(AbstractCorrection):
    """The correction of a signal as a vector, by all that is known of it.

    The context enters by what it says of a Gaussian signal: the mean and the standard deviations, for at most 16
    entries all covariances. For an affine forward model and Gaussian noise that is all that it says of any signal of so
    few entries. In all other cases a network sees each view as well; values are summed over the views that count, so
    that their order does not matter (Zaheer et al. 2017, "Deep sets").

    **Arguments:**

    - `network`: a callable `(input, embedding) -> output` on vectors, with `num_inputs` of these.
    - `view_network`: a callable from the measurement and the parameters of a view, as one vector, to a vector; `None`
        where the other parts of the input say all.
    """

    network: AnyCallable
    view_network: AnyCallable | None = None

    @property
    def weights(self) -> None:
        return None

    @staticmethod
    def num_inputs(size: int) -> int:
        """The entries of the input of a network for signals of so many entries, but for those of the views: the size of
        the view network's value, and 1."""
        return 5 * size + (size * (size + 1) // 2 if size <= LARGEST_COVARIANCE else 0)

    def __call__(
        self, parts: Float[Array, "parts n"], context: PyTree, embedding: Float[Array, " size"]
    ) -> Float[Array, " n"]:
        size, given = parts.shape[1], [jnp.ravel(parts)]
        if size <= LARGEST_COVARIANCE:
            covariance = jax.vmap(lambda x: context.apply(lambda values: 1 / (1 + values), x))(jnp.eye(size))
            given.append(covariance[jnp.triu_indices(size)].astype(parts.dtype))
        if self.view_network is not None:
            given.append(sum_of_views(self.view_network, context.view, parts))
        return self.network(jnp.concatenate(given), embedding)

    def weigh(self, error: Float[Array, " n"], context: PyTree, precision: FloatScalar) -> Float[Array, " n"]:
        return error


def sum_of_views(network: AnyCallable, views: View, like: Float[Array, "..."]) -> Float[Array, " size"]:
    """The values of a network of one view, summed over those of a stack that count and divided by the root of their
    number, and the share of views that count."""
    mask = view_mask(views).astype(like.dtype)
    one = lambda o, p: network(jnp.concatenate([flatten(o, like), flatten(p, like)]))
    values = jax.vmap(one)(views.observation, views.params)
    total = jnp.sum(jnp.where(mask[:, None] > 0, values, 0), 0) / jnp.sqrt(jnp.maximum(jnp.sum(mask), 1))
    return jnp.concatenate([total, jnp.mean(mask)[None]])


@final
class ImageCorrection(AbstractCorrection):
    """The correction of an image, a sequence or a volume, by what is known of its pixels.

    **Arguments:**

    - `network`: a callable `(image, embedding) -> image` on channels-last images, of 5 channels for each of the image,
        or 7 with a `root`.
    - `grid`: the shape of the image with its channels, such as `(height, width, channels)` or `(length, channels)`.
    - `root`: the matrix that takes whitened pixels to pixels, of root mean square 1; `None` where they are not
        whitened. The network then sees both, and errors count as they are seen in pixels: most directions of a whitened
        image are details too faint to be seen, and what was measured well leaves nothing to learn.
    """

    network: AnyCallable
    grid: tuple[int, ...] = eqx.field(static=True)
    root: Frozen = Frozen(None)

    @property
    def weights(self) -> Float[Array, "n n"] | None:
        return self.root.value

    def __call__(
        self, parts: Float[Array, "parts n"], context: PyTree, embedding: Float[Array, " size"]
    ) -> Float[Array, " n"]:
        if self.root.value is not None:
            parts = jnp.concatenate([parts, parts[jnp.array([1, 3])] @ self.root.value.T])
        pixels = parts.reshape(parts.shape[0], *self.grid)
        image = jnp.moveaxis(pixels, 0, -1).reshape(*self.grid[:-1], -1)
        return jnp.ravel(self.network(image, embedding))

    def weigh(self, error: Float[Array, " n"], context: PyTree, precision: FloatScalar) -> Float[Array, " n"]:
        if self.root.value is None:
            return error
        pixels = self.root.value @ context.apply(lambda values: 1 / jnp.sqrt(precision + values), error)
        return pixels / jnp.sqrt(context.mean_square(lambda values: 1 / (precision + values)))
