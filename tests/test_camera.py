"""Cameras: projection inverts rays, parts of images have cameras of their own, and bad ones are refused."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si

K = np.array([[40.0, 0.5, 17.0], [0, 44.0, 11.0], [0, 0, 1]])
POSE = si.forward.look_at((3.0, -1.0, 0.5), (0.1, 0.2, 0.0), (0, 0, 1))
SIZE = (24, 32)
CAMERA = si.forward.Camera(K, POSE, SIZE)


def test_rays_pass_through_the_pixels_they_are_projected_to():
    rays = CAMERA.rays()
    assert rays.directions.shape == (*SIZE, 3)
    np.testing.assert_allclose(jnp.linalg.norm(rays.directions, axis=-1), 1, atol=1e-6)
    pixels, depth = CAMERA.project(rays.origins + 2.5 * rays.directions)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    np.testing.assert_allclose(pixels, np.stack([columns, rows], -1), atol=1e-3)
    np.testing.assert_allclose(depth, 2.5 * (rays.directions @ POSE[:3, 2].astype(np.float32)), atol=1e-5)


def test_projection_against_matrices():
    points = np.asarray(jr.normal(jr.key(0), (50, 3)))
    seen = K @ (np.linalg.inv(POSE) @ np.concatenate([points, np.ones((50, 1))], 1).T)[:3]
    pixels, depth = CAMERA.project(jnp.asarray(points))
    np.testing.assert_allclose(depth, seen[2], atol=1e-5)
    np.testing.assert_allclose(pixels, (seen[:2] / seen[2]).T, rtol=1e-4, atol=1e-3)


def test_axes():
    """What is above the axis has a smaller row, what is to its right a larger column; the camera looks along +z."""
    camera = si.forward.Camera(np.diag([10.0, 10, 1]), si.forward.look_at((-5, 0, 0), (0, 0, 0), (0, 0, 1)), (4, 4))
    (pixels, depth) = camera.project(jnp.asarray([[0.0, 0, 1], [0, -1, 0], [-6, 0, 0]]))
    np.testing.assert_allclose(pixels[:2], [[0, -2], [2, 0]], atol=1e-5)
    np.testing.assert_allclose(depth, [5, 5, -1], atol=1e-5)


@pytest.mark.parametrize(
    ("corner", "size", "stride"), [((3, 5), (8, 6), 1), ((1, 0), (12, 16), 2), ((2, 4), (4, 5), 5)]
)
def test_a_crop_is_a_camera(corner, size, stride):
    whole, part = CAMERA.rays().directions, CAMERA.crop(jnp.asarray(corner), size, stride=stride).rays().directions
    rows, columns = (slice(c, c + stride * n, stride) for c, n in zip(corner, size, strict=True))
    np.testing.assert_allclose(part, whole[rows, columns], atol=1e-5)


def test_cameras_are_mapped_over():
    poses = np.stack([POSE, si.forward.look_at((0, 3, 1), (0, 0, 0), (0, 0, 1))])
    cameras = si.forward.Camera(np.stack([K, K]), poses, SIZE)
    depth = jax.vmap(lambda camera: camera.project(jnp.zeros(3))[1])(cameras)
    np.testing.assert_allclose(depth[1], np.sqrt(10), rtol=1e-5)
    np.testing.assert_allclose(cameras.position, poses[:, :3, 3])
    crops = jax.jit(jax.vmap(lambda camera, corner: camera.crop(corner, (4, 4))))(
        cameras, jnp.asarray([[0, 0], [1, 2]])
    )
    np.testing.assert_allclose(crops.intrinsics[1, :2, 2], [K[0, 2] - 2, K[1, 2] - 1], rtol=1e-6)


def with_entry(matrix, index, value):
    matrix = np.array(matrix)
    matrix[index] = value
    return matrix


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: si.forward.Camera(with_entry(K, (0, 0), 0.0), POSE, SIZE), "focal lengths"),
        (lambda: si.forward.Camera(with_entry(K, (1, 1), -3.0), POSE, SIZE), "focal lengths"),
        (lambda: si.forward.Camera(with_entry(K, (2, 2), 2.0), POSE, SIZE), "last row"),
        (lambda: si.forward.Camera(with_entry(K, (0, 2), np.nan), POSE, SIZE), "intrinsics.*NaN"),
        (lambda: si.forward.Camera(K, POSE * [[2], [2], [2], [1]], SIZE), "no rotation"),
        (lambda: si.forward.Camera(K, POSE * [1, 1, -1, 1], SIZE), "reflection"),
        (lambda: si.forward.Camera(K, POSE.T, SIZE), "transpose"),
        (lambda: si.forward.Camera(K, POSE[:3], SIZE), "add the row"),
        (lambda: si.forward.Camera(K, with_entry(POSE, (0, 3), np.inf), SIZE), "pose.*NaN"),
        (lambda: si.forward.Camera(K, POSE, (0, 4)), "image_size"),
        (lambda: si.forward.look_at((0, 0, 1), (0, 0, 0), (0, 0, 2)), "line of sight"),
    ],
)
def test_what_is_wrong_is_said(make, words):
    with pytest.raises(ValueError, match=words):
        make()
