"""Neural posterior score estimation by `sbi`, for `posterior_accuracy.py`, which runs it with another interpreter.

Reads simulations from one file and writes samples and times to another; imports nothing of stochinv.

    python npse.py simulations.npz samples.npz
"""

import sys
import time

import numpy as np
import torch
from sbi.inference import NPSE
from sbi.utils import BoxUniform


def main(source, destination):
    torch.manual_seed(0)
    data = np.load(source)
    as_tensor = lambda name: torch.as_tensor(data[name], dtype=torch.float32)
    bound = float(data["bound"]) * torch.ones(data["theta"].shape[1])
    inference = NPSE(BoxUniform(-bound, bound))
    start = time.perf_counter()
    inference.append_simulations(as_tensor("theta"), as_tensor("x")).train()
    training = time.perf_counter() - start
    posterior = inference.build_posterior()
    start = time.perf_counter()
    samples = [
        posterior.sample((int(data["samples"]),), x=x, show_progress_bars=False).numpy() for x in as_tensor("observed")
    ]
    sampling = time.perf_counter() - start
    np.savez(destination, samples=np.stack(samples), training=training, sampling=sampling)


if __name__ == "__main__":
    main(*sys.argv[1:])
