"""The device and its limits: matrix products and memory bandwidth, which the other parts are compared with."""

import shutil
import subprocess
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import tyro
from measuring import TENSOR_CORES, bandwidth, matrix_product, record

import stochinv as si


@dataclass(frozen=True)
class Options:
    """The device's name and limits."""

    quick: bool = False
    """Everything at a small size."""


def driver() -> str:
    """The version of NVIDIA's driver, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or "unknown"


def main(argv=None):
    options = tyro.cli(Options, args=argv)
    record("device", "name", jax.devices()[0].device_kind)
    record("device", "platform", jax.default_backend())
    record("device", "driver", driver())
    record("device", "jax", jax.__version__)
    record("device", "stochinv", si.__version__)
    products = [
        ("float32", jnp.float32, None, TENSOR_CORES),
        ("bfloat16", jnp.bfloat16, None, ""),
        ("float32, highest precision", jnp.float32, "highest", ""),
    ]
    for name, dtype, precision, note in products:
        record(
            "device", f"matrix product, {name}", matrix_product(dtype, options.quick, precision) / 1e12, "TFLOP/s", note
        )
    record("device", "memory", bandwidth(options.quick) / 1e9, "GB/s", "bytes read and written")


if __name__ == "__main__":
    main()
