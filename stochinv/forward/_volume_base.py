r"""Fields: signals that emit and absorb light at every point of a box."""

import abc

import equinox as eqx
from jaxtyping import Array, Float


class AbstractField(eqx.Module):
    """Density and colour at every point of a box.

    A field is a whole scene: rendering it needs nothing else. Its arrays are the signal, and any real numbers in them
    make a valid field.
    """

    lower: eqx.AbstractVar[tuple[float, float, float]]
    upper: eqx.AbstractVar[tuple[float, float, float]]

    @abc.abstractmethod
    def __call__(
        self, points: Float[Array, "*shape 3"], directions: Float[Array, "*shape 3"]
    ) -> tuple[Float[Array, "*shape"], Float[Array, "*shape channels"]]:
        """What is at points of the field's box.

        **Arguments:**

        - `points`: shape `(*shape, 3)`, in the units of the scene.
        - `directions`: unit vectors along which light is followed from the camera, shape `(*shape, 3)`.

        **Returns:**

        The density, at least 0, in units of one over length, shape `(*shape)`; and the colour, between 0 and 1, shape
        `(*shape, channels)`.
        """


def check_box(name: str, lower: tuple[float, ...], upper: tuple[float, ...]):
    """Raises a `ValueError` if a box is empty."""
    if len(lower) != 3 or len(upper) != 3 or not all(a < b for a, b in zip(lower, upper, strict=True)):
        raise ValueError(f"{name}: `lower` must lie below `upper` along all three axes, got {lower} and {upper}.")
