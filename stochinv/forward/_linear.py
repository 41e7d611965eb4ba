from typing import final

import jax
import jax.numpy as jnp
import lineax as lx

from .._custom_types import Observation, Params, Signal, Structure
from .._forward.base import AbstractLinearForwardModel


@final
class Linear(AbstractLinearForwardModel):
    """Any matrix: a lineax linear operator, whose input structure is that of the signal.

    **Arguments:**

    - `operator`: a `lineax.AbstractLinearOperator` or a matrix `(observation, signal)`; `None` if the parameters of
        each measurement are its matrix or operator.
    """

    operator: lx.AbstractLinearOperator | None

    def __init__(self, operator: lx.AbstractLinearOperator | jax.Array | None = None) -> None:
        self.operator = None if operator is None else _as_operator(operator)

    def __call__(self, signal: Signal, params: Params) -> Observation:
        return self._operator(params).mv(signal)

    def _operator(self, params):
        if self.operator is not None:
            return self.operator
        if params is None:
            raise ValueError(
                "Linear: without `operator`, `params` must be a matrix or a lineax operator, got None; give either."
            )
        return _as_operator(params)

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """The input structure of the operator."""
        signal = lambda p: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self._operator(p).in_structure())
        return jax.eval_shape(signal, params)


def _as_operator(matrix):
    if isinstance(matrix, lx.AbstractLinearOperator):
        return matrix
    if jnp.ndim(matrix) != 2:
        raise ValueError(
            f"Linear: a matrix must have shape (observation, signal), got {jnp.shape(matrix)}; reshape it."
        )
    return lx.MatrixLinearOperator(jnp.asarray(matrix))
