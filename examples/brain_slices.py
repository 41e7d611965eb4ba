"""Slices of a brain for the examples of scanners: those that are scanned for training, and those held out.

They are cut out of the template ICBM 152, the average of many heads that nilearn ships. One head alone is in it, so it
is heights that are held out: a block of them, with a gap on both sides.
"""

import numpy as np
from nilearn.datasets import load_mni152_template
from scipy.ndimage import gaussian_filter, map_coordinates

VOXEL = 2.0  # in millimetres
MIDDLE = (49, 58)  # of the head, in voxels from the left and from the back
# Heights in voxels.
HEIGHTS, HELD_OUT = np.arange(22, 79), np.arange(48, 54)
GAP = 3
FIELD = 200.0  # height and width of what a slice shows, in millimetres


def brain_slices(number, held_out, *, size, seed=0):
    """Slices that train and held-out ones, of random heights, turned and shifted at random.

    Both are float32 of shape `(slices, size, size)`, with grey values between 0 and 1; the nose is at the top.
    """
    rng = np.random.default_rng(seed)
    pixel = FIELD / size / VOXEL
    # Less than half a pixel, so that little is lost between pixels.
    volume = gaussian_filter(load_mni152_template(resolution=2).get_fdata(), pixel / 3)
    apart = (HEIGHTS <= HELD_OUT[0] - GAP) | (HEIGHTS >= HELD_OUT[-1] + GAP)
    return cut(volume, rng, number, HEIGHTS[apart], size), cut(volume, rng, held_out, HELD_OUT, size)


def cut(volume, rng, number, heights, size):
    """Slices turned by some 11° and shifted by some 10 mm in each direction."""
    angle, (right, down) = rng.normal(0, 0.2, (number, 1, 1)), rng.normal(0, 5, (2, number, 1, 1))
    rows, columns = (np.mgrid[:size, :size] - (size - 1) / 2) * FIELD / size / VOXEL
    x = MIDDLE[0] + right + np.cos(angle) * columns - np.sin(angle) * rows
    y = MIDDLE[1] + down - np.sin(angle) * columns - np.cos(angle) * rows
    z = np.broadcast_to(rng.choice(heights, (number, 1, 1)), x.shape)
    return np.float32(map_coordinates(volume, [x, y, z], order=1))
