r"""Which steps of training in signal space belong to which round, and how fast they learn.

Short rounds come first: with each, signals are drawn by a network that knows more. The last round is long: its signals
are right, and the network learns them as well as it can. In each round the learning rate rises and falls once: signals
are drawn anew, and training may end, when it is low.
"""

import dataclasses
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .._custom_types import FloatScalar, Structure
from .._grid import is_costly
from .ema import AbstractEMA

# Steps in a short round: of signals that a perceptron denoises, and of images; and how many of these the last one is
# as long as.
LENGTH, LENGTH_FOR_IMAGES = 500, 250
LAST, LAST_FOR_IMAGES = 8, 4
# Records per step.
BATCH_SIZE, BATCH_SIZE_OF_VECTORS = 64, 256
# The largest learning rates.
RATE, RATE_FOR_IMAGES = 1e-3, 3e-3
# Short rounds where nothing tells when they gain no more, and the most where held-out measurements do.
ROUNDS, MOST_ROUNDS = 7, 24


@final
@dataclasses.dataclass(frozen=True)
class Plan:
    """Which steps belong to which round.

    **Arguments:**

    - `length`: the number of steps in a short round; measurements are simulated anew after so many in the last one too.
    - `last`: the number of steps before the last round.
    - `steps`: the number of all steps.
    - `settles`: whether held-out measurements tell when short rounds gain no more.
    """

    length: int
    last: int
    steps: int
    settles: bool = False

    def begins(self, position: int) -> bool:
        """Whether measurements are simulated anew before step `position = 0, 1, …`."""
        return position % self.length == 0

    def draws(self, position: int) -> bool:
        """Whether signals are drawn anew before it."""
        return 0 < position <= self.last and self.begins(position)

    def next(self, position: int, left: float, whole: float, of_steps: float) -> int | None:
        """The step with which training goes on in the time that is left: `position` with another short round, or
        one with the last round, of as many steps as there is time for; `None` if there is none.

        **Arguments:**

        - `position`: the number of steps before the next round.
        - `left`: the seconds that are left.
        - `whole`, `of_steps`: how long the round before took, and its steps alone.
        """
        number, drawing = -(-(self.steps - self.last) // self.length), whole - of_steps
        of_last = drawing + number * of_steps if number else 0.0
        if position < self.last and left >= whole + of_last:
            return position
        fit = min(number, int((left - drawing) // of_steps))
        # The rate is that of a last round's end.
        return self.last + (number - fit) * self.length if fit > 0 else None

    def optimizer(self, rate: float) -> optax.GradientTransformation:
        """Adam, whose learning rate rises to `rate` and falls once in each round."""
        cycle = lambda n: optax.warmup_cosine_decay_schedule(0.0, rate, max(n // 10, 1), max(n, 2), 0.01 * rate)
        short, long = cycle(self.length), cycle(self.steps - self.last)

        def scheduled(n: Any) -> Any:
            return jnp.where(n < self.last, short(jnp.mod(n, self.length)), long(jnp.maximum(n - self.last, 0)))

        return optax.adam(scheduled)


def plan_of(steps: int | None, rounds: int | None, signal: Structure, *, settles: bool = False) -> Plan:
    """The plan where signals are unknown: half of the steps that are given are those of the last round.

    **Arguments:**

    - `steps`, `rounds`: as a user gave them, or `None`.
    - `signal`: the structure of a signal.
    - `settles`: whether held-out measurements tell when short rounds gain no more.
    """
    usual, last = (LENGTH_FOR_IMAGES, LAST_FOR_IMAGES) if is_costly(signal) else (LENGTH, LAST)
    if steps is None:
        short = rounds - 1 if rounds is not None else MOST_ROUNDS if settles else ROUNDS
        return Plan(usual, usual * short, usual * (short + last), settles)
    half = steps - steps // 2
    if rounds is None:
        length = min(usual, -(-half // ROUNDS))
        return Plan(length, half // length * length, steps)
    if rounds == 1:
        return Plan(steps, 0, steps)
    length = -(-half // (rounds - 1))
    return Plan(length, min(length * (rounds - 1), steps), steps)


def batch_size_of(given: int | None, signal: Structure, records: int | None) -> int:
    """Records per step: a network of vectors takes twice as long for four times as many of them.

    **Arguments:**

    - `given`: as a user gave it, or `None`.
    - `signal`: the structure of a signal.
    - `records`: how many there are, or `None` where they are simulated.
    """
    if given is not None:
        return given
    usual = BATCH_SIZE if is_costly(signal) else BATCH_SIZE_OF_VECTORS
    return usual if records is None else min(usual, max(records // 8, min(records, 16)))


@final
class EMAOfRounds(AbstractEMA):
    """An average that starts anew in each round.

    **Arguments:**

    - `ema`: the average.
    - `plan`: which steps belong to which round.
    """

    ema: AbstractEMA
    plan: Plan = eqx.field(static=True)

    def decay(self, step: Int[Array, ""]) -> FloatScalar:
        done = step - 1
        within = jnp.where(done < self.plan.last, jnp.mod(done, self.plan.length), done - self.plan.last)
        return self.ema.decay(within + 1)


def jump(state: Any, count: int, *, counted: bool) -> Any:
    """A state of training before step `count`, where the steps between are left out.

    **Arguments:**

    - `counted`: whether the optimiser counts steps by the plan, and is told.
    """
    state = eqx.tree_at(lambda s: s.count, state, jnp.full_like(state.count, count))
    if not counted:
        return state
    told = optax.tree.set(state.optimizer_state, count=jnp.asarray(count, jnp.int32))
    # One array each, as a step donates them.
    return eqx.tree_at(lambda s: s.optimizer_state, state, jax.tree.map(jnp.array, told))
