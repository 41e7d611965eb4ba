r"""A function whose mapped copies are written out one after the other on CPU.

`jax.vmap` of a perceptron over tens of thousands of points makes one program for all copies. On CPU its weight
gradients take four times as long as those of the copies one by one (the layout that suits the products does not suit
what is computed between them), and its arrays do not fit into the cache. On other devices nothing is changed.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

_LARGEST = 32  # copies; more are mapped as usual, since they would take long to compile


def unrolled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, for reverse-mode differentiation and `jax.vmap`; its gradient computes it again.

    **Arguments:**

    - `function`: of any PyTrees of arrays, without side effects.
    """

    @jax.custom_vjp
    def call(*arguments):
        return _unroll(function)(*arguments)

    def forward(*arguments):
        return _unroll(function)(*arguments), arguments

    def backward(arguments, cotangent):
        return _unroll(lambda arguments, cotangent: jax.vjp(function, *arguments)[1](cotangent))(arguments, cotangent)

    call.defvjp(forward, backward)
    return call


def _unroll(function):
    if jax.default_backend() != "cpu":
        return function
    mapped = custom_vmap(function)

    @mapped.def_vmap
    def rule(axis_size, in_batched, *arguments):
        axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched)
        if axis_size > _LARGEST:
            outputs = jax.vmap(function, tuple(axes))(*arguments)
        else:
            pick = lambda i: jax.tree.map(lambda x, batched: x[i] if batched else x, arguments, tuple(in_batched))
            outputs = [mapped(*pick(i)) for i in range(axis_size)]
            outputs = jax.tree.map(lambda *copies: jnp.stack(copies), *outputs)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return mapped
