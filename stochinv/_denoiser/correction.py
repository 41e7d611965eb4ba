"""How a network corrects what is known of a noised signal: as a vector, or as an image."""

import abc
from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._custom_types import AnyCallable
from .._frozen import Frozen
from .._view import View, view_mask
from .flatten import flatten


def features(view: View, like: Float[Array, "..."]) -> Float[Array, " features"]:
    """A stack of views as one vector: measurements and parameters, zero where they do not count, and the mask."""
    mask = view_mask(view)
    rows = jax.vmap(lambda o, p: jnp.concatenate([flatten(o, like), flatten(p, like)]))(view.observation, view.params)
    return jnp.concatenate([jnp.ravel(jnp.where(mask[:, None], rows, 0)), mask.astype(like.dtype)])


class AbstractCorrection(eqx.Module):
    """What a network makes of all that is known of a noised signal, in the coordinates in which it is noised."""

    @abc.abstractmethod
    def __call__(
        self, parts: Float[Array, "parts n"], view: View, embedding: Float[Array, " size"]
    ) -> Float[Array, " n"]:
        """The correction `r`, 0 from a fresh network.

        **Arguments:**

        - `parts`: five rows: the noised signal, `g` and the logarithms of its standard deviations, and both again
            without the noised signal.
        - `view`: the context.
        - `embedding`: that of the noise level.
        """

    @abc.abstractmethod
    def weigh(self, error: Float[Array, " n"]) -> Float[Array, " n"]:
        """An error of mean square 1 in all directions, those that matter more made larger and the others smaller."""


@final
class VectorCorrection(AbstractCorrection):
    """The correction of a signal as a vector, by all that is known of it.

    **Arguments:**

    - `network`: a callable `(input, embedding) -> output` on vectors.
    """

    network: AnyCallable

    def __call__(
        self, parts: Float[Array, "parts n"], view: View, embedding: Float[Array, " size"]
    ) -> Float[Array, " n"]:
        return self.network(jnp.concatenate([jnp.ravel(parts[:3]), features(view, parts)]), embedding)

    def weigh(self, error: Float[Array, " n"]) -> Float[Array, " n"]:
        return error


@final
class ImageCorrection(AbstractCorrection):
    """The correction of an image, by what is known of its pixels.

    **Arguments:**

    - `network`: a callable `(image, embedding) -> image` on channels-last images, of 5 channels for each of the image,
        or 7 with a `root`.
    - `height`, `width`: the size of the image.
    - `root`: the matrix that takes whitened pixels to pixels, of root mean square 1; `None` where they are not
        whitened. The network then sees both, and errors are weighed by it: most directions of a whitened image are
        details too faint to be seen.
    """

    network: AnyCallable
    height: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    root: Frozen = Frozen(None)

    def __call__(
        self, parts: Float[Array, "parts n"], view: View, embedding: Float[Array, " size"]
    ) -> Float[Array, " n"]:
        if self.root.value is not None:
            parts = jnp.concatenate([parts, parts[jnp.array([1, 3])] @ self.root.value.T])
        pixels = parts.reshape(parts.shape[0], self.height, self.width, -1)
        image = jnp.moveaxis(pixels, 0, -1).reshape(self.height, self.width, -1)
        return jnp.ravel(self.network(image, embedding))

    def weigh(self, error: Float[Array, " n"]) -> Float[Array, " n"]:
        return error if self.root.value is None else self.root.value @ error
