"""A page to play with: move a window over a digit, and see which digits it may be of.

    python examples/quickstart.py --save digits.stochinv
    python examples/demo.py digits.stochinv            # writes demo.html, for any browser, without a server

The page holds draws of the posterior given each of 64 places of the window, as pictures; a browser computes nothing.
"""

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tyro

import quickstart
import stochinv as si

TEMPLATE = Path(__file__).with_name("demo_template.html")


@dataclass
class Config:
    """Draws digits given windows of held-out ones, and writes a page that shows them."""

    problem: tyro.conf.Positional[Path]
    """The problem that `quickstart.py --save` wrote."""
    digits: int = 5
    """Held-out digits, each of another class."""
    draws: int = 6
    """Draws for each place of the window."""
    places: int = 8
    """Places of the window along each side."""
    seed: int = 0
    """Seed of the draws, and of the choice of digits by `quickstart.py`."""
    out: Path = Path("demo.html")
    """Where the page goes."""


def main(argv=None):
    config = tyro.cli(Config, args=argv)
    problem = si.load(config.problem, quickstart.FORWARD)
    digits = chosen_digits(config)
    corners = jnp.round(jnp.linspace(0, quickstart.SIZE - quickstart.WINDOW, config.places)).astype(int)
    places = jnp.stack(jnp.meshgrid(corners, corners, indexing="ij"), -1).reshape(-1, 1, 2)
    sheets = []
    for number, digit in enumerate(digits):
        windows = quickstart.cut(jnp.broadcast_to(digit, (len(places), *digit.shape)), places)
        key = jr.fold_in(jr.key(config.seed), number)
        drawn = problem.sample_many(si.View(windows, places), key=key, num_samples=config.draws).signal
        sheets.append({"digit": as_png(digit), "draws": as_png(sheet(drawn))})
    page = {"sheets": sheets, "corners": corners.tolist(), "draws": config.draws}
    page |= {"size": quickstart.SIZE, "window": quickstart.WINDOW}
    config.out.write_text(TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", json.dumps(page)), encoding="utf-8")
    print(f"{config.out}: {len(places)} windows of {len(digits)} digits, {config.out.stat().st_size / 1e6:.1f} MB")
    return page


def chosen_digits(config):
    """One held-out digit of each class."""
    settings = quickstart.Config(seed=config.seed, digits=500)
    images, classes = quickstart.mnist_data()
    order = np.random.default_rng(config.seed).permutation(len(images))[settings.train :]
    first = [np.flatnonzero(classes[order] == label)[0] for label in (8, 3, 5, 2, 9, 4, 7, 6, 0, 1)[: config.digits]]
    return quickstart.load_digits(settings)[1][np.array(first)]


def sheet(drawn):
    """All draws of a digit as one image: a row for each place, its draws beside each other, then mean and spread."""
    mean, std = jnp.mean(drawn, 1, keepdims=True), 2 * jnp.std(drawn, 1, keepdims=True)
    rows = jnp.concatenate([drawn, mean, std], 1)
    places, columns, height, width, _ = rows.shape
    return jnp.moveaxis(rows[..., 0], 1, 2).reshape(places * height, columns * width)


def as_png(image):
    """An image with grey levels in [0, 1] as a data URI; eight of 256 levels are told apart by few eyes."""
    grey = np.asarray(jnp.round(jnp.clip(jnp.squeeze(image), 0, 1) * 31) * 255 / 31).astype(np.uint8)
    with io.BytesIO() as file:
        imageio.imwrite(file, grey, extension=".png", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
