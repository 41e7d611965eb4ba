"""What the parts of the measurement on a GPU share: figures that are kept at once, a clock, and the device's limits."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

OUT = Path(os.environ.get("OUT", "gpu-results"))
TENSOR_CORES = "default precision, which may round factors to TF32"


def record(part: str, figure: str, value: float | str, unit: str = "", note: str = ""):
    """Appends a figure to `figures.jsonl` and `figures.md`, and prints it; nothing is kept in memory."""
    if not isinstance(value, str):
        value = float(value) if math.isfinite(value) else str(value)
    shown = value if isinstance(value, str) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    line = {"part": part, "figure": figure, "value": value, "unit": unit, "note": note}
    append("figures.jsonl", json.dumps(line))
    append("figures.md", f"| {part} | {figure} | {shown} | {unit} | {note} |")
    print(f"{part}: {figure}: {shown} {unit}{f' ({note})' if note else ''}", flush=True)


def append(name: str, line: str):
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / name).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def seconds_per_call(call: Callable[[], Any], quick: bool, wait: Callable[[Any], Any] = jax.block_until_ready) -> float:
    """The median of three turns of a call, each of as many calls as take half a second. What compiles is left out."""
    wait(call())
    start = time.perf_counter()
    wait(call())
    once = time.perf_counter() - start
    number = 1 if quick else max(1, min(200, round(0.5 / once)))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(number):
            result = call()
        wait(result)
        times.append((time.perf_counter() - start) / number)
    return sorted(times)[1]


def matrix_product(dtype: Any, quick: bool, precision: str | None = None) -> float:
    """Floating-point operations per second in products of random square matrices."""
    size = 256 if quick else 8192
    a, b = jr.normal(jr.key(0), (2, size, size), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))
    return 2 * size**3 / seconds_per_call(lambda: product(a, b), quick)


def bandwidth(quick: bool) -> float:
    """Bytes per second, read and written, in adding one to an array that no cache holds."""
    x = jnp.zeros((2**20 if quick else 2**29,), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / seconds_per_call(lambda: add(x), quick)


@dataclass
class TrainingStep:
    """A compiled step `(state, batch) -> (state, loss)` that works on its own state.

    **Arguments:**

    - `step`: the function; its state is donated.
    - `state`, `batch`: arrays.
    """

    step: Callable[[Any, Any], tuple[Any, Any]]
    state: Any
    batch: Any

    def __post_init__(self):
        lowered = jax.jit(self.step, donate_argnums=0).lower(self.state, self.batch)
        start = time.perf_counter()
        self.program = lowered.compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self):
        self.state, loss = self.program(self.state, self.batch)
        return loss


def operations(program: Any) -> float:
    """Floating-point operations of a lowered or compiled program; the body of a loop counts once."""
    return float((program.cost_analysis() or {}).get("flops", 0.0))
