"""Checks that every network makes on its sizes and on its inputs.

All of them are static: shapes are known while tracing, so that a check costs nothing in compiled code.
"""

from typing import Any

from jaxtyping import Array

# What the spatial axes of images are called in messages, by their number.
SPACE = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def check_positive(**sizes: int) -> None:
    """Refuses a size that is not a positive integer.

    **Arguments:**

    - `**sizes`: named sizes, each a Python `int` of at least 1.

    **Raises:** `ValueError` naming the first size that is not.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"`{name}` is {size!r}, but it has to be a positive integer: pass `{name}=1` or more.")


def check_divides(divisor_name: str, divisor: int, total_name: str, total: int) -> None:
    """Refuses a number of parts that does not divide what it parts.

    **Arguments:**

    - `divisor_name`, `total_name`: the arguments' names, for the message.
    - `divisor`: number of parts, at least 1.
    - `total`: what is parted, at least 1.

    **Raises:** `ValueError` with the divisors that would do.
    """
    if total % divisor != 0:
        fitting = [d for d in range(1, total + 1) if total % d == 0]
        raise ValueError(
            f"`{divisor_name}`={divisor} does not divide `{total_name}`={total}: "
            f"choose `{divisor_name}` from {fitting}, or change `{total_name}`."
        )


def check_shape(owner: Any, **arrays: tuple[Array, tuple[int | str, ...]]) -> None:
    """Refuses an input whose shape is not the one that the network was built for.

    **Arguments:**

    - `owner`: the network, for the message.
    - `**arrays`: by name, an array and its expected shape, in which a string stands for an axis of any size.

    **Raises:** `ValueError` naming the first array that does not fit.
    """
    for name, (array, expected) in arrays.items():
        fits = array.ndim == len(expected) and all(
            isinstance(want, str) or want == have for want, have in zip(expected, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join(str(want) for want in expected)
            wanted = f"({wanted},)" if len(expected) == 1 else f"({wanted})"
            raise ValueError(
                f"`{name}` of `{type(owner).__name__}` has shape {array.shape}, but "
                f"{wanted} was expected: pass one example with its channels in the "
                "last axis, and use `jax.vmap` for a batch."
            )
